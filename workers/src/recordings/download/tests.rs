use super::*;
use crate::recordings::stand_in::{Reply, StandIn, api, head, http};

/// As many as in earnest, and shorter.
const PATIENCE: [Duration; 4] = [Duration::from_millis(1); 4];
const VERSION: &str = "ETag: \"v1\"\r\n";

/// Something to download that is no text and longer than a buffer.
fn film() -> Vec<u8> {
    (0_u32..300_000).flat_map(u32::to_be_bytes).collect()
}

async fn fetched(server: &StandIn) -> (Result<Fetched, Failure>, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("film");
    let fetched = fetch(&server.client(), "r-1", &path, &PATIENCE).await;
    (fetched, std::fs::read(path).unwrap())
}

fn cut(status: u16, headers: &str, sent: &[u8], length: usize) -> Reply {
    Reply::Bytes([head(status, headers, length).as_slice(), sent].concat())
}

#[tokio::test]
async fn a_file_arrives_as_it_is_with_its_size_and_hash() {
    let server = StandIn::start(|request| api(request).unwrap_or_else(|| http(200, "", &film()))).await;
    let (result, file) = fetched(&server).await;
    let expected = Fetched { size: film().len() as u64, sha256: hex::encode(Sha256::digest(film())) };
    assert_eq!(result.unwrap(), expected);
    assert!(file == film());
}

#[tokio::test]
async fn a_broken_download_is_continued_where_the_server_can() {
    let server = StandIn::start(|request| {
        api(request).unwrap_or_else(|| {
            let (film, from) =
                (film(), request.headers.get("range").map(|range| range[6..range.len() - 1].parse().unwrap()));
            match from {
                None => cut(200, VERSION, &film[..500_000], film.len()),
                Some(from) => {
                    assert_eq!(request.headers["if-range"], "\"v1\"");
                    let headers = format!("Content-Range: bytes {from}-{}/{}\r\n", film.len() - 1, film.len());
                    let end = film.len().min(from + 400_000);
                    cut(206, &headers, &film[from..end], film.len() - from)
                }
            }
        })
    })
    .await;
    let (result, file) = fetched(&server).await;
    assert_eq!(result.unwrap().sha256, hex::encode(Sha256::digest(film())));
    assert!(file == film());
    // A token of its own for every request.
    assert_eq!((server.asked("/download/"), server.asked("getDownloadToken")), (3, 3));
}

#[tokio::test]
async fn a_download_that_cannot_be_had_whole_has_failed_for_now() {
    type Answer = fn() -> Reply;
    let cases: [(Answer, usize, &str); 7] = [
        (|| cut(200, "", &film()[..9], film().len()), 1, "cut off after 9 of 1200000 bytes"),
        (|| cut(200, VERSION, &film()[..9], film().len()), 2, "does not give the rest alone"),
        (|| cut(200, VERSION, &[], film().len()), 5, "cut off after 0 of"),
        (|| http(200, "", b""), 1, "the file is empty"),
        (|| http(200, "", b"\n <!DOCTYPE html><title>Back soon"), 1, "a page or a message"),
        (|| http(200, "", br#"{"status":false}"#), 1, "a page or a message"),
        (|| http(401, "", b"token is expired"), 1, "asking for the file"),
    ];
    for (answer, times, words) in cases {
        let server = StandIn::start(move |request| api(request).unwrap_or_else(answer)).await;
        let failure = fetched(&server).await.0.unwrap_err();
        assert!(matches!(failure, Failure::Transient(_)) && failure.to_string().contains(words), "{words}: {failure}");
        assert_eq!(server.asked("/download/"), times, "{words}");
    }
}

#[tokio::test]
async fn a_server_that_names_a_time_is_asked_again_then() {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let server = StandIn::start(move |request| {
        let limited =
            request.path.contains("/download/") && asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2;
        let busy = || http(429, "Retry-After: 0\r\n", b"");
        if limited { busy() } else { api(request).unwrap_or_else(|| http(200, "", &film())) }
    })
    .await;
    assert_eq!(fetched(&server).await.0.unwrap().size, film().len() as u64);
    assert_eq!(server.asked("/download/"), 3);
}

#[tokio::test]
async fn a_file_that_is_gone_is_gone() {
    let server = StandIn::start(|request| api(request).unwrap_or_else(|| http(404, "", b"not found"))).await;
    let folder = tempfile::tempdir().unwrap();
    let failure = fetch(&server.client(), "r-1", &folder.path().join("film"), &PATIENCE).await.unwrap_err();
    assert!(matches!(failure, Failure::Permanent(_)), "{failure}");
}

#[tokio::test]
async fn a_disk_that_refuses_is_this_machines_trouble() {
    let server = StandIn::start(|request| api(request).unwrap_or_else(|| http(200, "", &film()))).await;
    let failure = fetch(&server.client(), "r-1", Path::new("/nowhere/film"), &PATIENCE).await.unwrap_err();
    assert!(matches!(failure, Failure::Transient(_)) && failure.to_string().contains("/nowhere/film"), "{failure}");
}
