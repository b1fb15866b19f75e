//! Settings as they are written, and what is said of wrong ones.

use super::*;

fn load(toml: &str) -> Result<Settings, ConfigError> {
    let file = config::File::from_str(toml, config::FileFormat::Toml);
    Settings::read(config::Config::builder().add_source(file).build()?)
}

fn twins() -> String {
    let server = |name| format!("[plugnmeet.{name}]\nurl='http://x'\napi_key='k'\napi_secret='hunter2'\n");
    server("a") + &server("b")
}

fn server(settings: &str) -> String {
    format!("{QUEUE}[plugnmeet.a]\nurl='http://x'\napi_key='k'\n{settings}")
}

const QUEUE: &str = "queue.url = 'amqp://user:hunter2@broker/%2f'\n";

#[test]
fn little_needs_to_be_said() {
    let settings = load(&format!(
        "{QUEUE}[plugnmeet.main]\nurl='https://meet.example.org'\napi_key='k'\napi_secret='s'\nprevious_secret='p'"
    ))
    .unwrap();
    assert_eq!(settings.queue.prefix, "rollcall");
    assert_eq!(settings.ingress.max_body_bytes, 1_048_576);
    let keys = settings.server_keys();
    assert_eq!((keys[0].source.as_str(), keys[0].secrets.len()), ("main", 2));
}

