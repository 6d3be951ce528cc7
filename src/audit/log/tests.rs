use std::fs::OpenOptions;

use super::*;

/// A log on a disk that is full.
fn full(dir: &Path) -> AuditLog {
    let mut writer = Writer::open(dir, "a", Options::default()).unwrap();
    writer.current.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
    AuditLog::over(writer, 1).unwrap()
}

#[test]
fn a_full_disk_poisons_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let log = full(dir.path());
    for _ in 0..3 {
        let event = Event::new(Kind::Runtime, "create", Outcome::Intent);
        let Err(AuditError::Failed { source, .. }) = log.record_blocking(event) else {
            panic!("a record on a full disk was acknowledged");
        };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    }
    assert!(log.has_failed());
    assert_eq!(
        log.stats(),
        Stats {
            records: 0,
            syncs: 0
        }
    );
}

#[tokio::test]
async fn a_full_disk_met_by_a_record_that_nobody_waits_for_stops_the_next_answer() {
    let dir = tempfile::tempdir().unwrap();
    let log = full(dir.path());
    log.follow(Event::new(Kind::Runtime, "resolve", Outcome::Success))
        .await;
    let next = Event::new(Kind::Runtime, "resolve", Outcome::Intent);
    assert!(matches!(
        log.record(next).await,
        Err(AuditError::Failed { .. })
    ));
    assert!(log.has_failed());
}

#[test]
fn a_line_that_the_disk_did_not_keep_goes_to_no_receiver_as_part_of_the_chain() {
    use crate::audit::outlet::{Facility, Identity, Target};
    let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let patience = Some(Duration::from_secs(10));
    receiver.set_read_timeout(patience).unwrap();
    let to = format!("udp://{}", receiver.local_addr().unwrap());
    let target = Target::new(&to, Facility::Authpriv, None).unwrap();
    let outlets = Outlets::start(vec![target], &Identity::of("a")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        outlets,
        ..Options::default()
    };
    let mut writer = Writer::open(dir.path(), "a", options).unwrap();
    // It takes what is written, and fdatasync(2) fails on it.
    writer.current.file = OpenOptions::new().write(true).open("/dev/null").unwrap();
    let event = Event::new(Kind::Runtime, "resolve", Outcome::Success);
    writer.append(vec![Job { event, reply: None }]);
    let failed = writer.sync().unwrap_err();
    writer.fail(Arc::new(failed));
    let mut bytes = vec![0; 65536];
    let length = receiver.recv(&mut bytes).unwrap();
    let text = String::from_utf8_lossy(&bytes[..length]);
    assert!(text.contains("action=\"resolve\""), "{text}");
    assert!(
        !text.contains(" seq=") && !text.contains(" hash="),
        "{text}"
    );
}

#[tokio::test]
async fn a_record_that_nobody_waits_for_shares_the_sync_of_one_that_somebody_does() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), "a", Options::default()).unwrap();
    for _ in 0..3 {
        log.follow(Event::new(Kind::Runtime, "resolve", Outcome::Success))
            .await;
    }
    let receipt = log
        .record(Event::new(Kind::Runtime, "resolve", Outcome::Intent))
        .await
        .unwrap();
    assert_eq!(receipt.seq(), 4);
    assert_eq!(log.stats().records, 4);
    assert!(log.stats().syncs <= 2, "{:?}", log.stats());
}

#[tokio::test]
async fn a_record_that_nobody_waits_for_becomes_durable_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), "a", Options::default()).unwrap();
    log.follow(Event::new(Kind::Runtime, "resolve", Outcome::Success))
        .await;
    let start = Instant::now();
    while log.stats().syncs == 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "it never was");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(
        log.stats(),
        Stats {
            records: 1,
            syncs: 1
        }
    );
}

