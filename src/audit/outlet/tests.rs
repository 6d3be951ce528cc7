use std::io::Read;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixDatagram;

use rustix::net::{AddressFamily, SocketType, bind, listen, socket};
use syslog_rfc5424::{SyslogFacility, SyslogMessage, SyslogSeverity, parse_message};

use super::*;
use crate::audit::{AuditLog, Kind, Options, Outcome};

const PATIENCE: Duration = Duration::from_secs(10);

fn outlets(to: &str) -> Outlets {
    let target = Target::new(to, Facility::Authpriv, None).unwrap();
    Outlets::start(vec![target], &Identity::of("a")).unwrap()
}

fn log(dir: &std::path::Path, outlets: &Outlets) -> AuditLog {
    let options = Options {
        outlets: outlets.clone(),
        ..Options::default()
    };
    AuditLog::open(dir, "a", options).unwrap()
}

/// One whose fields try to end the structured data, and the message.
fn hostile() -> Event {
    let mut event = Event::new(Kind::Runtime, "resolve", Outcome::Failure);
    event.drive = Some("000001234567".to_owned());
    event.peer = Some("a\"b\\c]d\ne".to_owned());
    event.detail = Some("first\nsecond \u{e9}".to_owned());
    event.code = Some("EE32".to_owned());
    event
}

/// Parses strictly, and gives the fields.
fn read(message: &[u8]) -> (SyslogMessage, std::collections::BTreeMap<String, String>) {
    let text = std::str::from_utf8(message).unwrap();
    assert!(!text.contains('\n'), "{text:?}");
    let parsed = parse_message(text).unwrap();
    let fields = parsed.sd.find_sdid("ekm@32473").unwrap().clone();
    (parsed, fields.into_iter().collect())
}

#[test]
fn a_record_comes_by_udp_as_rfc_5424_says() {
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let outlets = outlets(&format!("udp://{}", receiver.local_addr().unwrap()));
    let log = log(dir.path(), &outlets);
    let receipt = log.record_blocking(hostile()).unwrap();
    let mut bytes = vec![0; 65536];
    let length = receiver.recv(&mut bytes).unwrap();
    let (message, fields) = read(&bytes[..length]);
    assert_eq!(message.facility, SyslogFacility::LOG_AUTHPRIV);
    assert_eq!(message.severity, SyslogSeverity::SEV_WARNING);
    assert_eq!(message.appname.as_deref(), Some("ekm"));
    assert_eq!(message.msgid.as_deref(), Some("resolve"));
    assert!(message.timestamp.is_some() && message.hostname.is_some());
    for (name, value) in [
        ("seq", "1"),
        ("node", "a"),
        ("kind", "runtime"),
        ("outcome", "failure"),
        ("drive", "000001234567"),
        ("code", "EE32"),
        ("hash", receipt.hash().as_str()),
        ("peer", "a\"b\\c]d e"),
    ] {
        assert_eq!(fields.get(name).map(String::as_str), Some(value), "{name}");
    }
    // The message is the line itself, which an auditor can put into the chain.
    let line = std::fs::read_to_string(dir.path().join("audit-00000001.jsonl")).unwrap();
    assert_eq!(message.msg.trim_start_matches('\u{feff}'), line.trim_end());
}

#[test]
fn records_come_by_tcp_each_with_its_length() {
    let receiver = TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let outlets = outlets(&format!("tcp://{}", receiver.local_addr().unwrap()));
    let log = log(dir.path(), &outlets);
    for _ in 0..3 {
        log.record_blocking(hostile()).unwrap();
    }
    let (mut stream, _) = receiver.accept().unwrap();
    drop((log, outlets));
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let mut rest = all.as_slice();
    for seq in ["1", "2", "3"] {
        let space = rest.iter().position(|byte| *byte == b' ').unwrap();
        let length: usize = std::str::from_utf8(&rest[..space])
            .unwrap()
            .parse()
            .unwrap();
        let (message, after) = rest[space + 1..].split_at(length);
        assert_eq!(read(message).1["seq"], seq);
        rest = after;
    }
    assert!(rest.is_empty());
}