#[test]
fn a_wrong_setting_is_named_and_no_secret_is_told() {
    for (toml, expected) in [
        ("queue.url = 'redis://u:hunter2@h'", "setting queue.url is \"redis://u:***@h\": it is sqlite://"),
        ("queue.url = 'guest:hunter2@h:5672'", "setting queue.url is \"***\": it is sqlite://"),
        ("queue.url = 'amqp:guest:hunter2@h'", "setting queue.url is \"***\": it is sqlite://"),
        ("queue.url = 'amqp://u:hunter#2@h'", "%23"),
        ("queue.url = amqp://u:hunter2@h", "line 1"),
        (&format!("{QUEUE}plugnmeet.a.api_secret = \"hunter2"), "line 2"),
        (&format!("{QUEUE}[plugnmeet]\napi_secret = 'hunter2'"), "setting plugnmeet.api_secret: expected"),
        (&format!("{QUEUE}database.url = 'rollcall:hunter2@h/d'"), "setting database.url is \"***\""),
        (&format!("{QUEUE}database.url = 'postgres:u:hunter2@h/d'"), "setting database.url is \"***\""),
        ("queue.url = 'hunter2'", "not a URL"),
        (&format!("{QUEUE}queue.prefix = 'a.b'"), "setting queue.prefix is \"a.b\""),
        (
            &format!("{QUEUE}queue.management_url = 'amqp://u:hunter2@h'"),
            "setting queue.management_url is \"amqp://u:***@h\": it is where",
        ),
        (&format!("{QUEUE}queue.management_url = 'u:hunter2@h:15672'"), "setting queue.management_url is \"***\""),
        (&format!("{QUEUE}storage.url = 's3://b'"), "setting storage.url is \"s3://b\""),
        (&format!("{QUEUE}database.url = 'mysql://u:hunter2@h/d'"), "mysql://u:***@h/d"),
        (&format!("{QUEUE}ingress.adress = 'x'"), "adress"),
        (&format!("{QUEUE}ingress.address = 'x'"), "ingress.address"),
        (&format!("{QUEUE}ingress.confirm_timeout = 'soon'"), "confirm_timeout"),
        (&format!("{QUEUE}ingress.paths = ['x']"), "setting ingress.paths is \"x\""),
        (&format!("{QUEUE}ingress.paths = []"), "setting ingress.paths is \"empty\""),
        (&format!("{QUEUE}ingress.max_connections = 0"), "setting ingress.max_connections is \"0\""),
        (&format!("{QUEUE}{}", twins()), "setting plugnmeet.b.api_secret is \"that of another server"),
        (&format!("{QUEUE}workers.batch_size = 0"), "setting workers.batch_size is \"0\": it is from 1"),
        (&format!("{QUEUE}attendance.retry = []"), "one or more delays"),
        (&format!("{QUEUE}attendance.retry = ['999us']"), "setting attendance.retry: \"999us\" is no delay"),
        (&format!("{QUEUE}rooms.retry = '1s, 32days'"), "it is from 1ms to 31days"),
        (&format!("{QUEUE}rooms.retry = '1s, soon'"), "setting rooms.retry: \"soon\" is no delay such as"),
        (&format!("{QUEUE}ingress.address = 8081"), "setting ingress.address: \"8081\" is no IP address with a port"),
        (&format!("{QUEUE}ingress.admin_address = ':8081'"), "such as \"0.0.0.0:8080\""),
        (&format!("{QUEUE}workers.admin_address = 'x'"), "setting workers.admin_address: \"x\" is no IP"),
        (
            &format!("{QUEUE}storage.url = '/srv'"),
            "setting storage.url: not a URL (relative URL without a base): it is",
        ),
        (&format!("{QUEUE}storage.url = 'hunter2'"), "file:///var/lib/rollcall/media"),
        (&format!("{QUEUE}ingress.max_body_bytes = 0"), "setting ingress.max_body_bytes is \"0\": it is from 16384"),
        (&format!("{QUEUE}ingress.max_body_bytes = 16777217"), "to 16777216"),
        (&format!("{QUEUE}workers.batch_wait = '2s'"), "setting workers.batch_wait is \"2s\": it is 1s at most"),
        (&format!("{QUEUE}recordings.read_timeout = '0s'"), "setting recordings.read_timeout is \"0s\": it is from 1s"),
        (&format!("{QUEUE}recordings.ffmpeg_timeout = '2h'"), "setting recordings.ffmpeg_timeout is \"2h\": it is"),
        (&format!("{QUEUE}recordings.max_bytes = 0"), "setting recordings.max_bytes is \"0\": it is 1 or more"),
        (&format!("{QUEUE}sessions.unknown = 'drop'"), "reject"),
        (&format!("{QUEUE}attendance.keep = '12h'"), "setting attendance.keep is \"12h\": it is from 1day"),
        (&format!("{QUEUE}dead_letters.keep_dead = ''"), "dead_letters.keep_dead"),
        ("queue.url = 'amqp://user:@h'", "setting queue.url (its password) is \"empty\""),
        ("queue.url = 'amqp://user:changeme@a,b'", "setting queue.url (its password) is \"a placeholder\""),
        ("queue.url = 'sqlite://:memory:'", "setting queue.url: not a URL"),
        ("queue.url = 'sqlite://file:queue.db'", "setting queue.url: not a URL"),
        (&format!("{QUEUE}database.url = 'postgres://user:@h/d'"), "setting database.url (its password) is"),
        (&format!("{QUEUE}queue.management_url = ''"), "setting queue.management_url: not a URL"),
        (&format!("{QUEUE}storage.url = 'file://'"), "setting storage.url is"),
        (&format!("{QUEUE}ingress.spool.path = ''"), "setting ingress.spool.path is"),
        (&format!("{QUEUE}ingress.spool.path = ':memory:'"), "setting ingress.spool.path is"),
        (&format!("{QUEUE}recordings.work_dir = ''"), "setting recordings.work_dir is \"empty\""),
        (&format!("{QUEUE}log.filter = ' '"), "setting log.filter is"),
        (&server("api_secret='hunter2'\nprevious_secret=''"), "setting plugnmeet.a.previous_secret is \"empty\""),
        (&server("api_secret='hunter2'\nprevious_secret='  '"), "setting plugnmeet.a.previous_secret is \"nothing"),
        (&server("api_secret='hunter2'\nsignatures=[]"), "setting plugnmeet.a.signatures is \"empty\""),
        (
            &server("api_secret='hunter2'\nsignatures='token,none'"),
            "setting plugnmeet.a.signatures: \"none\" is neither",
        ),
        (&server("api_secret_file=''"), "setting plugnmeet.a.api_secret_file is \"empty\""),
        (&server("api_secret_file='/nowhere'"), "setting plugnmeet.a.api_secret_file: /nowhere cannot be read"),
        (
            &server("api_secret='hunter2'\napi_secret_file='/f'"),
            "setting plugnmeet.a.api_secret_file is \"/f\": either",
        ),
        ("queue.prefix_file = '/f'", "prefix_file"),
        (&format!("{QUEUE}[plugnmeet.\"A.b\"]\nurl='http://x'\napi_key='k'\napi_secret='hunter2'"), "A.b"),
        (&format!("{QUEUE}[plugnmeet.a]\nurl='ftp://u:hunter2@x'\napi_key='k'\napi_secret='s'"), "plugnmeet.a.url"),
        (
            &format!("{QUEUE}[plugnmeet.a]\nurl='http://x'\napi_key='k'\napi_secret=''"),
            "setting plugnmeet.a.api_secret is \"empty\": it is",
        ),
        (&format!("{QUEUE}[plugnmeet.a]\nurl='http://x'\napi_key='k'\napi_secret='hunter2'\nsecret=''"), "secret"),
    ] {
        let error = load(toml).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains(expected), "{toml}: {text}");
        assert!(!text.contains("hunter2"), "{toml}: {text}");
    }
}

