use super::*;

const HASH: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn day() -> DateTime<Utc> {
    DateTime::from_timestamp(1_795_308_819, 0).unwrap()
}

fn settings(root: &Path, work: Option<&Path>) -> Settings {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    let work = work.map(|work| format!("recordings.work_dir = '{}'", work.display())).unwrap_or_default();
    let url = url::Url::from_directory_path(root).unwrap();
    std::io::Write::write_all(
        &mut file,
        format!("queue.url = 'amqp://localhost'\nstorage.url = '{url}'\n{work}").as_bytes(),
    )
    .unwrap();
    Settings::load(Some(file.path())).unwrap()
}

#[test]
fn a_key_is_ours_and_says_which_content() {
    assert_eq!(key("main", day(), 7, HASH), "main/2026/11/7-9f86d081884c7d65");
}

#[test]
fn a_file_name_is_for_people_and_safe_everywhere() {
    for (title, record_id, expected) in [
        (Some("Physics فیزیک"), "bf93-179", "Physics فیزیک 2026-11-22 bf93-179.mp4"),
        (Some("می\u{200c}شود"), "r", "می\u{200c}شود 2026-11-22 r.mp4"),
        (None, "r_1", "2026-11-22 r_1.mp4"),
        (Some("../../etc/passwd"), "../r", "etc passwd 2026-11-22 r.mp4"),
        (Some("-rf \"a\"\n\0b*"), "", "rf a b 2026-11-22.mp4"),
        (Some("gpj.\u{202e}exe"), "r", "gpj.exe 2026-11-22 r.mp4"),
        (Some("..."), "r", "2026-11-22 r.mp4"),
    ] {
        assert_eq!(file_name(title, day(), record_id, "mp4"), expected);
    }
    let long = file_name(Some(&"فیزیک".repeat(100)), day(), &"r".repeat(500), "webm");
    assert!(long.len() <= 255 && long.ends_with("r.webm"), "{long}");
}

#[test]
fn only_our_own_files_are_swept() {
    let holder = uuid::Uuid::new_v4().to_string();
    for name in [format!("7.{holder}.part"), format!("7.{holder}.jpg")] {
        assert_eq!(holder_of(&name), Some(holder.as_str()), "{name}");
    }
    for name in ["7.part".into(), format!("x.{holder}.part"), format!("7.{holder}.part.bak"), "notes.of.mine".into()] {
        assert_eq!(holder_of(&name), None, "{name}");
    }
}

#[tokio::test]
async fn a_published_file_is_under_its_key_and_nowhere_else() {
    let (root, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for work in [None, Some(elsewhere.path())] {
        let archive = Archive::open(&settings(root.path(), work)).unwrap();
        assert_eq!(archive.is_inside(), work.is_none());
        let file = WorkFile { path: archive.work.join("7.x.part"), name: "7.x.part".into() };
        for content in ["film", "the same key again"] {
            fs::write(&file.path, content).unwrap();
            archive.publish(&file, "main/2026/11/7-9f.mp4").await.unwrap();
            assert_eq!(fs::read_to_string(root.path().join("main/2026/11/7-9f.mp4")).unwrap(), content);
        }
        drop(file);
        for folder in [&archive.own, &archive.work] {
            assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
        }
    }
}
