//! The stand-in, asked over HTTP, against what a running server answered (`answers/`).

use std::time::Instant;

use hyper::StatusCode;
use hyper::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, LAST_MODIFIED, RANGE};
use reqwest::{Client, RequestBuilder};
use rollcall_shared::signature;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::webhook::{Happening, Room};
use super::*;

const KEY: &str = "plugnmeet";
const RECORD_ID: &str = "bf939269-8471-4dc9-8f20-e27fc5887474-1795308813921";
const INFO: &str = "/auth/recording/info";
const DOWNLOAD_TOKEN: &str = "/auth/recording/getDownloadToken";

fn secret() -> SecretString {
    "zumyyYWqv7KR2kUqvYdq4z4sXg7XTBD2ljT6".into()
}

fn client() -> Client {
    rollcall_shared::tls::use_ring();
    Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap()
}

/// The recording that the captured answers are about.
fn captured_recording() -> Recording {
    Recording {
        title: "Physics فیزیک".into(),
        content: Content::Zeros(16_413_725),
        created_at: at(1_795_308_819),
        room_created_at: at(1_795_308_810),
        room_ended_at: Some(at(1_795_308_835)),
        ..Recording::new(RECORD_ID, "phys-9", "bf939269-8471-4dc9-8f20-e27fc5887474", "")
    }
}

/// A server with the recording of a file of these bytes.
async fn server_with(bytes: &[u8]) -> (StandIn, tempfile::NamedTempFile) {
    let server = StandIn::start(KEY, &secret()).await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    server.add_recording(Recording::new(RECORD_ID, "phys-9", "bf939269", file.path()));
    (server, file)
}

/// A request that is signed as it should be.
fn request(server: &StandIn, path: &str, body: &str) -> RequestBuilder {
    client()
        .post(server.url().join(path).unwrap())
        .header("Content-Type", "application/json")
        .header("API-KEY", KEY)
        .header("HASH-SIGNATURE", signature::sign_hmac(&secret(), body.as_bytes()))
        .body(body.to_owned())
}

async fn ask(server: &StandIn, path: &str) -> reqwest::Response {
    request(server, path, &json!({"record_id": RECORD_ID}).to_string()).send().await.unwrap()
}

async fn download_url(server: &StandIn) -> Url {
    let answer: Value = serde_json::from_slice(&ask(server, DOWNLOAD_TOKEN).await.bytes().await.unwrap()).unwrap();
    server.url().join(&format!("/download/recording/{}", answer["token"].as_str().unwrap())).unwrap()
}

async fn download(server: &StandIn) -> reqwest::Response {
    client().get(download_url(server).await).send().await.unwrap()
}

/// Holds an answer against a captured one: status, type and every byte of the body.
async fn assert_is_captured(answer: reqwest::Response, captured: &str) {
    let captured: Value = serde_json::from_str(captured).unwrap();
    assert_eq!(captured["status"], answer.status().as_u16());
    assert_eq!(captured["headers"]["Content-Type"], answer.headers()["content-type"].to_str().unwrap());
    assert_eq!(captured["body"], answer.text().await.unwrap());
}

