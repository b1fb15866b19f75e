//! Random steps against the real programs, and every accepted event is in its place afterwards: see `rollcall_tests::model`.

use rollcall_tests::model::plan::BackEnd;
use rollcall_tests::model::play;

/// Half a minute each, whatever a round takes that has begun by then.
const SOON: f64 = 0.5;
const LONG: f64 = 60.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_is_in_its_place_on_servers() {
    play(BackEnd::Servers, SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_is_in_its_place_on_files() {
    play(BackEnd::Files, SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes an hour: make soak"]
async fn every_event_is_in_its_place_after_an_hour_on_servers() {
    play(BackEnd::Servers, LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes an hour: make soak"]
async fn every_event_is_in_its_place_after_an_hour_on_files() {
    play(BackEnd::Files, LONG).await;
}