/// One message of a stream.
fn framed(stream: &mut impl Read) -> Vec<u8> {
    let mut length = 0_usize;
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        if byte == *b" " {
            break;
        }
        length = length * 10 + usize::from(byte[0] - b'0');
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).unwrap();
    message
}

#[test]
fn a_record_after_the_receiver_has_closed_comes_over_a_new_connection() {
    let receiver = TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let outlets = outlets(&format!("tcp://{}", receiver.local_addr().unwrap()));
    let log = log(dir.path(), &outlets);
    for seq in ["1", "2", "3"] {
        log.record_blocking(hostile()).unwrap();
        let (mut stream, _) = receiver.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(read(&framed(&mut stream)).1["seq"], seq);
    }
}

#[test]
fn records_come_to_a_local_syslog_and_to_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (syslog, journal) = (at("log"), at("journal"));
    let receivers = [&syslog, &journal].map(|path| {
        let receiver = UnixDatagram::bind(path).unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        receiver
    });
    let targets = [
        format!("unix:{}", syslog.display()),
        format!("journald:{}", journal.display()),
    ]
    .map(|to| Target::new(&to, Facility::Local3, None).unwrap());
    let outlets = Outlets::start(targets.into(), &Identity::of("a")).unwrap();
    let log = log(&at("audit"), &outlets);
    log.record_blocking(hostile()).unwrap();
    let [local, native] = receivers.map(|receiver| {
        let mut bytes = vec![0; 65536];
        let length = receiver.recv(&mut bytes).unwrap();
        bytes.truncate(length);
        bytes
    });
    let (message, fields) = read(&local);
    assert_eq!(message.facility, SyslogFacility::LOG_LOCAL3);
    assert_eq!(fields["action"], "resolve");
    // Each line of the native protocol is NAME=value.
    let native = String::from_utf8(native).unwrap();
    let lines: Vec<(&str, &str)> = native
        .lines()
        .map(|line| line.split_once('=').unwrap())
        .collect();
    for wanted in [
        ("PRIORITY", "4"),
        ("SYSLOG_FACILITY", "19"),
        ("SYSLOG_IDENTIFIER", "ekm"),
        ("EKM_SEQ", "1"),
        ("EKM_DRIVE", "000001234567"),
        ("EKM_PEER", "a\"b\\c]d e"),
    ] {
        assert!(lines.contains(&wanted), "{wanted:?} in {native}");
    }
    assert!(lines[0].0 == "MESSAGE" && lines[0].1.starts_with("{\"seq\":1,"));
}

#[test]
fn a_receiver_that_is_away_delays_no_record_and_is_told_what_it_missed() {
    // Nobody listens there, and nobody else can have the port.
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let receiver = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&receiver, &any).unwrap();
    let receiver = TcpListener::from(receiver);
    let address = receiver.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let outlets = outlets(&format!("tcp://{address}"));
    let log = log(dir.path(), &outlets);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let started = Instant::now();
    let more = QUEUE + 100;
    runtime.block_on(async {
        let mut last = None;
        for _ in 0..more {
            last = Some(log.submit(hostile()).await);
        }
        last.unwrap().await.unwrap();
    });
    // One that waited for the receiver would take hours.
    assert!(started.elapsed() < PATIENCE * 6, "{:?}", started.elapsed());
    let [seen] = outlets.seen().try_into().unwrap();
    // One is in the thread's hand.
    assert!((99..=100).contains(&seen.lost), "{seen:?}");
    assert!(seen.losing);
    // It is told when it is back, before anything else.
    listen(&receiver, 1).unwrap();
    let (mut stream, _) = receiver.accept().unwrap();
    let mut first = vec![0; 4096];
    let length = stream.read(&mut first).unwrap();
    let text = String::from_utf8_lossy(&first[..length]);
    let lost = format!("lost=\"{}\"", seen.lost);
    assert!(
        text.contains(" audit-lost ") && text.contains(&lost),
        "{text}"
    );
}

#[test]
fn what_is_no_receiver_is_refused() {
    for text in [
        "",
        "syslog",
        "udp://",
        "udp://host",
        "tcp://:514",
        "udp://host:99999",
        "unix:",
        "tls://host:6514",
    ] {
        assert!(Target::new(text, Facility::Auth, None).is_err(), "{text}");
    }
}