#[test]
fn the_url_of_a_cluster_names_several_hosts() {
    let url = SecretUrl::parse("amqps://user:hunter,2@a.example:5673,[::1],c:1/%2fvhost?heartbeat=5").unwrap();
    let of = |host| format!("amqps://user:hunter,2@{host}/%2fvhost?heartbeat=5");
    assert_eq!(url.each_host(), ["a.example:5673", "[::1]", "c:1"].map(of));
    assert_eq!(url.to_string(), "amqps://user:***@a.example:5673,[::1],c:1/%2fvhost");
    assert_eq!(SecretUrl::parse("amqp://a,b").unwrap().to_string(), "amqp://a,b");
    let one = SecretUrl::parse("amqp://user:hunter,2@a/%2f").unwrap();
    assert_eq!(
        (one.to_string(), one.each_host()),
        ("amqp://user:***@a/%2f".into(), vec!["amqp://user:hunter,2@a/%2f".into()])
    );
    for wrong in ["amqp://user:hunter2@a:5672,b:port/%2f", "amqp://user:hunter2@a,/%2f", "amqp://user:hunter2@,a/%2f"] {
        let error = load(&format!("queue.url = '{wrong}'")).unwrap_err().to_string();
        assert!(error.contains("queue.url") && !error.contains("hunter2"), "{error}");
    }
    // A comma is no host's elsewhere.
    let file = SecretUrl::parse("sqlite://data/a,b.db").unwrap();
    assert_eq!((file.each_host().len(), file.sqlite_path()), (1, Some("data/a,b.db".into())));
}

#[test]
fn a_variable_that_lacks_an_underscore_is_named() {
    let check = |names: &[&str]| check_names(names.iter().map(|&name| name.to_owned()));
    check(&["PATH", "ROLLCALL__QUEUE__URL", "ROLLCALL_DEV", "ROLLCALL_TEST_AMQP_URL", "ROLLCALL_API_SECRET"]).unwrap();
    let error = check(&["ROLLCALL_DEV", "ROLLCALL_QUEUE__URL"]).unwrap_err().to_string();
    assert_eq!(error, "the environment variable ROLLCALL_QUEUE__URL sets nothing: it is spelt ROLLCALL__QUEUE__URL");
}

#[test]
fn a_retry_schedule_is_a_list_or_one_string() {
    let delays = |toml: &str| load(&format!("{QUEUE}{toml}")).unwrap().rooms.retry.delays().to_vec();
    let expected = vec![Duration::from_millis(500), Duration::from_secs(2)];
    assert_eq!(delays("rooms.retry = ['2s', '500ms', '2s']"), expected);
    assert_eq!(delays("rooms.retry = '500ms, 2s'"), expected);
}

#[test]
fn settings_print_without_their_secrets() {
    let settings = load(&format!(
        "{QUEUE}queue.management_url = 'http://u:hunter2@h:15672'\n\
         [plugnmeet.main]\nurl='https://x'\napi_key='k'\napi_secret='hunter2'\nprevious_secret='hunter2'"
    ))
    .unwrap();
    assert!(!format!("{settings:?}").contains("hunter2"));
}
