//! A thousand changes of a sealed log, each of which must be told of with its place.

use std::collections::BTreeMap;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::bridge::evidence::SEALED;

const SEED: u64 = 0x5eed_0000_2026_1126;

/// A key that seals, in the place of a token's.
struct Sealer {
    pair: RsaKeyPair,
    key: SealKey,
}

impl Sealer {
    fn new() -> Self {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let spki = pair.public_key().as_der().unwrap();
        let key = SealKey::new(spki.as_ref()).unwrap();
        Self { pair, key }
    }

    /// Seals a log up to its newest record; the anchor.
    fn seal(&self, log: &AuditLog, number: u64) -> Anchor {
        let head = log.head().unwrap();
        let digest = statement("a", number, head.seq, &head.hash);
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                &[SEALED, &digest].concat(),
                &mut signature,
            )
            .unwrap();
        let mut event = Event::new(Kind::Runtime, "audit-seal", Outcome::Success);
        event.chain = Some(Box::new(ChainMark::Seal(Seal {
            number,
            seq: head.seq,
            hash: head.hash,
            key: self.key.fingerprint(),
            signature: STANDARD.encode(signature),
        })));
        let receipt = log.record_blocking(event).unwrap();
        Anchor {
            number,
            hash: Some(receipt.hash()),
        }
    }
}

/// The files of a log, and what is known of it.
struct Chain {
    files: BTreeMap<String, Vec<u8>>,
    expected: Expected,
}

/// Sixty records in several files, a seal behind each ten, and `loose` records behind the last.
fn chain(sealer: &Sealer, loose: u64) -> Chain {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), 6000).unwrap();
    let mut anchor = None;
    for number in 1..=6 {
        for _ in 0..9 {
            log.record_blocking(event("resolve")).unwrap();
        }
        anchor = Some(sealer.seal(&log, number));
    }
    for _ in 0..loose {
        log.record_blocking(event("create")).unwrap();
    }
    let head = log.head();
    drop(log);
    let files = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name() != "lock")
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect();
    Chain {
        files,
        expected: Expected {
            keys: vec![sealer.key.clone()],
            seal: anchor,
            head,
            sealed: false,
        },
    }
}

type Files = BTreeMap<String, Vec<u8>>;

fn checked(files: &Files, expected: &Expected) -> Result<Verified, AuditError> {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    verify_against(dir.path(), expected)
}

/// Numbers that are the same in each run (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap() % bound
    }
}

/// All lines with their files, so that they can be changed and put back.
fn split(files: &Files) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (name, bytes) in files {
        let text = String::from_utf8(bytes.clone()).unwrap();
        all.extend(text.lines().map(|line| (name.clone(), line.to_owned())));
    }
    all
}

fn joined(lines: &[(String, String)], files: &Files) -> Files {
    let mut all: Files = files
        .keys()
        .map(|name| (name.clone(), Vec::new()))
        .collect();
    for (name, line) in lines {
        let bytes = all.get_mut(name).unwrap();
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
    }
    // A file behind the end would not be there either.
    while all.len() > 1 && all.last_entry().is_some_and(|last| last.get().is_empty()) {
        all.pop_last();
    }
    all
}

/// Gives the lines from one on new numbers and hashes, and puts the new hashes where a seal names
/// the old ones: all that whoever has no key can do.
fn recompute(lines: &mut [(String, String)], from: usize) {
    let mut renamed: Vec<(String, String)> = Vec::new();
    for index in from..lines.len() {
        let prev = match index.checked_sub(1) {
            Some(before) => lines[before].1[lines[before].1.len() - 66..][..64].to_owned(),
            None => "0".repeat(64),
        };
        let line = &lines[index].1;
        let old = line[line.len() - 66..][..64].to_owned();
        let body = &line[..line.rfind(",\"prev\":\"").unwrap()];
        let rest = &body[body.find(',').unwrap()..];
        let mut body = format!("{{\"seq\":{}{rest}", index + 1);
        for (old, new) in &renamed {
            body = body.replace(old, new);
        }
        body.push_str(&format!(",\"prev\":\"{prev}\""));
        let hash = hex::encode(Sha256::digest(&body));
        lines[index].1 = format!("{body},\"hash\":\"{hash}\"}}");
        renamed.push((old, hash));
    }
}

/// File, line, sequence number and the last record that is certainly good, as an error names them.
fn place(error: &AuditError) -> (String, u64, Option<u64>, Option<u64>) {
    use AuditError as E;
    let (file, line, seq, after) = match error {
        E::Malformed { file, line, seq } => (file, *line, *seq, None),
        E::Altered {
            file, line, seq, ..
        }
        | E::Unchained {
            file, line, seq, ..
        } => (file, *line, Some(*seq), None),
        E::MissingRecords {
            file,
            line,
            expected,
            ..
        }
        | E::Reordered {
            file,
            line,
            expected,
            ..
        } => (file, *line, Some(*expected), None),
        E::WrongSeal {
            file,
            line,
            seq,
            after,
            ..
        }
        | E::Another {
            file,
            line,
            seq,
            after,
            ..
        } => (file, *line, Some(*seq), Some(*after)),
        E::CutOff {
            file, line, seq, ..
        }
        | E::Unsealed { file, line, seq } => (file, *line, Some(*seq), None),
        E::TornTail { file, line, .. } => (file, *line, None, None),
        E::MissingFile { file } => (file, 0, None, None),
        other => panic!("no place: {other}"),
    };
    let name = file.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(error.to_string().contains(&name), "{error}");
    if line > 0 {
        assert!(
            error.to_string().contains(&format!("line {line}")),
            "{error}"
        );
    }
    (name, line, seq, after)
}

