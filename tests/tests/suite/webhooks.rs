//! Webhooks at the door: which are taken in, what becomes of their bytes, and who is turned away.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use chrono::Utc;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use reqwest::Client;
use rollcall_shared::event::WorkerName;
use rollcall_shared::signature::{Scheme, ServerKeys, Verifier, sign_hmac, sign_token};
use rollcall_shared::store::entity::{course_live_session, live_session_user};
use rollcall_shared::telemetry::rejections::Rejections;
use rollcall_tests::broker::{self, Queued, drained};
use rollcall_tests::eventually;
use rollcall_tests::fixtures::{self, Request};
use rollcall_tests::installation::Installation;
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _};
use serde_json::{Value, json};

const PATHS: [&str; 2] = ["/webhooks/plugnmeet", "/api/course/plugnmeet/webhook/"];
const LIMIT: Duration = Duration::from_secs(60);
/// An event that the worker `rooms` wants.
const WANTED: &str = r#"{"event":"room_started","id":"EV_1","room":{"sid":"s","room_id":"r"}}"#;
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Posts to an ingress whatever a test makes up.
struct Door {
    client: Client,
    address: SocketAddr,
}

impl Door {
    fn new(address: SocketAddr) -> Self {
        rollcall_shared::tls::use_ring();
        Self { client: Client::builder().build().unwrap(), address }
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> (u16, String) {
        let mut request = self.client.post(format!("http://{}{path}", self.address)).body(body.into());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// With the headers of a real server's webhook.
    async fn post_token(&self, token: &str, body: impl Into<Vec<u8>>) -> (u16, String) {
        self.post(PATHS[0], &[("Authorization", token), ("Hash-Token", token)], body).await
    }
}

fn token(key: &str, secret: &str, body: &[u8]) -> String {
    sign_token(key, &secret.into(), body, Utc::now().timestamp())
}

/// A token of any header and claims, with a good HMAC by `secret`.
fn made_up_token(header: &Value, claims: &Value, secret: &str) -> String {
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = hex::decode(sign_hmac(&secret.into(), signed.as_bytes())).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The standard base64 of the SHA-256 of `body`, from a token made for it.
fn claims_for(body: &[u8]) -> Value {
    let token = token("key", "secret", body);
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

fn verifier_of(request: &Request) -> Verifier {
    let secrets = vec![request.secret.as_str().into()];
    let schemes = Scheme::ALL.into();
    Verifier::new([ServerKeys { source: "main".into(), api_key: request.api_key.clone(), secrets, schemes }])
}

fn event_of(request: &Request) -> String {
    serde_json::from_str::<Value>(&request.body).unwrap()["event"].as_str().unwrap().to_owned()
}

#[test]
fn what_was_recorded_carries_a_good_signature_of_its_time() {
    let captured = fixtures::classes().into_values().flatten();
    let mut count = 0;
    for request in fixtures::requests().into_iter().chain(captured) {
        let verifier = verifier_of(&request);
        let header = |name: &str| request.headers.get(name).map(String::as_bytes);
        let (hash_token, authorization) = (header("Hash-Token"), header("Authorization"));
        let body = request.body.as_bytes();
        let verify = |hash, auth, body: &[u8]| verifier.verify(hash, auth, body, request.signed_at).is_ok();
        assert!(verify(hash_token, authorization, body), "{}", request.name);
        assert!(verify(hash_token, None, body), "{}", request.name);
        assert!(authorization.is_none() || verify(None, authorization, body), "{}", request.name);
        assert!(!verify(hash_token, authorization, &body[1..]), "{}", request.name);
        count += 1;
    }
    assert!(count > 80, "only {count} requests");
}

/// The name of the request, how it was posted, and the id that its sender was told.
struct Posted {
    what: String,
    id: String,
    body: String,
}

/// Posts a request by both paths in both schemes; what was accepted.
async fn post_every_way(door: &Door, request: &Request, wanted: bool) -> Vec<Posted> {
    let mut accepted = Vec::new();
    for path in PATHS {
        let fresh = token(&request.api_key, &request.secret, request.body.as_bytes());
        let hmac = sign_hmac(&request.secret.as_str().into(), request.body.as_bytes());
        for (scheme, headers) in [
            ("token", vec![("Authorization", fresh.as_str()), ("Hash-Token", fresh.as_str())]),
            ("hmac", vec![("Hash-Token", hmac.as_str())]),
        ] {
            let what = format!("{} to {path} by {scheme}", request.name);
            let (status, answer) = door.post(path, &headers, request.body.as_str()).await;
            assert_eq!(status, 200, "{what}: {answer}");
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(answer["status"], "ok", "{what}");
            assert_eq!(answer["result"], if wanted { "accepted" } else { "ignored" }, "{what}");
            if wanted {
                accepted.push(Posted { what, id: answer["id"].as_str().unwrap().into(), body: request.body.clone() });
            }
        }
    }
    accepted
}

/// Checks what lies in a queue against what its sender posted.
fn check_queued(queued: &Queued, posted: &Posted) {
    let what = &posted.what;
    assert_eq!(queued.body, posted.body.as_bytes(), "{what}");
    assert!(queued.is_persistent, "{what}");
    let body: Value = serde_json::from_str(&posted.body).unwrap();
    assert_eq!(Some(queued.event.as_str()), body["event"].as_str(), "{what}");
    let header = |name: &str| queued.headers.get(name).map(String::as_str);
    assert_eq!(header("rollcall-source"), Some("main"), "{what}");
    assert_eq!(header("rollcall-event-id"), body["id"].as_str(), "{what}");
    let room = body["room"]["room_id"].as_str().or(body["room"]["identity"].as_str());
    assert_eq!(header("rollcall-room-id"), room, "{what}");
    let received_at: i64 = header("rollcall-received-at").unwrap().parse().unwrap();
    assert!((Utc::now().timestamp_millis() - received_at).abs() < 120_000, "{what}");
    assert!(header("traceparent").is_some_and(|it| it.len() == TRACEPARENT.len()), "{what}");
    assert_eq!(header("rollcall-attempt"), None, "{what}");
}

#[tokio::test]
async fn every_recorded_request_is_queued_byte_for_byte_or_ignored_as_the_catalogue_says() {
    let mut installation = Installation::new().await;
    let requests = fixtures::requests();
    installation.server("main", &requests[0].api_key, &requests[0].secret, "http://127.0.0.1:1");
    let ingress = installation.ingress().await;
    let door = Door::new(ingress.address);
    let mut accepted: BTreeMap<WorkerName, BTreeMap<String, Posted>> = BTreeMap::new();
    for request in &requests {
        let worker = WorkerName::wanting(&event_of(request));
        for posted in post_every_way(&door, request, worker.is_some()).await {
            accepted.entry(worker.unwrap()).or_default().insert(posted.id.clone(), posted);
        }
    }
    for worker in WorkerName::ALL {
        let mut posted = accepted.remove(&worker).unwrap();
        for queued in broker::take(&installation, worker.as_str()).await {
            check_queued(&queued, &posted.remove(&queued.id).expect("it was accepted, once"));
        }
        assert!(posted.is_empty(), "not in the queue: {:?}", posted.values().map(|it| &it.what).collect::<Vec<_>>());
    }
    assert_eq!(broker::depths(&installation).await.unwrap(), BTreeMap::new());
}

#[tokio::test]
async fn either_secret_and_either_header_say_who_sent_it() {
    let mut installation = Installation::new().await;
    installation.rotate("main", "rotated");
    installation.server("other", "other-key", "other-secret", "http://127.0.0.1:1");
    let ingress = installation.ingress().await;
    let door = Door::new(ingress.address);
    let mut expected = BTreeMap::new();
    for (key, secret, source) in
        [("key", "rotated", "main"), ("key", "secret", "main"), ("other-key", "other-secret", "other")]
    {
        let token = token(key, secret, WANTED.as_bytes());
        let hmac = sign_hmac(&secret.into(), WANTED.as_bytes());
        for headers in [
            vec![("Hash-Token", token.as_str())],
            vec![("Authorization", &token)],
            vec![("Authorization", "Basic cHJveHk6eA=="), ("Hash-Token", &token)],
            vec![("Hash-Token", &hmac), ("traceparent", TRACEPARENT)],
        ] {
            let (status, answer) = door.post(PATHS[0], &headers, WANTED).await;
            assert_eq!(status, 200, "{secret} {headers:?}: {answer}");
            let answer: Value = serde_json::from_str(&answer).unwrap();
            let is_traced = headers.iter().any(|(name, _)| *name == "traceparent");
            expected.insert(answer["id"].as_str().unwrap().to_owned(), (source, is_traced));
        }
    }
    let queued = broker::take(&installation, "rooms").await;
    assert_eq!(queued.len(), expected.len());
    for message in queued {
        let (source, is_traced) = expected[&message.id];
        assert_eq!(message.headers["rollcall-source"], source);
        assert_eq!(message.headers["traceparent"] == TRACEPARENT, is_traced);
    }
}

#[tokio::test]
async fn a_server_may_be_held_to_tokens_and_how_each_signed_is_counted() {
    let installation = Installation::on_files().await;
    let by = ["env", "ROLLCALL__PLUGNMEET__MAIN__SIGNATURES=token"];
    let ingress = installation.spawn_by(&by, "rollcall-ingress", &[]).listens().await;
    let door = Door::new(ingress.address);
    let hmac = sign_hmac(&"secret".into(), WANTED.as_bytes());
    // As PlugNMeet's own API is signed: what was said to it is no webhook.
    assert_eq!(door.post(PATHS[0], &[("Hash-Token", &hmac)], WANTED).await.0, 403);
    assert_eq!(door.post_token(&token("key", "secret", WANTED.as_bytes()), WANTED).await.0, 200);
    let page = reqwest::get(format!("http://{}/rejections", ingress.admin)).await.unwrap().text().await.unwrap();
    let Rejections { rejections, .. } = serde_json::from_str(&page).unwrap();
    assert_eq!(rejections.iter().map(|it| it.reason.as_ref()).collect::<Vec<_>>(), ["scheme"]);
    assert_eq!(ingress.metric("rollcall_ingress_signatures_total{scheme=\"token\"}").await, Some(1.0));
    assert_eq!(ingress.metric("rollcall_ingress_signatures_total{scheme=\"hmac\"}").await, None);
    ingress.process.stop().await;

    // By default both are good.
    let ingress = installation.ingress().await;
    assert_eq!(Door::new(ingress.address).post(PATHS[0], &[("Hash-Token", &hmac)], WANTED).await.0, 200);
    assert_eq!(ingress.metric("rollcall_ingress_signatures_total{scheme=\"hmac\"}").await, Some(1.0));
    ingress.process.stop().await;
}

/// What is not signed as it must be: what it is, the header, the body.
fn badly_signed() -> Vec<(&'static str, String, Vec<u8>)> {
    let body = WANTED.as_bytes();
    let good = token("key", "secret", body);
    let claims = claims_for(body);
    let with = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        claims
    };
    let hs256 = json!({"alg": "HS256", "typ": "JWT"});
    let none = made_up_token(&json!({"alg": "none"}), &claims, "secret");
    let (unsigned, signature) = none.rsplit_once('.').unwrap();
    let public_key = "-----BEGIN PUBLIC KEY-----\nMFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAK\n-----END PUBLIC KEY-----\n";
    let now = Utc::now().timestamp();
    let of = |token: &str| (token.to_owned(), body.to_vec());
    [
        ("wrong secret", of(&token("key", "guess", body))),
        ("wrong secret, hmac", of(&sign_hmac(&"guess".into(), body))),
        ("unknown key", of(&token("nobody", "secret", body))),
        ("wrong body", (good.clone(), WANTED.replace("EV_1", "EV_2").into())),
        ("wrong body, hmac", (sign_hmac(&"secret".into(), body), WANTED.replace("EV_1", "EV_2").into())),
        ("truncated body", (good.clone(), body[..body.len() - 1].to_vec())),
        ("empty body", (good.clone(), Vec::new())),
        ("hex digest, as PlugNMeet's blog has it", {
            let digest = hex::encode(STANDARD.decode(claims["sha256"].as_str().unwrap()).unwrap());
            of(&made_up_token(&hs256, &with("sha256", digest.into()), "secret"))
        }),
        ("expired", of(&sign_token("key", &"secret".into(), body, now - 400))),
        ("not yet valid", of(&sign_token("key", &"secret".into(), body, now + 120))),
        ("no end", of(&made_up_token(&hs256, &with("exp", Value::Null), "secret"))),
        ("alg none", of(&format!("{unsigned}."))),
        ("alg none, signed", of(&format!("{unsigned}.{signature}"))),
        ("alg nOnE", of(&made_up_token(&json!({"alg": "nOnE"}), &claims, "secret"))),
        ("RS256, signed by the secret", of(&made_up_token(&json!({"alg": "RS256"}), &claims, "secret"))),
        ("HS256, signed by a public key", of(&made_up_token(&hs256, &claims, public_key))),
        ("RS256, signed by a public key", of(&made_up_token(&json!({"alg": "RS256"}), &claims, public_key))),
        ("truncated token", of(&good[..good.len() - 4])),
        ("token without its signature", of(good.rsplit_once('.').unwrap().0)),
        ("token with an empty signature", of(&format!("{}.", good.rsplit_once('.').unwrap().0))),
        ("half a token", of(&good[..good.len() / 2])),
        ("Bearer", of(&format!("Bearer {good}"))),
        ("64 letters", of(&"z".repeat(64))),
        ("nothing", of("")),
    ]
    .into_iter()
    .map(|(what, (token, body))| (what, token, body))
    .collect()
}

#[tokio::test]
async fn what_is_not_signed_by_a_server_is_refused_and_nobody_is_told_why() {
    let mut installation = Installation::new().await;
    // One that stands in no other word of a log.
    installation.server("unmistakable", "another key", "hunter2-hunter2", "http://127.0.0.1:1");
    let ingress = installation.ingress().await;
    let door = Door::new(ingress.address);
    let unsigned = door.post(PATHS[0], &[], WANTED).await;
    assert_eq!(unsigned.0, 403);
    let refused = badly_signed();
    for (what, token, body) in &refused {
        for headers in [vec![("Hash-Token", token.as_str())], vec![("Authorization", token.as_str())]] {
            assert_eq!(door.post(PATHS[0], &headers, body.clone()).await, unsigned, "{what}");
        }
    }
    assert_eq!(door.post(PATHS[0], &[], "not JSON").await, unsigned);

    let text = metrics(ingress.admin).await;
    assert_eq!(
        metric(&text, "rollcall_ingress_requests_total{result=\"forbidden\"}"),
        2.0 * refused.len() as f64 + 2.0
    );
    for reason in
        ["missing", "malformed", "algorithm", "unknown_key", "wrong_secret", "not_yet_valid", "expired", "other_body"]
    {
        assert!(metric(&text, &format!("rollcall_ingress_rejections_total{{reason=\"{reason}\"}}")) > 0.0, "{reason}");
    }
    assert_eq!(broker::depths(&installation).await.unwrap(), BTreeMap::new());
    let log = ingress.process.log();
    assert!(log.contains("the token has expired"), "{log}");
    assert!(!log.contains("hunter2"), "{log}");
}

#[tokio::test]
async fn what_is_signed_and_makes_no_sense_is_told_so() {
    let installation = Installation::new().await;
    let ingress = installation.ingress().await;
    let door = Door::new(ingress.address);
    let long = format!(r#"{{"event":"room_started","x":"{}"}}"#, "x".repeat(2 * 1024 * 1024));
    let nearly_long = format!(r#"{{"event":"room_started","x":"{}"}}"#, "x".repeat(1_000_000));
    for (what, body, status) in [
        ("not JSON", "not JSON", 400),
        ("truncated", &WANTED[..WANTED.len() - 1], 400),
        ("no event", r#"{"id":"EV_1","room":{"room_id":"r"}}"#, 400),
        ("an event that is no text", r#"{"event":7}"#, 400),
        ("empty", "", 400),
        ("2 MiB", &long, 413),
        ("an event nobody knows", r#"{"event":"room_painted","id":"EV_1"}"#, 200),
        ("nearly 1 MiB", &nearly_long, 200),
    ] {
        let (answered, answer) = door.post_token(&token("key", "secret", body.as_bytes()), body).await;
        assert_eq!(answered, status, "{what}: {answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["status"], if status == 200 { "ok" } else { "error" }, "{what}");
    }
    assert_eq!(door.post("/elsewhere", &[], WANTED).await.0, 404);
    let queued = broker::take(&installation, "rooms").await;
    assert_eq!(queued.iter().map(|it| it.body.as_slice()).collect::<Vec<_>>(), [nearly_long.as_bytes()]);

    let text = metrics(ingress.admin).await;
    for (result, count) in
        [("bad_body", 5.0), ("body_too_long", 1.0), ("ignored", 1.0), ("accepted", 1.0), ("not_found", 1.0)]
    {
        assert_eq!(
            metric(&text, &format!("rollcall_ingress_requests_total{{result=\"{result}\"}}")),
            count,
            "{result}"
        );
    }
    assert_eq!(metric(&text, "rollcall_ingress_ignored_total{event=\"other\"}"), 1.0);
    assert_eq!(metric(&text, "rollcall_ingress_body_bytes_total"), nearly_long.len() as f64);
    assert_eq!(metric(&text, "rollcall_ingress_publish_seconds_count"), 1.0);
}

#[tokio::test]
async fn an_id_that_is_none_keeps_no_event_out() {
    let installation = Installation::new().await;
    let ingress = installation.ingress().await;
    let door = Door::new(ingress.address);
    let long = "x".repeat(10_000);
    let odd = [json!(5), json!(1.5), Value::Null, json!({"a": [1]}), json!([]), json!(true), json!(""), json!(long)];
    let mut expected = BTreeMap::new();
    for id in &odd {
        for body in [
            json!({"event": "room_started", "id": id, "room": {"sid": "s", "room_id": "r"}}),
            json!({"event": "room_started", "id": "EV_1", "room": {"sid": id, "room_id": id, "identity": id}}),
        ] {
            let body = body.to_string();
            let (status, answer) = door.post_token(&token("key", "secret", body.as_bytes()), body.as_str()).await;
            assert_eq!(status, 200, "{body}: {answer}");
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(answer["result"], "accepted", "{body}");
            expected.insert(answer["id"].as_str().unwrap().to_owned(), body);
        }
    }
    let queued = broker::take(&installation, "rooms").await;
    assert_eq!(queued.len(), expected.len());
    for message in queued {
        assert_eq!(String::from_utf8(message.body).unwrap(), expected[&message.id]);
        for (name, value) in message.headers {
            assert!(value.len() < 100, "{name} travels beside the body although it is long");
        }
    }
}

#[tokio::test]
async fn whoever_takes_webhooks_shows_those_that_were_refused() {
    let (on_servers, on_files) = (Installation::new().await, Installation::on_files().await);
    for ingress in [on_servers.ingress().await, on_files.up().await] {
        let door = Door::new(ingress.address);
        assert_eq!(door.post_token(&token("key", "secret", WANTED.as_bytes()), WANTED).await.0, 200);
        assert_eq!(door.post_token(&token("key", "hunter2", WANTED.as_bytes()), WANTED).await.0, 403);
        assert_eq!(door.post_token(&token("key", "secret", b"not JSON"), "not JSON").await.0, 400);
        let page = reqwest::get(format!("http://{}/rejections", ingress.admin)).await.unwrap().text().await.unwrap();
        let Rejections { total, rejections } = serde_json::from_str(&page).unwrap();
        let shown: Vec<_> = rejections.iter().map(|it| (it.reason.as_ref(), it.size)).collect();
        assert_eq!((total, shown), (2, vec![("not_json", 8), ("wrong_secret", WANTED.len() as u64)]));
        assert!(["hunter2", "not JSON", "EV_1"].iter().all(|text| !page.contains(text)), "{page}");
    }
}

async fn metrics(admin: SocketAddr) -> String {
    rollcall_shared::tls::use_ring();
    reqwest::get(format!("http://{admin}/metrics")).await.unwrap().text().await.unwrap()
}

fn metric(text: &str, name: &str) -> f64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

#[tokio::test]
async fn the_single_requests_end_in_the_attendance_that_they_tell_of() {
    let mut installation = Installation::new().await;
    let mut requests = fixtures::requests();
    installation.server("main", &requests[0].api_key, &requests[0].secret, "http://127.0.0.1:1");
    let ingress = installation.ingress().await;
    let _workers = installation.attendance_and_rooms(1).await;
    let door = Door::new(ingress.address);
    // As they happened. The legacy ones are all of one second, and in order by name.
    requests.sort_by_key(|request| request.signed_at);
    for request in &requests {
        // One after the other: legacy bodies are applied as they arrive. Recordings have tests of their own.
        if WorkerName::wanting(&event_of(request)) == Some(WorkerName::Recordings) {
            continue;
        }
        let fresh = token(&request.api_key, &request.secret, request.body.as_bytes());
        assert_eq!(door.post_token(&fresh, request.body.as_str()).await.0, 200);
        assert_eq!(drained(&installation, LIMIT).await, BTreeMap::new());
    }
    let end = 1_761_818_000;
    let person = |entered: i64, total: i64, joins: i64| json!({"entered_at": entered, "exited_at": end, "is_online": false, "join_count": joins, "total_seconds": total});
    // The student's two stays, 920 s and 2,385 s; the teacher to the end; the recorder is nobody.
    let expected = json!({
        "ended_at": end, "parent_room_id": null, "room_sid": "RM_8Kx2mN4pQ7rS-1761814595173", "started_at": 1_761_814_600,
        "people": {"12": person(1_761_814_607, end - 1_761_814_607, 1), "27": person(1_761_814_635, 920 + 2_385, 2)},
    });
    eventually(LIMIT, || async {
        let found = fixtures::attendance(&installation.db, "main").await;
        let found = &found["algebra-20251030090000"];
        if *found == expected { Ok(()) } else { Err(format!("{found:#}")) }
    })
    .await;
    eventually(LIMIT, || legacy_attendance(&installation)).await;
}

/// Joined at 1,697,497,300, left after 1,800 s; the room's end came just now, with no time of its own.
async fn legacy_attendance(installation: &Installation) -> Result<(), String> {
    let session = course_live_session::Entity::find()
        .filter(course_live_session::Column::RoomId.eq("course-slug-20240101120000"))
        .one(&installation.db)
        .await
        .unwrap()
        .ok_or("no session")?;
    let people = live_session_user::Entity::find().filter(live_session_user::Column::SessionId.eq(session.id));
    let people = people.all(&installation.db).await.unwrap();
    let rows: Vec<_> = people
        .iter()
        .map(|it| (it.user_id.as_str(), it.entered_at.map(|at| at.timestamp()), it.total_seconds, it.is_online))
        .collect();
    if session.ended_at.is_some() && rows == [("27", Some(1_697_497_300), 1_800, false)] {
        Ok(())
    } else {
        Err(format!("{session:?} {rows:?}"))
    }
}

#[tokio::test]
async fn an_event_that_no_binding_wants_is_kept() {
    let installation = Installation::new().await;
    let ingress = installation.ingress().await;
    let connection = Connection::connect(&installation.broker_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let name = |part: &str| format!("{}.{part}", installation.prefix);
    let (queue, exchange) = (name("rooms"), name("events"));
    let key = "*.room_started".into();
    channel.queue_unbind(queue.into(), exchange.into(), key, FieldTable::default()).await.unwrap();

    let (status, answer) =
        Door::new(ingress.address).post_token(&token("key", "secret", WANTED.as_bytes()), WANTED).await;
    assert_eq!(status, 200, "{answer}");
    let depths = broker::depths(&installation).await.unwrap();
    assert_eq!(depths, BTreeMap::from([("unrouted".to_owned(), 1)]));
    let kept = broker::take(&installation, "unrouted").await;
    assert_eq!((kept[0].body.as_slice(), kept[0].event.as_str()), (WANTED.as_bytes(), "room_started"));
}
