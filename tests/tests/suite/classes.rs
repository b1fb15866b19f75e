//! Classes as they happened, in any order, twice, and with events missing, end in the rows that they must.

use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rollcall_tests::classes::Class;
use rollcall_tests::fixtures::{self, Request};
use rollcall_tests::installation::Installation;
use rollcall_tests::webhooks::Sender;
use rollcall_tests::{broker, eventually};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);

rollcall_tests::on_both_back_ends!(
    captured_classes_end_in_the_rows_that_follow_from_them,
    random_classes_in_any_order_come_to_the_truth,
);

/// One way of telling a class: under a source of its own, so that all of them fit one installation.
struct Telling {
    what: String,
    webhooks: Vec<Request>,
    expected: Value,
}

fn tellings() -> Vec<Telling> {
    let expected = fixtures::expected();
    let mut rng = StdRng::seed_from_u64(3);
    let mut tellings = Vec::new();
    for (class, webhooks) in fixtures::classes() {
        let whole = &expected[&class]["whole"];
        let mut tell = |how: &str, webhooks: Vec<Request>, expected: &Value| {
            tellings.push(Telling { what: format!("{class}, {how}"), webhooks, expected: expected.clone() });
        };
        tell("in order", webhooks.clone(), whole);
        tell("backwards", webhooks.iter().rev().cloned().collect(), whole);
        tell("each twice", webhooks.iter().flat_map(|one| [one.clone(), one.clone()]).collect(), whole);
        for round in 0..5 {
            let mut shuffled = webhooks.clone();
            shuffled.shuffle(&mut rng);
            tell(&format!("shuffled {round}"), shuffled, whole);
        }
        for left_out in &webhooks {
            let rest = webhooks.iter().filter(|one| one.name != left_out.name).cloned().collect();
            let expected = &expected[&class]["without"][&left_out.name];
            assert!(expected.is_object(), "{class} without {} is not expected", left_out.name);
            tell(&format!("without {}", left_out.name), rest, expected);
        }
    }
    tellings
}

async fn captured_classes_end_in_the_rows_that_follow_from_them(mut installation: Installation) {
    let tellings = tellings();
    for number in 0..tellings.len() {
        installation.server(
            &format!("s{number}"),
            &format!("key-{number}"),
            &format!("secret-{number}"),
            "http://127.0.0.1:1",
        );
    }
    // Small batches of three processes each, so that they meet in the same sessions.
    installation.set("workers.batch_size", 7);
    let ingress = installation.ingress().await;
    let _workers = installation.attendance_and_rooms(3).await;

    for (number, telling) in tellings.iter().enumerate() {
        let sender = Sender::new(&installation, &format!("s{number}"), ingress.address);
        for webhook in &telling.webhooks {
            sender.post(&webhook.body).await;
        }
    }
    for (number, telling) in tellings.iter().enumerate() {
        let source = format!("s{number}");
        eventually(LIMIT, || async {
            let found = fixtures::attendance(&installation.db, &source).await;
            if found == telling.expected {
                Ok(())
            } else {
                Err(format!("{}: found {found:#}\nexpected {:#}", telling.what, telling.expected))
            }
        })
        .await;
    }
    assert!(tellings.len() > 90, "only {} tellings", tellings.len());
}

async fn random_classes_in_any_order_come_to_the_truth(mut installation: Installation) {
    installation.set("workers.batch_size", 9);
    let ingress = installation.ingress().await;
    let _workers = installation.attendance_and_rooms(3).await;
    let sender = Sender::new(&installation, "main", ingress.address);

    let mut rng = StdRng::seed_from_u64(20_261_122);
    let classes: Vec<_> = (0..40).map(|number| Class::random(&format!("class-{number}"), 12, &mut rng)).collect();
    let mut webhooks: Vec<_> = classes.iter().flat_map(|class| class.shuffled(&mut rng)).collect();
    webhooks.shuffle(&mut rng);
    for webhook in &webhooks {
        sender.post(webhook).await;
    }
    let dead = broker::drained(&installation, LIMIT).await;
    assert!(dead.is_empty(), "{dead:?}");
    for class in &classes {
        eventually(LIMIT, || class.check(&installation.db, "main")).await;
    }
}