/// Where the first line is that is another than it was; the last line where only some are missing.
fn first_difference(before: &[(String, String)], now: &[(String, String)]) -> (String, u64) {
    let differs = now
        .iter()
        .zip(before)
        .position(|(now, before)| now != before)
        .unwrap_or_else(|| now.len().min(before.len()));
    let at = differs.min(now.len().saturating_sub(1));
    let name = now[at].0.clone();
    let line = now[..=at].iter().filter(|line| line.0 == name).count();
    (name, line.try_into().unwrap())
}

#[test]
fn a_thousand_mutations_are_each_told_of_with_their_place() {
    let sealer = Sealer::new();
    let chain = chain(&sealer, 7);
    let good = checked(&chain.files, &chain.expected).unwrap();
    assert_eq!((good.records, good.sealed.seals), (67, 6));
    assert!(good.sealed.verified && good.files > 3, "{good:?}");
    let lines = split(&chain.files);
    let mut dice = Dice(SEED);
    let mut kinds = [0; 9];
    for turn in 0..1000 {
        let kind = dice.below(kinds.len());
        kinds[kind] += 1;
        let mut changed = lines.clone();
        let mut files = chain.files.clone();
        let at = dice.below(lines.len());
        // What must be named: the exact line, or where a recomputed record lies in between.
        let mut recomputed = None;
        let mut exact = None;
        match kind {
            0 => {
                let index = dice.below(files.len());
                let name = files.keys().nth(index).unwrap().clone();
                let bytes = files.get_mut(&name).unwrap();
                let byte = dice.below(bytes.len());
                let line = bytes[..byte].iter().filter(|byte| **byte == b'\n').count() + 1;
                bytes[byte] ^= u8::try_from(1 + dice.below(255)).unwrap();
                exact = Some((name, u64::try_from(line).unwrap()));
            }
            1 => drop(changed.remove(at)),
            2 => {
                // One that is there already, elsewhere.
                let copy = lines[dice.below(lines.len())].1.clone();
                if copy == lines[at].1 {
                    changed.swap(0, 1);
                } else {
                    changed.insert(at, (lines[at].0.clone(), copy));
                }
            }
            3 => {
                let other = (at + 1 + dice.below(lines.len() - 1)) % lines.len();
                let (one, two) = (lines[at].1.clone(), lines[other].1.clone());
                changed[at].1 = two;
                changed[other].1 = one;
            }
            4 => {
                // Any record, also after the last seal, and everything after it anew.
                changed[at].1 = changed[at]
                    .1
                    .replace("\"request\":\"0f5c\"", "\"request\":\"0f5d\"");
                changed[at].1 = changed[at]
                    .1
                    .replace("\"action\":\"audit-seal\"", "\"action\":\"audit-sea1\"");
                recompute(&mut changed, at);
                recomputed = Some(at);
            }
            5 => {
                changed.remove(at);
                recompute(&mut changed, at);
                recomputed = Some(at);
            }
            6 => {
                // The end is cut off, down to a seal too.
                changed.truncate(1 + dice.below(lines.len() - 1));
            }
            7 => {
                changed.truncate(1 + dice.below(lines.len() - 1));
                files = joined(&changed, &chain.files);
                let mut last = files.last_entry().unwrap();
                let length = last.get().len();
                let short = length - 1 - dice.below(100);
                last.get_mut().truncate(short);
            }
            _ => {
                let name = files.keys().nth(dice.below(files.len())).unwrap().clone();
                files.remove(&name);
            }
        }
        if !matches!(kind, 0 | 7 | 8) {
            files = joined(&changed, &chain.files);
        }
        let what = format!("seed {SEED:#x}, turn {turn}, kind {kind}, line {at}");
        let Err(error) = checked(&files, &chain.expected) else {
            panic!("{what}: not seen");
        };
        let (name, line, seq, after) = place(&error);
        if let Some(exact) = exact {
            assert_eq!((name, line), exact, "{what}: {error}");
        } else if let Some(index) = recomputed {
            let record = u64::try_from(index).unwrap() + 1;
            match (seq, after) {
                (Some(seq), Some(after)) => {
                    assert!(after < record && record <= seq, "{what}: {error}");
                }
                // The last one was taken out.
                _ => assert!(
                    matches!(error, AuditError::CutOff { .. }),
                    "{what}: {error}"
                ),
            }
        } else if matches!(kind, 1 | 2 | 3 | 6) {
            let first = first_difference(&lines, &split(&files));
            assert_eq!((name, line), first, "{what}: {error}");
        }
    }
    assert!(kinds.iter().all(|count| *count > 50), "{kinds:?}");
}