#[tokio::test]
async fn answers_are_those_of_a_running_server() {
    let server = StandIn::start(KEY, &secret()).await.unwrap();
    assert_is_captured(ask(&server, INFO).await, include_str!("answers/recording_info_no.json")).await;
    assert_is_captured(ask(&server, DOWNLOAD_TOKEN).await, include_str!("answers/recording_info_no.json")).await;

    server.add_recording(captured_recording());
    for path in [INFO, "/auth/recording/recordingInfo"] {
        // An id of another part of the server, which the stand-in has not.
        let captured = include_str!("answers/recording_info.json").replace("fafea8fe-ec43-49a6-8ebc-c5714f6675b9", "");
        assert_is_captured(ask(&server, path).await, &captured).await;
    }
    let missing = request(&server, INFO, "{}").send().await.unwrap();
    assert_is_captured(missing, include_str!("answers/recording_info_missing_field.json")).await;
    let unknown = request(&server, "/auth/recording/nope", "{}").send().await.unwrap();
    assert_is_captured(unknown, include_str!("answers/auth_unknown_path.json")).await;

    let unsigned = || client().post(server.url().join(INFO).unwrap()).body("{}");
    let no_headers = unsigned().send().await.unwrap();
    assert_is_captured(no_headers, include_str!("answers/auth_no_headers.json")).await;
    let bad_key = unsigned().header("API-KEY", "x").header("HASH-SIGNATURE", "x").send().await.unwrap();
    assert_is_captured(bad_key, include_str!("answers/auth_bad_key.json")).await;
    let bad_signature = unsigned().header("API-KEY", KEY).header("HASH-SIGNATURE", "x").send().await.unwrap();
    assert_is_captured(bad_signature, include_str!("answers/auth_bad_signature.json")).await;

    let no_room = request(&server, "/auth/room/isRoomActive", r#"{"room_id":"nope"}"#).send().await.unwrap();
    assert_is_captured(no_room, include_str!("answers/is_room_active_no.json")).await;

    let bad_token = client().get(server.url().join("/download/recording/nonsense").unwrap()).send().await.unwrap();
    assert_is_captured(bad_token, include_str!("answers/download_bad_token.json")).await;
}

#[tokio::test]
async fn a_download_is_the_file_whatever_range_is_asked_for() {
    let bytes: Vec<u8> = (0..1_000_000).map(|number: u32| (number % 251) as u8).collect();
    let (server, _file) = server_with(&bytes).await;
    let url = download_url(&server).await;
    let answer = client().get(url.clone()).header(RANGE, "bytes=1000-").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()[CONTENT_LENGTH], "1000000");
    assert_eq!(answer.headers()[CONTENT_DISPOSITION], format!("attachment; filename={RECORD_ID}.mp4"));
    assert!(answer.headers()[LAST_MODIFIED].to_str().unwrap().ends_with(" GMT"));
    for absent in ["accept-ranges", "etag"] {
        assert!(!answer.headers().contains_key(absent));
    }
    assert_eq!(answer.bytes().await.unwrap(), bytes);

    let head = client().head(url.clone()).send().await.unwrap();
    assert_eq!((head.status(), &head.headers()[CONTENT_LENGTH]), (StatusCode::OK, &"1000000".parse().unwrap()));

    server.honour_range(true);
    let part = client().get(url).header(RANGE, "bytes=999990-").send().await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.headers()[CONTENT_RANGE], "bytes 999990-999999/1000000");
    assert_eq!(part.bytes().await.unwrap(), bytes[999_990..]);

    let seen: Vec<_> = server.requests().into_iter().map(|seen| (seen.endpoint, seen.method, seen.range)).collect();
    assert_eq!(
        seen,
        [
            (Endpoint::DownloadToken, Method::POST, None),
            (Endpoint::Download, Method::GET, Some("bytes=1000-".to_owned())),
            (Endpoint::Download, Method::HEAD, None),
            (Endpoint::Download, Method::GET, Some("bytes=999990-".to_owned())),
        ]
    );
}

