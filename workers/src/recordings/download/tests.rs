use super::*;
use crate::recordings::tests::Server;
use rollcall_ops::standin::{Endpoint, Fault};

/// As many tries as in earnest, and shorter waits.
fn demands() -> Demands {
    let patience = vec![Duration::from_millis(1); PATIENCE.len()];
    Demands { patience, ..Demands::of(&config::Recordings::default()) }
}

fn room() -> Room {
    Room::new(vec![std::env::temp_dir()], 0)
}

/// Something to download that is no text and longer than a buffer.
fn film() -> Vec<u8> {
    (0_u32..300_000).flat_map(u32::to_be_bytes).collect()
}

async fn fetched(server: &Server) -> (Result<Fetched, Failure>, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("film");
    let fetched = fetch(&server.client(), "r-1", &path, &room(), &demands()).await;
    (fetched, std::fs::read(path).unwrap())
}

#[tokio::test]
async fn a_file_arrives_as_it_is_with_its_size_and_hash() {
    let server = Server::with(&film()).await;
    let (result, file) = fetched(&server).await;
    let expected = Fetched { size: film().len() as u64, sha256: hex::encode(Sha256::digest(film())) };
    assert_eq!(result.unwrap(), expected);
    assert!(file == film());
}

#[tokio::test]
async fn a_broken_download_is_continued_where_the_server_can() {
    let server = Server::with(&film()).await;
    server.stand_in.honour_range(true);
    let faults = [Fault::CutOff { after_bytes: 500_000 }, Fault::CutOff { after_bytes: 400_000 }];
    server.stand_in.script(Endpoint::Download, faults);
    let (result, file) = fetched(&server).await;
    assert_eq!(result.unwrap().sha256, hex::encode(Sha256::digest(film())));
    assert!(file == film());
    // A token of its own for every request.
    let count = |endpoint| server.stand_in.count(endpoint);
    assert_eq!((count(Endpoint::Download), count(Endpoint::DownloadToken)), (3, 3));
}

#[tokio::test]
async fn a_download_that_cannot_be_had_whole_has_failed_for_now() {
    let film = film();
    let cut_off = |after_bytes, times| vec![Fault::CutOff { after_bytes }; times];
    let cases: [(&[u8], Vec<Fault>, usize, &str); 6] = [
        (&film, cut_off(9, 1), 2, "does not give the rest alone"),
        (&film, cut_off(0, 5), 5, "cut off after 0 of 1200000 bytes"),
        (b"", vec![], 1, "the file is empty"),
        (&film, vec![Fault::Html], 1, "a page or a message"),
        (b"\n {\"status\":false}", vec![], 1, "a page or a message"),
        (&film, vec![Fault::Unauthorized], 1, "asking for the file"),
    ];
    for (recording, faults, times, words) in cases {
        let server = Server::with(recording).await;
        server.stand_in.script(Endpoint::Download, faults);
        let failure = fetched(&server).await.0.unwrap_err();
        assert!(matches!(failure, Failure::Transient(_)) && failure.to_string().contains(words), "{words}: {failure}");
        assert_eq!(server.stand_in.count(Endpoint::Download), times, "{words}");
    }
}

#[tokio::test]
async fn a_file_that_the_server_gives_no_version_of_is_not_continued() {
    let server = Server::with(&film()).await;
    server.stand_in.honour_range(true);
    server.stand_in.name_versions(false);
    server.stand_in.script(Endpoint::Download, [Fault::CutOff { after_bytes: 9 }]);
    let failure = fetched(&server).await.0.unwrap_err();
    assert!(matches!(failure, Failure::Transient(_)) && failure.to_string().contains("of 1200000 bytes"), "{failure}");
    assert_eq!(server.stand_in.count(Endpoint::Download), 1);
}

#[tokio::test]
async fn a_server_that_names_a_time_is_asked_again_then() {
    let server = Server::with(&film()).await;
    server.stand_in.script(Endpoint::Download, vec![Fault::too_many_requests(Duration::ZERO); 2]);
    assert_eq!(fetched(&server).await.0.unwrap().size, film().len() as u64);
    assert_eq!(server.stand_in.count(Endpoint::Download), 3);
}

#[tokio::test]
async fn a_file_that_is_gone_is_gone() {
    let server = Server::with(&film()).await;
    server.stand_in.script(Endpoint::Download, [Fault::NotFound]);
    let folder = tempfile::tempdir().unwrap();
    let failure = fetch(&server.client(), "r-1", &folder.path().join("film"), &room(), &demands()).await.unwrap_err();
    assert!(matches!(failure, Failure::Permanent(_)), "{failure}");
}

#[tokio::test]
async fn a_disk_that_refuses_is_this_machines_trouble() {
    let server = Server::with(&film()).await;
    let failure = fetch(&server.client(), "r-1", Path::new("/nowhere/film"), &room(), &demands()).await.unwrap_err();
    assert!(matches!(failure, Failure::Transient(_)) && failure.to_string().contains("/nowhere/film"), "{failure}");
}

#[tokio::test]
async fn a_server_that_gives_a_byte_for_a_connection_is_given_up() {
    let server = Server::with(&film()).await;
    server.stand_in.honour_range(true);
    server.stand_in.script(Endpoint::Download, vec![Fault::CutOff { after_bytes: 1 }; 3000]);
    let folder = tempfile::tempdir().unwrap();
    let settings = config::Recordings { read_timeout: Duration::from_millis(200), ..config::Recordings::default() };
    let demands = Demands { min_rate: MinRate::of(&settings), ..demands() };
    let failure = fetch(&server.client(), "r-1", &folder.path().join("film"), &room(), &demands).await.unwrap_err();
    assert!(matches!(failure, Failure::Transient(_)), "{failure}");
    assert_eq!(failure.cause(), "plugnmeet-slow", "{failure}");
}