#[test]
fn a_log_that_was_sealed_to_its_end_needs_no_head() {
    let sealer = Sealer::new();
    let mut chain = chain(&sealer, 0);
    chain.expected.head = None;
    chain.expected.sealed = true;
    let good = checked(&chain.files, &chain.expected).unwrap();
    assert_eq!(good.sealed.unsealed, 0, "{good:?}");
    // A record that fits, behind the last seal.
    let mut lines = split(&chain.files);
    let (name, first) = lines[0].clone();
    let last = lines.last().unwrap().0.clone();
    assert_ne!(name, last);
    lines.push((last, first));
    let index = lines.len() - 1;
    recompute(&mut lines, index);
    let found = checked(&joined(&lines, &chain.files), &chain.expected);
    let Err(AuditError::Unsealed { seq: 61, .. }) = found else {
        panic!("{found:?}");
    };
    // Without the key the seals are only counted; another key has made none of them.
    chain.expected.keys.clear();
    assert!(
        !checked(&chain.files, &chain.expected)
            .unwrap()
            .sealed
            .verified
    );
    chain.expected.keys.push(Sealer::new().key);
    let found = checked(&chain.files, &chain.expected);
    assert!(
        matches!(found, Err(AuditError::WrongSeal { number: 1, .. })),
        "{found:?}"
    );
}

#[test]
fn a_cut_back_to_an_older_seal_shows_by_the_anchor_alone() {
    let sealer = Sealer::new();
    let chain = chain(&sealer, 0);
    let lines = split(&chain.files);
    let cut = joined(&lines[..50], &chain.files);
    let known = |seal: Option<Anchor>| Expected {
        keys: vec![sealer.key.clone()],
        seal,
        head: None,
        sealed: true,
    };
    // It is sealed to its end, and nothing in it is wrong.
    assert_eq!(checked(&cut, &known(None)).unwrap().sealed.seals, 5);
    for text in [
        "6".to_owned(),
        chain.expected.seal.as_ref().unwrap().to_string(),
    ] {
        let found = checked(&cut, &known(Some(text.parse().unwrap())));
        let Err(error @ AuditError::CutOff { seq: 50, .. }) = found else {
            panic!("{found:?}");
        };
        assert!(error.to_string().contains("seal 6"), "{error}");
    }
}

#[test]
fn old_files_go_only_when_they_are_sealed_and_the_chain_says_where_it_begins() {
    let sealer = Sealer::new();
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), 2000).unwrap();
    let now = std::time::SystemTime::now();
    for _ in 0..30 {
        log.record_blocking(event("resolve")).unwrap();
    }
    let files = verify(dir.path()).unwrap().files;
    assert!(files > 5, "{files}");
    let keep = Keep {
        time: None,
        files: Some(2),
    };
    // Nothing is sealed.
    assert_eq!(removable(dir.path(), keep, 0, now).unwrap(), None);
    let covered = log.head().unwrap().seq;
    let anchor = sealer.seal(&log, 1);
    // Nothing is old enough.
    let young = Keep {
        time: Some(std::time::Duration::from_secs(3600)),
        files: None,
    };
    assert_eq!(removable(dir.path(), young, covered, now).unwrap(), None);
    // A seal that covers the half lets the half go.
    let half = removable(dir.path(), keep, 15, now).unwrap().unwrap();
    assert!(half.begins.seq <= 15 && half.count() > 1, "{half:?}");
    let removal = removable(dir.path(), keep, covered, now).unwrap().unwrap();
    let mut record = event("audit-retention");
    record.chain = Some(Box::new(ChainMark::Begins(removal.begins.clone())));
    log.record_blocking(record).unwrap();
    remove(dir.path(), &removal).unwrap();
    drop(log);
    let expected = Expected {
        keys: vec![sealer.key.clone()],
        seal: Some(anchor),
        ..Expected::default()
    };
    let verified = verify_against(dir.path(), &expected).unwrap();
    assert_eq!(verified.first, removal.begins.seq + 1);
    // It goes on, and one file more that is missing shows.
    let log = open(dir.path(), 2000).unwrap();
    log.record_blocking(event("resolve")).unwrap();
    drop(log);
    verify_against(dir.path(), &expected).unwrap();
    let oldest = dir
        .path()
        .join(format!("audit-{:08}.jsonl", removal.begins.file));
    fs::remove_file(&oldest).unwrap();
    let found = verify_against(dir.path(), &expected);
    let Err(AuditError::MissingFile { file }) = found else {
        panic!("{found:?}");
    };
    assert_eq!(file, oldest);
}

#[test]
fn a_file_that_is_old_is_followed_by_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        rotate_after: Some(std::time::Duration::from_millis(30)),
        ..Options::default()
    };
    let log = AuditLog::open(dir.path(), "a", options).unwrap();
    log.record_blocking(event("resolve")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(40));
    log.record_blocking(event("resolve")).unwrap();
    drop(log);
    assert_eq!(verify(dir.path()).unwrap().files, 2);
}