#[tokio::test]
async fn a_file_that_is_gone_still_gets_a_token() {
    let (server, file) = server_with(b"video").await;
    file.close().unwrap();
    assert_eq!(download(&server).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_token_expires() {
    let (server, _file) = server_with(b"video").await;
    server.token_lifetime(Duration::ZERO);
    let url = download_url(&server).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let answer = client().get(url).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert!(answer.text().await.unwrap().contains("expired"));
}

#[tokio::test]
async fn an_old_server_knows_the_old_path_and_speaks_camel_case() {
    let (server, _file) = server_with(b"video").await;
    server.be_old(true);
    assert_eq!(ask(&server, INFO).await.status(), StatusCode::NOT_FOUND);
    let answer = ask(&server, "/auth/recording/recordingInfo").await.text().await.unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["recordingInfo"]["recordId"], RECORD_ID);
    assert_eq!(answer.get("status_code"), None);
}

#[tokio::test]
async fn a_script_is_played_fault_by_fault() {
    let (server, _file) = server_with(b"video").await;
    server.script(
        Endpoint::Info,
        [
            Fault::too_many_requests(Duration::from_secs(7)),
            Fault::NotFound,
            Fault::None,
            Fault::Html,
            Fault::Unauthorized,
            Fault::status(502),
        ],
    );
    let limited = ask(&server, INFO).await;
    assert_eq!((limited.status().as_u16(), &limited.headers()["retry-after"]), (429, &"7".parse().unwrap()));
    assert!(ask(&server, INFO).await.text().await.unwrap().contains("recording not found"));
    assert!(ask(&server, INFO).await.text().await.unwrap().contains("recording_info"));
    let page = ask(&server, INFO).await;
    assert_eq!(
        (page.status().as_u16(), &page.headers()["content-type"]),
        (200, &"text/html; charset=utf-8".parse().unwrap())
    );
    assert_eq!(ask(&server, INFO).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(ask(&server, INFO).await.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(ask(&server, INFO).await.status(), StatusCode::OK);
    assert_eq!(server.count(Endpoint::Info), 7);
    assert_eq!(server.requests()[1].fault, Fault::NotFound);

    server.script(Endpoint::Info, [Fault::Disconnect]);
    let body = json!({"record_id": RECORD_ID}).to_string();
    assert!(request(&server, INFO, &body).send().await.is_err());
}

#[tokio::test]
async fn a_download_breaks_in_every_way_it_is_told_to() {
    let bytes = vec![7; 600_000];
    let (server, _file) = server_with(&bytes).await;

    server.script(Endpoint::Download, [Fault::CutOff { after_bytes: 300_000 }]);
    let mut answer = download(&server).await;
    assert_eq!(answer.headers()[CONTENT_LENGTH], "600000");
    let mut length = 0;
    let error = loop {
        match answer.chunk().await {
            Ok(Some(chunk)) => length += chunk.len(),
            Ok(None) => panic!("the whole body came"),
            Err(error) => break error,
        }
    };
    assert!(length > 0 && length <= 300_000, "{length}: {error}");

    server.script(Endpoint::Download, [Fault::WrongLength { announced: 1000 }]);
    assert_eq!(download(&server).await.bytes().await.unwrap().len(), 1000);
    server.script(Endpoint::Download, [Fault::WrongLength { announced: 600_001 }]);
    assert!(download(&server).await.bytes().await.is_err());

    server.script(Endpoint::Download, [Fault::Unauthorized, Fault::NotFound]);
    assert_eq!(download(&server).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(download(&server).await.status(), StatusCode::NOT_FOUND);

    server.script(Endpoint::Download, [Fault::Redirect, Fault::RedirectTo("file:///etc/passwd".into())]);
    let redirect = download(&server).await;
    assert_eq!(redirect.status(), StatusCode::TEMPORARY_REDIRECT);
    let storage = redirect.headers()["location"].to_str().unwrap().to_owned();
    assert_eq!(client().get(storage).send().await.unwrap().bytes().await.unwrap(), bytes);
    assert_eq!(download(&server).await.headers()["location"], "file:///etc/passwd");

    server.script(Endpoint::Download, [Fault::Slow { bytes_per_second: 1_200_000 }]);
    let begun = Instant::now();
    assert_eq!(download(&server).await.bytes().await.unwrap(), bytes);
    assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
}

fn webhook() -> webhook::Webhook {
    let room = Room {
        room_id: "r".into(),
        sid: "S".into(),
        title: "T".into(),
        parent_room_id: None,
        created_at: at(1_800_000_000),
    };
    room.webhook(Happening::RoomStarted, at(1_800_000_000))
}

/// A receiver of webhooks that answers each with the next of `answers` and closes nothing; the connections it had and
/// the bodies that came.
async fn receiver(answers: Vec<&'static str>) -> (Url, JoinHandle<(usize, Vec<Vec<u8>>)>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = Url::parse(&format!("http://{}/hook", listener.local_addr().unwrap())).unwrap();
    let receiving = tokio::spawn(async move {
        let (mut connections, mut bodies) = (0, Vec::new());
        let mut answers = answers.into_iter().peekable();
        while answers.peek().is_some() {
            let (mut stream, _) = listener.accept().await.unwrap();
            connections += 1;
            while let Some(body) = read_request(&mut stream).await {
                bodies.push(body);
                stream.write_all(answers.next().unwrap().as_bytes()).await.unwrap();
                if answers.peek().is_none() {
                    break;
                }
            }
        }
        (connections, bodies)
    });
    (url, receiving)
}

/// The body of the next request; `None` where the sender has closed the connection.
async fn read_request(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let (_, length) = head.split_once("content-length: ").unwrap();
    let mut body = vec![0; length.split_once('\r').unwrap().0.parse().unwrap()];
    stream.read_exact(&mut body).await.ok()?;
    Some(body)
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const LATER: &str = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n";
const NOT_IMPLEMENTED: &str = "HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\n\r\n";
const FORBIDDEN: &str = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n";

#[tokio::test]
async fn a_sender_has_the_habits_of_the_real_one() {
    let server = StandIn::start(KEY, &secret()).await.unwrap();
    let (url, receiving) = receiver(vec![OK, LATER, OK, LATER, LATER, LATER, NOT_IMPLEMENTED, FORBIDDEN]).await;
    let mut sender = server.sender(url).unwrap();
    for (attempts, status) in [(1, 200), (2, 200), (3, 503), (1, 501), (1, 403)] {
        let sent = sender.send(&webhook()).await;
        assert_eq!((sent.attempts, sent.answer.as_ref().unwrap().as_u16()), (attempts, status));
        assert_eq!(sent.is_accepted(), status == 200);
    }
    let (connections, bodies) = receiving.await.unwrap();
    assert_eq!((connections, bodies.len()), (1, 8));
    assert_eq!(bodies[1], bodies[2], "what is sent again is the same bytes");
}

#[tokio::test]
async fn a_sender_gives_up_after_three_seconds_without_a_receiver() {
    let server = StandIn::start(KEY, &secret()).await.unwrap();
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    let mut sender = server.sender(Url::parse(&format!("http://{nobody}/")).unwrap()).unwrap();
    let begun = Instant::now();
    let sent = sender.send(&webhook()).await;
    assert_eq!(sent.attempts, 3);
    assert!(sent.answer.unwrap_err().contains("refused"));
    assert!((3..5).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}