#[tokio::test]
async fn a_record_that_nobody_waits_for_is_written_after_one_that_somebody_did() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), "a", Options::default()).unwrap();
    log.record(Event::new(Kind::Runtime, "resolve", Outcome::Intent))
        .await
        .unwrap();
    // The writer is awake now, and comes for it without being called.
    log.follow(Event::new(Kind::Runtime, "resolve", Outcome::Success))
        .await;
    let start = Instant::now();
    while log.stats().records < 2 {
        assert!(start.elapsed() < Duration::from_secs(10), "it never was");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // And he is not there for ever: what comes later calls him.
    tokio::time::sleep(10 * GATHER).await;
    log.follow(Event::new(Kind::Runtime, "resolve", Outcome::Success))
        .await;
    while log.stats().records < 3 {
        assert!(start.elapsed() < Duration::from_secs(20), "it never was");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn records_that_are_not_needed_at_once_share_a_sync_and_are_durable_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), "a", Options::default()).unwrap();
    let intent = || Event::new(Kind::Runtime, "resolve", Outcome::Intent);
    // More than any disk takes.
    let spare = Duration::from_secs(3600);
    // The writer is awake from now on.
    log.record(intent()).await.unwrap();
    let mut pending = Vec::new();
    for _ in 0..100 {
        pending.push(log.submit_ahead(intent(), spare).await);
    }
    let receipts = futures_util::future::try_join_all(pending).await.unwrap();
    let numbers: Vec<u64> = receipts.iter().map(Receipt::seq).collect();
    assert_eq!(numbers, (2..=101).collect::<Vec<_>>());
    let Stats { records, syncs } = log.stats();
    assert_eq!(records, 101);
    assert!(syncs < 50, "{syncs} syncs");
    // He sleeps for good after a while, and then one calls him.
    tokio::time::sleep(LINGER + 10 * GATHER).await;
    log.submit_ahead(intent(), spare).await.await.unwrap();
}

#[test]
fn a_record_waits_for_others_only_where_the_disk_leaves_time_for_that() {
    let shared = Shared::new(Head::GENESIS, false, Outlets::default());
    assert!(!shared.can_wait(Duration::ZERO));
    assert!(shared.can_wait(AHEAD));
    for _ in 0..100 {
        shared.synced(Duration::from_millis(20));
    }
    assert!(!shared.can_wait(AHEAD + Duration::from_millis(10)));
    assert!(shared.can_wait(AHEAD + Duration::from_millis(20)));
}

/// An intent that somebody waits for, put aside as if the writer had just come by.
fn put_aside(shared: &Shared) -> oneshot::Receiver<Result<Receipt, AuditError>> {
    shared.aside.take();
    let event = Event::new(Kind::Runtime, "resolve", Outcome::Intent);
    let (reply, pending) = oneshot::channel();
    let reply = Some(reply);
    shared.aside.put(Job { event, reply }).unwrap();
    pending
}

#[tokio::test]
async fn an_intent_that_is_put_aside_as_the_disk_fails_does_not_wait_for_the_next_try() {
    let dir = tempfile::tempdir().unwrap();
    let mut quickest = Duration::MAX;
    for try_no in 0..5 {
        let options = Options {
            emergency: true,
            ..Options::default()
        };
        let dir = dir.path().join(try_no.to_string());
        let mut writer = Writer::open(&dir, "a", options).unwrap();
        writer.fail(Arc::new(io::ErrorKind::StorageFull.into()));
        writer.current.file = File::open(&writer.current.path).unwrap();
        let pending = put_aside(&writer.shared);
        let start = Instant::now();
        let _log = AuditLog::over(writer, 8).unwrap();
        assert!(!pending.await.unwrap().unwrap().is_durable());
        quickest = quickest.min(start.elapsed());
    }
    assert!(quickest < stand_in::AGAIN / 2, "{quickest:?}");
}

#[test]
fn a_full_disk_met_as_a_file_is_to_follow_forks_no_chain() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        emergency: true,
        ..Options::default()
    };
    let mut writer = Writer::open(dir.path(), "a", options).unwrap();
    let outcome = || Job {
        event: Event::new(Kind::Runtime, "resolve", Outcome::Success),
        reply: None,
    };
    // Written, and durable only by the sync that goes before the next file.
    writer.append(vec![outcome()]);
    assert_eq!(writer.loose.len(), 1);
    writer.rotate_at = 1;
    let next = file_path(dir.path(), 2);
    std::fs::create_dir(&next).unwrap();
    writer.append(vec![outcome()]);
    assert!(writer.fault.is_some());
    assert_eq!(writer.shared.gap.lock().unwrap().unwrap().kept, 1);
    std::fs::remove_dir(&next).unwrap();
    let again = writer.fault.clone().unwrap();
    writer.stand_in(vec![outcome()], &again, true);
    assert!(writer.fault.is_none());
    writer.sync().unwrap();
    drop(writer);
    let records = crate::audit::read(dir.path()).unwrap();
    let records: Vec<_> = records.map(Result::unwrap).collect();
    // The first, the gap, the one that was kept, the last.
    assert_eq!(records.len(), 4);
}

