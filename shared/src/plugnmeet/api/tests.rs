use std::collections::HashMap;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::signature::Scheme;

const SECRET: &str = "hunter2";
const TOKEN: &str = "eyJ.token/with?signs";
const RECORD_ID: &str = "bf939269-8471-4dc9-8f20-e27fc5887474-1795308813921";

/// Answers of a PlugNMeet server 2.4.0, as they came: status, body.
mod answers {
    pub(super) const INFO: &str = r#"{"status":true,"msg":"success","status_code":"SUCCESS","recording_info":{"record_id":"bf939269-8471-4dc9-8f20-e27fc5887474-1795308813921","room_id":"phys-9","room_sid":"bf939269-8471-4dc9-8f20-e27fc5887474","file_path":"node_01/bf939269-8471-4dc9-8f20-e27fc5887474/bf939269-8471-4dc9-8f20-e27fc5887474-1795308813921.mp4","file_size":16.41,"creation_time":"1795308819","room_creation_time":"1795308810","metadata":{"title":"Physics فیزیک","subtitles":{},"extra_data":{"meeting-created":"2026-11-22T00:53:30Z","meeting-ended":"0001-01-01T00:00:00Z","meeting-title":"Physics فیزیک"}}},"room_info":{"room_title":"Physics فیزیک","room_id":"phys-9","room_sid":"bf939269-8471-4dc9-8f20-e27fc5887474","joined_participants":"0","webhook_url":"","created":"2026-11-22 00:53:30","ended":"2026-11-22 00:53:55","analytics_file_id":"fafea8fe-ec43-49a6-8ebc-c5714f6675b9"}}"#;
    pub(super) const TOKEN: &str =
        r#"{"status":true,"msg":"success","status_code":"SUCCESS","token":"eyJ.token/with?signs"}"#;
    pub(super) const NOT_FOUND: (u16, &str) =
        (200, r#"{"status":false,"msg":"recording not found","status_code":"NOT_FOUND"}"#);
    pub(super) const MISSING_FIELD: (u16, &str) = (
        200,
        r#"{"status":false,"msg":"validation error: record_id: value is required","status_code":"INVALID_PARAMETERS"}"#,
    );
    pub(super) const BAD_JSON: (u16, &str) = (
        200,
        r#"{"status":false,"msg":"proto: syntax error (line 1:2): invalid value not","status_code":"INVALID_PARAMETERS"}"#,
    );
    pub(super) const BAD_KEY: (u16, &str) =
        (401, r#"{"status":false,"msg":"Invalid API key provided.","status_code":"INVALID_API_KEY"}"#);
    pub(super) const BAD_SIGNATURE: (u16, &str) = (
        401,
        r#"{"status":false,"msg":"Failed to verify provided authentication details.","status_code":"INVALID_TOKEN_OR_SIGNATURE"}"#,
    );
    pub(super) const NO_HEADERS: (u16, &str) =
        (401, r#"{"status":false,"msg":"Missing API-KEY header.","status_code":"MISSING_REQUIRED_PARAMETER"}"#);
    pub(super) const UNKNOWN_PATH: (u16, &str) = (404, "not found");
    pub(super) const BAD_TOKEN: (u16, &str) = (401, "go-jose/go-jose: compact JWS format must have three parts");
}

/// A request as it arrived.
#[derive(Debug)]
struct Request {
    path: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

/// A server that gives these answers, one a connection, byte for byte, and closes.
async fn serve(answers: Vec<String>) -> (Url, mpsc::UnboundedReceiver<Request>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}/meet/", listener.local_addr().unwrap())).unwrap();
    let (seen, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for answer in answers {
            let mut connection = BufReader::new(listener.accept().await.unwrap().0);
            seen.send(request(&mut connection).await).unwrap();
            connection.write_all(answer.as_bytes()).await.unwrap();
            connection.shutdown().await.unwrap();
        }
    });
    (url, requests)
}

async fn request(connection: &mut BufReader<tokio::net::TcpStream>) -> Request {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        connection.read_line(&mut line).await.unwrap();
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let headers: HashMap<_, _> = lines[1..]
        .iter()
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let mut body = vec![0; headers.get("content-length").map_or(0, |length| length.parse().unwrap())];
    connection.read_exact(&mut body).await.unwrap();
    Request { path: lines[0].split(' ').nth(1).unwrap().to_owned(), headers, body }
}

fn answer(status: u16, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} \r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n{body}", body.len())
}

fn client(url: Url) -> Client {
    client_with(url, None)
}

fn client_with(url: Url, previous_secret: Option<SecretString>) -> Client {
    let signatures = Scheme::ALL.into();
    let server =
        config::PlugNMeet { url, api_key: "key".into(), api_secret: SECRET.into(), previous_secret, signatures };
    Client::new(&server, Duration::from_secs(5), &[]).unwrap()
}

async fn whole(mut download: Download) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = download.chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

#[tokio::test]
async fn a_request_is_signed_and_its_answer_read() {
    let (url, mut requests) = serve(vec![answer(200, "", answers::INFO), answer(200, "", answers::TOKEN)]).await;
    let client = client(url);
    let info = client.recording_info(RECORD_ID).await.unwrap();
    assert_eq!(info.title.as_deref(), Some("Physics فیزیک"));
    assert_eq!(info.created_at.unwrap().timestamp(), 1_795_308_819);
    assert_eq!(client.download_token(RECORD_ID).await.unwrap().expose_secret(), TOKEN);

    for path in ["/meet/auth/recording/info", "/meet/auth/recording/getDownloadToken"] {
        let request = requests.recv().await.unwrap();
        assert_eq!(request.path, path);
        assert_eq!(request.headers["api-key"], "key");
        assert_eq!(request.headers["hash-signature"], sign_hmac(&SECRET.into(), &request.body));
        assert_eq!(request.body, format!(r#"{{"record_id":"{RECORD_ID}"}}"#).as_bytes());
    }
}

#[tokio::test]
async fn a_server_that_does_not_know_the_secret_yet_is_asked_with_the_one_before() {
    let (status, refused) = answers::BAD_SIGNATURE;
    let refused = || answer(status, "", refused);
    let (url, mut requests) = serve(vec![refused(), answer(200, "", answers::TOKEN), refused(), refused()]).await;
    let client = client_with(url, Some("hunter1".into()));
    assert_eq!(client.download_token(RECORD_ID).await.unwrap().expose_secret(), TOKEN);
    assert_eq!(client.download_token(RECORD_ID).await.unwrap_err().kind(), Kind::Transient);
    for secret in [SECRET, "hunter1", SECRET, "hunter1"] {
        let request = requests.recv().await.unwrap();
        assert_eq!(request.headers["hash-signature"], sign_hmac(&secret.into(), &request.body));
    }
}

#[tokio::test]
async fn an_older_server_is_asked_on_its_own_path_and_understood() {
    let old = r#"{"status":true,"msg":"success","recordingInfo":{"recordId":"r","fileSize":1.5,"creationTime":1795308819},"roomInfo":{"roomTitle":"Physics"}}"#;
    let (status, body) = answers::UNKNOWN_PATH;
    let (url, mut requests) = serve(vec![answer(status, "", body), answer(200, "", old)]).await;
    let info = client(url).recording_info("r").await.unwrap();
    assert_eq!(info.title.as_deref(), Some("Physics"));
    assert_eq!(info.created_at.unwrap().timestamp(), 1_795_308_819);
    assert_eq!(requests.recv().await.unwrap().path, "/meet/auth/recording/info");
    assert_eq!(requests.recv().await.unwrap().path, "/meet/auth/recording/recordingInfo");
}

#[tokio::test]
async fn every_answer_of_the_api_is_of_its_kind() {
    use Kind::{Permanent, Transient};
    for ((status, body), kind, words) in [
        (answers::NOT_FOUND, Transient, "recording not found"),
        ((200, r#"{"status":false,"msg":"recording not found"}"#), Transient, "recording not found"),
        ((200, r#"{"msg":"x","statusCode":"INTERNAL_SERVER_ERROR"}"#), Transient, "INTERNAL_SERVER_ERROR"),
        (answers::MISSING_FIELD, Permanent, "INVALID_PARAMETERS"),
        (answers::BAD_JSON, Permanent, "syntax error"),
        (answers::BAD_KEY, Transient, "Invalid API key provided."),
        (answers::BAD_SIGNATURE, Transient, "Failed to verify"),
        (answers::NO_HEADERS, Transient, "Missing API-KEY"),
        (answers::UNKNOWN_PATH, Transient, "404"),
        ((400, ""), Permanent, "400"),
        ((301, ""), Permanent, "301"),
        ((408, ""), Transient, "408"),
        ((425, ""), Transient, "425"),
        ((429, "slow down"), Transient, "429"),
        ((500, ""), Transient, "500"),
        ((502, "<html>"), Transient, "502"),
        ((200, "<html>"), Transient, "not PlugNMeet's"),
        ((200, r#"{"status":true,"token":5}"#), Transient, "not PlugNMeet's"),
    ] {
        let (url, _requests) = serve(vec![answer(status, "", body)]).await;
        let error = client(url).download_token(RECORD_ID).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{status} {body}");
        assert!(error.to_string().contains(words), "{status} {body}: {error}");
    }
}

#[tokio::test]
async fn every_answer_to_a_download_is_of_its_kind() {
    use Kind::{Permanent, Transient};
    let (status, body) = answers::BAD_TOKEN;
    for (answer, kind) in [
        (answer(status, "", body), Transient),
        (answer(403, "", "AccessDenied"), Transient),
        (answer(404, "", "not found"), Permanent),
        (answer(410, "", ""), Permanent),
        (answer(416, "", ""), Transient),
        (answer(503, "", ""), Transient),
        (answer(206, "", "x"), Transient),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhow long is it?".into(), Transient),
        (String::new(), Transient),
    ] {
        let (url, _requests) = serve(vec![answer.clone()]).await;
        let error = client(url).download(&TOKEN.into(), None).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{answer}");
    }
}

#[tokio::test]
async fn a_lost_connection_is_transient_and_tells_no_token() {
    let (url, _requests) = serve(vec!["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf".into()]).await;
    let client = client(url);
    let download = client.download(&TOKEN.into(), None).await.unwrap();
    let cut = whole(download).await.unwrap_err();
    let refused = client.download(&TOKEN.into(), None).await.unwrap_err();
    for error in [cut, refused] {
        assert_eq!(error.kind(), Kind::Transient);
        let text = format!("{error:?}");
        let text = format!("{text} {:#}", anyhow::Error::new(error));
        assert!(!text.contains("eyJ"), "{text}");
    }
}

#[tokio::test]
async fn a_redirect_is_followed_without_our_headers() {
    let (storage, mut at_storage) = serve(vec![answer(200, "", "film")]).await;
    let location = format!("Location: {storage}bucket/x.mp4?signature=s\r\n");
    let (url, mut at_server) = serve(vec![answer(307, &location, "")]).await;
    let download = client(url).download(&TOKEN.into(), None).await.unwrap();
    assert_eq!(whole(download).await.unwrap(), b"film");
    assert_eq!(at_server.recv().await.unwrap().path, "/meet/download/recording/eyJ.token%2Fwith%3Fsigns");
    let headers = at_storage.recv().await.unwrap().headers;
    let mut names: Vec<_> = headers.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "accept-encoding", "host", "user-agent"]);
}

#[tokio::test]
async fn the_rest_of_a_file_is_asked_for_and_told_from_the_whole() {
    let part = answer(206, "Content-Range: bytes 2-3/4\r\n", "lm");
    let (url, mut requests) =
        serve(vec![answer(200, "ETag: \"v1\"\r\n", "film"), part, answer(200, "ETag: W/\"v1\"\r\n", "film")]).await;
    let client = client(url);
    let first = client.download(&TOKEN.into(), None).await.unwrap();
    assert_eq!((first.start, first.length), (0, Some(4)));
    let rest = Rest { from: 2, of: first.version.unwrap() };
    let second = client.download(&TOKEN.into(), Some(&rest)).await.unwrap();
    assert_eq!((second.start, second.length), (2, Some(4)));
    assert_eq!(whole(second).await.unwrap(), b"lm");
    let third = client.download(&TOKEN.into(), Some(&rest)).await.unwrap();
    assert_eq!((third.start, third.length, third.version), (0, Some(4), None));

    requests.recv().await.unwrap();
    let headers = requests.recv().await.unwrap().headers;
    assert_eq!((headers["range"].as_str(), headers["if-range"].as_str()), ("bytes=2-", "\"v1\""));
}

#[test]
fn a_server_that_wants_to_be_left_alone_says_for_how_long() {
    let now = DateTime::from_timestamp(1_795_308_930, 0).unwrap();
    for (text, expected) in [
        ("7", Some(7)),
        ("Sun, 22 Nov 2026 00:56:00 GMT", Some(30)),
        ("Sun, 22 Nov 2026 00:00:00 GMT", Some(0)),
        ("soon", None),
    ] {
        assert_eq!(wait(&HeaderValue::from_static(text), now), expected.map(Duration::from_secs), "{text}");
    }
}

#[test]
fn a_clock_is_compared_with_what_the_round_trip_took() {
    let at = |milliseconds| DateTime::from_timestamp_millis(milliseconds).unwrap();
    let date = HeaderValue::from_static("Tue, 24 Nov 2026 06:38:14 GMT");
    let sent = 1_795_502_294_000;
    let clock = |asked, answered| {
        let clock = Clock::of(&date, at(sent + asked), at(sent + answered)).unwrap();
        (clock.at_least.num_milliseconds(), clock.at_most.num_milliseconds())
    };
    // The same clock, and the answer took a second; one that is ten minutes ahead; one that is a minute behind.
    assert_eq!(clock(300, 1300), (-1300, 700));
    assert_eq!(clock(-600_000, -599_000), (599_000, 601_000));
    assert_eq!(clock(60_500, 60_600), (-60_600, -59_500));
    assert_eq!(Clock::of(&HeaderValue::from_static("today"), at(sent), at(sent)), None);
}
