use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::*;

mod mutations;

const SMALL: u64 = 1000;

fn event(action: &str) -> Event {
    let mut event = Event::new(Kind::Runtime, action, Outcome::Intent);
    event.request = Some("0f5c".into());
    event.eedks = vec![EedkMark {
        sha256: "00".repeat(32),
        kek: "alpha".into(),
        encoding: "label".into(),
        foreign: false,
        opened: false,
    }];
    event
}

fn open(dir: &Path, rotate_at: u64) -> Result<AuditLog, AuditError> {
    let options = Options {
        rotate_at,
        ..Options::default()
    };
    AuditLog::open(dir, "a", options)
}

/// A closed log of `count` records, in one file or, where `rotate_at` is small, in several.
fn written(count: u64, rotate_at: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), rotate_at).unwrap();
    for seq in 1..=count {
        assert_eq!(log.record_blocking(event("create")).unwrap().seq(), seq);
    }
    dir
}

fn edit(dir: &Path, number: u32, change: impl FnOnce(&mut Vec<String>)) {
    let path = dir.join(format!("audit-{number:08}.jsonl"));
    let text = fs::read_to_string(&path).unwrap();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    change(&mut lines);
    fs::write(
        &path,
        lines
            .iter()
            .map(|line| format!("{line}\n"))
            .collect::<String>(),
    )
    .unwrap();
}

fn append(dir: &Path, number: u32, bytes: &[u8]) {
    use std::io::Write as _;
    let path = dir.join(format!("audit-{number:08}.jsonl"));
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

#[test]
fn a_chain_verifies_across_files_and_restarts() {
    let dir = written(10, SMALL);
    let log = open(dir.path(), SMALL).unwrap();
    let receipt = log.record_blocking(event("resolve")).unwrap();
    drop(log);
    let verified = verify(dir.path()).unwrap();
    assert_eq!(
        (verified.records, verified.first, verified.last),
        (11, 1, 11)
    );
    assert!(verified.files > 3, "{verified:?}");
    assert_eq!(verified.head_hash, receipt.hash());
    let records: Vec<_> = read(dir.path()).unwrap().map(Result::unwrap).collect();
    assert_eq!(records.len(), 11);
    assert_eq!(records[10].event, event("resolve"));
    assert_eq!(records[10].prev, records[9].hash);
    assert_eq!(records[10].hash, verified.head_hash);
}

#[test]
fn only_the_owner_reads_the_files() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("state/audit");
    drop(open(&dir, SMALL).unwrap());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join("audit-00000001.jsonl")), 0o600);
}

#[test]
fn altered_byte_is_found() {
    let dir = written(5, u64::MAX);
    edit(dir.path(), 1, |lines| {
        lines[2] = lines[2].replace("alpha", "alphb")
    });
    let found = verify(dir.path());
    assert!(
        matches!(found, Err(AuditError::Altered { line: 3, .. })),
        "{found:?}"
    );
}

#[test]
fn a_line_that_is_no_record_is_found() {
    let dir = written(5, u64::MAX);
    edit(dir.path(), 1, |lines| lines[4].push(' '));
    let found = verify(dir.path());
    assert!(
        matches!(found, Err(AuditError::Malformed { line: 5, .. })),
        "{found:?}"
    );
}

#[test]
fn removed_line_is_found() {
    for (removed, line) in [(0, 1), (2, 3)] {
        let dir = written(5, u64::MAX);
        edit(dir.path(), 1, |lines| drop(lines.remove(removed)));
        let found = verify(dir.path());
        let Err(AuditError::MissingRecords {
            line: at,
            expected,
            got,
            ..
        }) = found
        else {
            panic!("{found:?}");
        };
        assert_eq!((at, expected, got), (line, line, line + 1));
    }
}

#[test]
fn swapped_lines_are_found() {
    let dir = written(5, u64::MAX);
    edit(dir.path(), 1, |lines| lines.swap(1, 3));
    let found = verify(dir.path());
    let Err(AuditError::Reordered {
        line: 2,
        expected: 2,
        got: 4,
        ..
    }) = found
    else {
        panic!("{found:?}");
    };
}

#[test]
fn repeated_line_is_found() {
    let dir = written(5, u64::MAX);
    edit(dir.path(), 1, |lines| lines.insert(1, lines[0].clone()));
    let found = verify(dir.path());
    let Err(AuditError::Reordered {
        line: 2,
        expected: 2,
        got: 1,
        ..
    }) = found
    else {
        panic!("{found:?}");
    };
}

#[test]
fn a_line_of_another_chain_is_found() {
    let dir = written(5, u64::MAX);
    let other = written(5, u64::MAX);
    let foreign = fs::read_to_string(other.path().join("audit-00000001.jsonl")).unwrap();
    let foreign = foreign.lines().nth(2).unwrap().to_owned();
    edit(dir.path(), 1, |lines| lines[2] = foreign);
    let found = verify(dir.path());
    assert!(
        matches!(found, Err(AuditError::Unchained { line: 3, .. })),
        "{found:?}"
    );
}

#[test]
fn removed_file_is_found() {
    for number in [1, 2] {
        let dir = written(10, SMALL);
        let gone = dir.path().join(format!("audit-{number:08}.jsonl"));
        fs::remove_file(&gone).unwrap();
        let found = verify(dir.path());
        let Err(AuditError::MissingFile { file }) = found else {
            panic!("{found:?}");
        };
        assert_eq!(file, gone);
    }
}

#[test]
fn emptied_file_is_found() {
    let dir = written(10, SMALL);
    edit(dir.path(), 2, Vec::clear);
    let found = verify(dir.path());
    assert!(
        matches!(found, Err(AuditError::MissingRecords { line: 1, .. })),
        "{found:?}"
    );
}