#[tokio::test]
async fn whoever_waits_for_a_record_learns_that_its_writer_has_gone() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::open(dir.path(), "a", Options::default()).unwrap();
    let shared = Arc::clone(&writer.shared);
    let pending = put_aside(&shared);
    drop(writer);
    assert!(pending.await.is_err());
    let event = Event::new(Kind::Runtime, "resolve", Outcome::Intent);
    assert!(shared.aside.put(Job { event, reply: None }).is_err());
}

#[tokio::test]
async fn a_log_that_is_closed_at_once_loses_no_record() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..20 {
        let log = AuditLog::open(dir.path(), "a", Options::default()).unwrap();
        log.record(Event::new(Kind::Runtime, "resolve", Outcome::Intent))
            .await
            .unwrap();
        for _ in 0..3 {
            log.follow(Event::new(Kind::Runtime, "resolve", Outcome::Success))
                .await;
        }
    }
    let records = crate::audit::read(dir.path()).unwrap();
    assert_eq!(records.filter(Result::is_ok).count(), 80);
}

#[tokio::test]
async fn more_records_than_are_gathered_are_all_written() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), "a", Options::default()).unwrap();
    log.record(Event::new(Kind::Runtime, "resolve", Outcome::Intent))
        .await
        .unwrap();
    for _ in 0..3 * MAX_BATCH {
        log.follow(Event::new(Kind::Runtime, "resolve", Outcome::Success))
            .await;
    }
    drop(log);
    let records = crate::audit::read(dir.path()).unwrap();
    assert_eq!(records.filter(Result::is_ok).count(), 1 + 3 * MAX_BATCH);
}

/// Another full disk than [`full`]: the directory takes a new file.
fn half_full(dir: &Path, options: Options) -> AuditLog {
    let mut writer = Writer::open(dir, "a", options).unwrap();
    let mut bytes = Vec::new();
    let first = Event::new(Kind::Runtime, "start", Outcome::Success);
    let now = OffsetDateTime::now_utc();
    writer.head = writer.head.append(&first, "a", now, &mut bytes).unwrap();
    writer.current.write(&bytes).unwrap();
    writer.sync().unwrap();
    // For reading only, so that nothing can be written to it; its length is still what it was.
    writer.current.file = File::open(&writer.current.path).unwrap();
    AuditLog::over(writer, 8).unwrap()
}

#[tokio::test]
async fn without_the_policy_nothing_is_kept_and_with_it_only_what_a_resolve_needs() {
    let dir = tempfile::tempdir().unwrap();
    let log = half_full(dir.path(), Options::default());
    let intent = || Event::new(Kind::Runtime, "resolve", Outcome::Intent);
    assert!(log.record(intent()).await.is_err());
    assert!(log.has_failed());
    // The first file cannot be cut to what is durable, so nothing is written anew either.
    log.set_emergency(true);
    assert!(!log.has_failed());
    let receipt = log.record(intent()).await.unwrap();
    assert!(!receipt.is_durable());
    assert_eq!(receipt.seq(), 0);
    for refused in [
        Event::new(Kind::Runtime, "create", Outcome::Intent),
        Event::new(Kind::Runtime, "rekey", Outcome::Success),
        Event::new(Kind::Runtime, "confirm", Outcome::Success),
        Event::new(Kind::ResourceManagement, "drive-add", Outcome::Success),
        Event::new(
            Kind::ConfigurationManagement,
            "audit-emergency-off",
            Outcome::Success,
        ),
    ] {
        let action = refused.action.clone();
        assert!(log.record(refused).await.is_err(), "{action}");
    }
    assert_eq!(log.gap().unwrap().kept, 1);
    log.set_emergency(false);
    assert!(log.record(intent()).await.is_err());
}
