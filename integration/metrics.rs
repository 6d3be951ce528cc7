//! What a running server shows of itself: measurements and alarms.

mod told;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ekm::client::ClientError;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::door::{House, PATIENCE, Serving, say};
use crate::hardship::SmallDisk;
use crate::support::wait_for;

/// Opens the door for measurements.
pub(crate) const DOOR: &str = "[metrics]\nlisten = \"127.0.0.1:0\"";

/// Where the server says that its metrics are.
pub(crate) fn address(serving: &Serving) -> String {
    serving.says("metrics are at http://", 1);
    let log = serving.log();
    let (_, rest) = log.split_once("metrics are at http://").unwrap();
    rest.split_once("/metrics").unwrap().0.to_owned()
}

/// Asks for a path over plain HTTP: head and body.
async fn fetch(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: ekm\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.to_ascii_lowercase(), body.to_owned())
}

/// A page's values by name and labels, as written. Whatever is not in the text
/// format (Prometheus, "Exposition formats") fails here.
pub(crate) async fn scrape(address: &str) -> BTreeMap<String, f64> {
    let (head, body) = fetch(address, "/metrics").await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    let mut kinds = BTreeMap::new();
    let mut values = BTreeMap::new();
    for line in body.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(kinds.insert(name, kind).is_none(), "{name} twice");
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let family = name.split('{').next().unwrap();
            let known = ["", "_bucket", "_sum", "_count"].iter().any(|end| {
                let bare = family.strip_suffix(end);
                bare.is_some_and(|bare| {
                    kinds
                        .get(bare)
                        .is_some_and(|kind| end.is_empty() || *kind == "histogram")
                })
            });
            assert!(known, "{family} has no type before it");
            let value: f64 = value.parse().unwrap();
            assert!(
                values.insert(name.to_owned(), value).is_none(),
                "{name} twice"
            );
        }
    }
    assert!(!values.is_empty());
    values
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_served_and_refused_moves_the_measurements() {
    let house = House::new("", DOOR);
    let (known, unknown) = (house.drive(1), house.unknown_drive(2));
    let serving = house.serve().await;
    let address = address(&serving);
    let before = scrape(&address).await;

    let mut client = house.client_of(&serving, &known.identity);
    let request = known.create();
    for _ in 0..3 {
        client.create(&known.create()).await.unwrap();
    }
    client.challenge().await.unwrap();
    let mut stranger = house.client_of(&serving, &unknown.identity);
    let refused = stranger.create(&unknown.create()).await.unwrap_err();
    assert!(matches!(refused, ClientError::Refused(_)), "{refused}");

    let after = scrape(&address).await;
    let moved = |name: &str| {
        let now = after.get(name).copied();
        let now = now.unwrap_or_else(|| panic!("no {name} in {after:#?}"));
        now - before.get(name).copied().unwrap_or_default()
    };
    let counted = [
        (r#"ekm_requests_total{verb="create",code="ok"}"#, 3.0),
        (r#"ekm_requests_total{verb="create",code="EF01"}"#, 1.0),
        (r#"ekm_requests_total{verb="challenge",code="ok"}"#, 1.0),
        (r#"ekm_request_seconds_count{verb="create"}"#, 4.0),
        (r#"ekm_admission_wait_seconds_count{gate="main"}"#, 3.0),
        ("ekm_connections_accepted_total", 2.0),
        // An intent and an outcome of each, and of the refusal an outcome.
        ("ekm_audit_records_total", 7.0),
    ];
    for (name, expected) in counted {
        assert_eq!(moved(name), expected, "{name}");
    }
    assert!(moved(r#"ekm_request_seconds_sum{verb="create"}"#) > 0.0);
    let now = |name: &str| after.get(name).copied();
    let levels = [
        (r#"ekm_token_state{token="main",state="ready"}"#, 1.0),
        (r#"ekm_token_state{token="main",state="failed"}"#, 0.0),
        (r#"ekm_token_keks{token="main"}"#, 1.0),
        (r#"ekm_token_bridges{token="main"}"#, 1.0),
        (r#"ekm_token_bridge_starts_total{token="main"}"#, 1.0),
        (r#"ekm_admission_places{gate="main"}"#, 16.0),
        (r#"ekm_admission_waiting{gate="main"}"#, 0.0),
        (r#"ekm_alarm{code="EKM-A01"}"#, 0.0),
        ("ekm_audit_failed", 0.0),
        ("ekm_connections_limit", 4096.0),
    ];
    for (name, expected) in levels {
        assert_eq!(now(name), Some(expected), "{name}");
    }
    let free = now(r#"ekm_disk_free_bytes{directory="audit"}"#).unwrap();
    assert!(free > 0.0 && free <= now(r#"ekm_disk_size_bytes{directory="audit"}"#).unwrap());
    let today = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    assert!(
        now("ekm_certificate_expiry_timestamp_seconds").unwrap() > today.unwrap().as_secs_f64()
    );

    // The bridge tells what it measured every five seconds.
    let call = |function: &str| {
        format!(r#"ekm_pkcs11_call_seconds_count{{token="main",function="{function}"}}"#)
    };
    let start = Instant::now();
    let told = loop {
        let page = scrape(&address).await;
        // Each create wraps for its KEK and its drive, and opens what it wrapped.
        let counts = [
            ("C_GenerateKey", 3.0),
            ("C_WrapKey", 6.0),
            ("C_UnwrapKey", 3.0),
        ];
        let all = |(function, least): (&str, f64)| {
            page.get(&call(function))
                .is_some_and(|count| *count >= least)
        };
        if counts.into_iter().all(all) {
            break page;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "the calls of the creates are not told"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert_eq!(told[r#"ekm_token_logins_total{token="main"}"#], 1.0);
    assert_eq!(told[r#"ekm_token_workers{token="main"}"#], 4.0);

    // What names a drive, a cartridge or a key is not for this page.
    let (_, page) = fetch(&address, "/metrics").await;
    for name in [
        known.serial.as_str(),
        unknown.serial.as_str(),
        "VOL001",
        "KEK1",
    ] {
        assert!(!page.contains(name), "{name} is on the page");
    }
    assert!(!page.contains(&request.request_id.to_string()));
    // And nothing else is at this door.
    let (head, _) = fetch(&address, "/readyz").await;
    assert!(head.starts_with("http/1.1 404"), "{head}");
    serving.stop();
}

async fn alarm(address: &str, code: &str) -> f64 {
    scrape(address).await[&format!("ekm_alarm{{code=\"{code}\"}}")]
}

/// Waits until an alarm is raised, or over, that many times.
async fn wait_for_alarm(address: &str, code: &str, raised: f64) {
    let start = Instant::now();
    while alarm(address, code).await != raised {
        assert!(start.elapsed() < PATIENCE, "{code} did not become {raised}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Each once: how often the log says that it rose, and that it was over.
fn told(serving: &Serving, code: &str) -> (usize, usize) {
    let log = serving.log();
    let times = |raised: bool| {
        let marks = format!("alarm=\"{code}\" raised={raised}");
        log.matches(&marks).count()
    };
    (times(true), times(false))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_goes_raises_an_alarm_and_one_that_comes_back_ends_it() {
    let house = House::new("", DOOR);
    let serving = house.serve().await;
    let address = address(&serving);
    assert_eq!(alarm(&address, "EKM-A01").await, 0.0);
    let status: serde_json::Value =
        serde_json::from_str(&house.done(&["--json", "token", "status"])).unwrap();
    let pid = status[0]["bridges"][0].as_i64().unwrap();
    std::fs::rename(house.at("token"), house.at("token-away")).unwrap();
    let bridge = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(bridge, Signal::KILL).unwrap();
    wait_for_alarm(&address, "EKM-A01", 1.0).await;
    // Its only KEK is out of reach with it.
    wait_for_alarm(&address, "EKM-A06", 1.0).await;
    assert_eq!(told(&serving, "EKM-A01"), (1, 0));
    // The bridge may have made an empty one.
    let _ = std::fs::remove_dir_all(house.at("token"));
    std::fs::rename(house.at("token-away"), house.at("token")).unwrap();
    wait_for_alarm(&address, "EKM-A01", 0.0).await;
    wait_for_alarm(&address, "EKM-A06", 0.0).await;
    assert_eq!(told(&serving, "EKM-A01"), (1, 1));
    assert_eq!(told(&serving, "EKM-A06"), (1, 1));
    // What the killed bridge had counted is not forgotten.
    let page = scrape(&address).await;
    assert!(page[r#"ekm_token_bridge_starts_total{token="main"}"#] >= 2.0);
    assert!(page[r#"ekm_token_logins_total{token="main"}"#] >= 1.0);
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_disk_that_fills_raises_an_alarm_before_it_is_full() {
    let house = House::new("", DOOR);
    // In place of the records so far; the new chain begins on the small disk.
    let Some(_disk) = SmallDisk::mount(&house.at("audit"), "1m") else {
        return;
    };
    let serving = house.serve().await;
    let address = address(&serving);
    assert_eq!(alarm(&address, "EKM-A08").await, 0.0);
    let watcher = house.identity("operator", "watcher");
    let ready = async || {
        let request = b"GET /readyz HTTP/1.1\r\nhost: ekm\r\n\r\n";
        let heard = say(&serving, &watcher, request).await.unwrap();
        assert_eq!(heard.status, 200);
        let text = String::from_utf8(heard.body).unwrap();
        assert!(text.starts_with("ready\n"), "{text}");
        // The state is on the tester's own disk, which may be full enough for an alarm.
        let line = text.lines().find(|line| line.starts_with("EKM-A08 "));
        line.map(str::to_owned)
    };
    assert_eq!(ready().await, None);
    std::fs::write(house.at("audit/filler"), vec![0; 900 << 10]).unwrap();
    wait_for_alarm(&address, "EKM-A08", 1.0).await;
    // Keys are served all the same, and whoever looks is told.
    let line = ready().await;
    let line = line.expect("the alarm is on /readyz");
    assert!(line.ends_with("% in use"), "{line}");
    std::fs::remove_file(house.at("audit/filler")).unwrap();
    wait_for_alarm(&address, "EKM-A08", 0.0).await;
    assert_eq!(ready().await, None);
    assert_eq!(told(&serving, "EKM-A08"), (1, 1));
    wait_for("the end of the alarm in the log", PATIENCE, || {
        serving
            .log()
            .contains("alarm over: the disk of the audit log")
    });
    serving.stop();
}