#[test]
fn an_empty_directory_is_no_log() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(verify(dir.path()), Err(AuditError::Empty { .. })));
    assert!(matches!(read(dir.path()), Err(AuditError::Empty { .. })));
    drop(open(dir.path(), SMALL).unwrap());
    assert!(matches!(verify(dir.path()), Err(AuditError::Empty { .. })));
}

#[test]
fn torn_tail_is_recovered() {
    let zeros = vec![0; 3 * 1024 * 1024];
    for tail in [b"{\"seq\":4,\"ti".as_slice(), zeros.as_slice()] {
        let dir = written(3, u64::MAX);
        append(dir.path(), 1, tail);
        let bytes = u64::try_from(tail.len()).unwrap();
        let found = verify(dir.path());
        let Err(AuditError::TornTail {
            line: 4,
            bytes: torn,
            ..
        }) = found
        else {
            panic!("{found:?}");
        };
        assert_eq!(torn, bytes);
        assert_eq!(read(dir.path()).unwrap().map(Result::unwrap).count(), 3);
        let log = open(dir.path(), u64::MAX).unwrap();
        assert_eq!(log.record_blocking(event("create")).unwrap().seq(), 5);
        drop(log);
        assert_eq!(verify(dir.path()).unwrap().last, 5);
        let recovered = read(dir.path()).unwrap().nth(3).unwrap().unwrap();
        assert_eq!(recovered.event.action, "audit-recovered");
        let detail = recovered.event.detail.unwrap();
        assert!(detail.contains(&format!("{bytes} bytes")), "{detail}");
    }
}

#[test]
fn a_cut_right_after_rotation_is_recovered() {
    for tail in [b"".as_slice(), b"{\"seq\":4".as_slice()] {
        let dir = written(3, u64::MAX);
        fs::write(dir.path().join("audit-00000002.jsonl"), tail).unwrap();
        let log = open(dir.path(), u64::MAX).unwrap();
        log.record_blocking(event("create")).unwrap();
        drop(log);
        let verified = verify(dir.path()).unwrap();
        assert_eq!(verified.files, 2);
        assert_eq!(verified.last, if tail.is_empty() { 4 } else { 5 });
    }
}

#[test]
fn a_damaged_log_takes_no_record() {
    let dir = written(3, u64::MAX);
    edit(dir.path(), 1, |lines| {
        lines[2] = lines[2].replace("alpha", "alphb")
    });
    let refused = open(dir.path(), u64::MAX).unwrap_err();
    assert!(
        refused.to_string().contains("ekm audit verify"),
        "{refused}"
    );
    let AuditError::Damaged { source, .. } = refused else {
        panic!("{refused:?}");
    };
    assert!(matches!(*source, AuditError::Altered { line: 3, .. }));
}

#[test]
fn a_log_without_its_last_records_takes_no_record() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("audit-00000007.jsonl"), "").unwrap();
    assert!(matches!(
        open(dir.path(), SMALL),
        Err(AuditError::Damaged { .. })
    ));
}

#[test]
fn a_second_writer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), SMALL).unwrap();
    assert!(matches!(
        open(dir.path(), SMALL),
        Err(AuditError::Locked { .. })
    ));
    drop(log);
    open(dir.path(), SMALL).unwrap();
}

#[test]
fn a_failed_rotation_poisons_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), 1).unwrap();
    fs::create_dir(dir.path().join("audit-00000002.jsonl")).unwrap();
    log.record_blocking(event("create")).unwrap();
    for _ in 0..2 {
        let failed = log.record_blocking(event("create"));
        assert!(
            matches!(failed, Err(AuditError::Failed { .. })),
            "{failed:?}"
        );
    }
    // Even when the obstacle is gone: what failed may have been a sync.
    fs::remove_dir(dir.path().join("audit-00000002.jsonl")).unwrap();
    let failed = log.record_blocking(event("create"));
    assert!(
        matches!(failed, Err(AuditError::Failed { .. })),
        "{failed:?}"
    );
    assert!(log.has_failed());
    drop(log);
    assert_eq!(verify(dir.path()).unwrap().last, 1);
}

#[test]
fn an_overlong_record_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), u64::MAX).unwrap();
    let mut long = event("create");
    long.detail = Some("x".repeat(2 * 1024 * 1024));
    let refused = log.record_blocking(long);
    assert!(
        matches!(refused, Err(AuditError::TooLong { .. })),
        "{refused:?}"
    );
    assert_eq!(log.record_blocking(event("create")).unwrap().seq(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_records_share_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), u64::MAX).unwrap();
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let log = log.clone();
            tokio::spawn(async move {
                let mut last = 0;
                for _ in 0..20 {
                    let receipt = log.record(event("create")).await.unwrap();
                    assert!(receipt.seq() > last);
                    last = receipt.seq();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let Stats { records, syncs } = log.stats();
    assert_eq!(records, 1000);
    assert!(syncs <= 250, "{syncs} syncs");
    drop(log);
    assert_eq!(verify(dir.path()).unwrap().last, 1000);
}

#[tokio::test]
async fn a_full_queue_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        queue: 1,
        ..Options::default()
    };
    let log = AuditLog::open(dir.path(), "a", options).unwrap();
    let mut pending = Vec::new();
    for _ in 0..100 {
        pending.push(log.submit(event("create")).await);
    }
    // Not awaiting a record does not take it back.
    pending.truncate(50);
    for (pending, seq) in pending.into_iter().zip(1..) {
        assert_eq!(pending.await.unwrap().seq(), seq);
    }
    drop(log);
    assert_eq!(verify(dir.path()).unwrap().records, 100);
}
