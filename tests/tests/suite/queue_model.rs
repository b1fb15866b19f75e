//! Random steps against the real programs, and every accepted event is in its place afterwards: see `rollcall_tests::model`.

use rollcall_shared::event::WorkerName;
use rollcall_tests::model::books::{Books, Kind, Place, Seen, Wrong};
use rollcall_tests::model::plan::{BackEnd, Plan};
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

/// What the books say where one event of this kind, posted so often and accepted, was seen in these places.
fn audit(kind: Kind, posts: usize, places: &[Place], and: impl FnOnce(&mut Books)) -> Vec<Wrong> {
    let mut books = Books::default();
    let number = books.open(kind);
    for _ in 0..posts {
        books.posted(number);
        books.accepted(number);
    }
    and(&mut books);
    let mut seen = Seen::default();
    if !places.is_empty() {
        seen.places.insert(number, places.to_vec());
    }
    books.audit(&seen)
}

#[test]
fn the_books_tell_what_is_lost_twice_and_misplaced_from_what_is_right() {
    use Place::{Applied, Dropped};
    let dead = |kind: &str| Place::Dead(kind.to_owned());
    let nothing = |_: &mut Books| {};
    let purge = |books: &mut Books| books.purged(WorkerName::Attendance);
    let purge_and_crash = |books: &mut Books| {
        purge(books);
        books.copies_are_about();
    };
    for (kind, place) in [(Kind::Join, Applied), (Kind::Start, Applied), (Kind::Nobody, dead("permanent"))] {
        assert_eq!(audit(kind, 1, std::slice::from_ref(&place), nothing), []);
        assert_eq!(audit(kind, 1, &[], nothing), [Wrong::Lost(0, kind)]);
        let twice = [place.clone(), place];
        assert_eq!(audit(kind, 1, &twice, nothing), [Wrong::Twice(0, kind, twice.to_vec())]);
    }
    assert_eq!(audit(Kind::Bot, 1, &[], nothing), []);
    assert_eq!(audit(Kind::Nobody, 2, &[dead("permanent"), dead("permanent")], nothing), []);
    assert_eq!(audit(Kind::Join, 1, &[Dropped], nothing), [Wrong::Misplaced(0, Kind::Join, Dropped)]);
    assert_eq!(audit(Kind::Join, 1, &[Dropped], purge), []);
    // A purge alone makes no copies.
    let both = [Applied, Dropped];
    assert_eq!(audit(Kind::Join, 1, &both, purge), [Wrong::Twice(0, Kind::Join, both.to_vec())]);
    assert_eq!(audit(Kind::Join, 1, &both, purge_and_crash), []);
    assert_eq!(audit(Kind::Join, 2, &[Applied, Applied], purge_and_crash).len(), 1);
    assert_eq!(audit(Kind::Unannounced, 1, &[Applied], nothing).len(), 1);
    assert_eq!(audit(Kind::Unannounced, 1, &[Applied], Books::announced), []);
    let waits = Place::Waiting("attendance".to_owned());
    assert_eq!(audit(Kind::Join, 1, std::slice::from_ref(&waits), nothing).len(), 1);
}

#[test]
fn a_seed_is_a_plan() {
    let plan = |seed| Plan::new(seed, BackEnd::Servers).steps;
    assert_eq!(plan(7), plan(7));
    assert_ne!(plan(7), plan(8));
}
