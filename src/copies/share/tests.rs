use super::*;
use crate::copies::secret::{TransportKey, split};

const PASSPHRASE: &str = "correct horse battery staple";

fn phrase(text: &str) -> SecretString {
    SecretString::from(text.to_owned())
}

fn head(number: u8) -> ShareHead {
    ShareHead {
        ceremony: Uuid::from_bytes([7; 16]),
        label: "TAPE \"2026\": Ä".parse().unwrap(),
        kek: KekHash::of_spki(b"a public key"),
        number,
        quorum: Quorum::new(2, 3).unwrap(),
    }
}

fn made() -> (Share, Point) {
    let key = TransportKey::new().unwrap();
    let point = split(&key, head(2).quorum).unwrap().remove(1);
    let share = Share::seal(head(2), &point, &phrase(PASSPHRASE)).unwrap();
    (share, point)
}

/// The text with a line replaced, and the checksum made right again.
fn with(text: &str, name: &str, value: &str) -> String {
    let mut lines: Vec<(String, String)> = text
        .lines()
        .filter(|line| !line.starts_with("-----") && !line.starts_with("Checksum"))
        .map(|line| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_owned(), value.to_owned())
        })
        .collect();
    lines.iter_mut().find(|line| line.0 == name).unwrap().1 = value.to_owned();
    let sum = checksum(lines.iter().map(|(a, b)| (a.as_str(), b.as_str())));
    let body: String = lines.iter().map(|(a, b)| format!("{a}: {b}\n")).collect();
    format!("{BEGIN}\n{body}Checksum: {sum}\n{END}\n")
}

#[test]
fn a_share_comes_back_from_its_text() {
    let (share, point) = made();
    let text = share.to_text();
    assert!(text.lines().all(|line| line.len() <= 90), "{text}");
    let read = Share::parse(&text).unwrap();
    assert_eq!(read, share);
    assert_eq!(read.head(), &head(2));
    assert!(text.contains(&format!("Checksum: {}", share.fingerprint())));
    let opened = read.open(&phrase(PASSPHRASE)).unwrap();
    assert_eq!((opened.x, &*opened.y), (2, &*point.y));
    // The value is nowhere in it.
    assert!(!text.contains(&hex::encode(&point.y[..8])));
}

#[test]
fn what_a_typist_or_a_mail_program_does_to_it_is_harmless() {
    let (share, _) = made();
    let text = share.to_text().replace('\n', "\r\n");
    let letter = format!(
        "Dear holder,\n\n  {}\nregards\n",
        text.replace('\n', "\n   ")
    );
    assert_eq!(Share::parse(&letter).unwrap(), share);
}

#[test]
fn another_passphrase_opens_nothing() {
    let (share, _) = made();
    assert_eq!(
        share
            .open(&phrase("correct horse battery stable"))
            .unwrap_err(),
        ShareError::Passphrase
    );
    let (_, point) = made();
    assert_eq!(
        Share::seal(head(2), &point, &phrase("short")).unwrap_err(),
        ShareError::Short { got: 5 }
    );
}

#[test]
fn a_share_whose_head_was_changed_does_not_open() {
    let (share, _) = made();
    let text = share.to_text();
    for (name, value) in [
        ("Ceremony", "00000000-0000-4000-8000-000000000000"),
        ("KEK-Label", "\"ANOTHER\""),
        ("Share", "3"),
        ("Of", "2"),
    ] {
        let forged = Share::parse(&with(&text, name, value)).unwrap();
        assert_eq!(
            forged.open(&phrase(PASSPHRASE)).unwrap_err(),
            ShareError::Passphrase,
            "{name}"
        );
    }
}

#[test]
fn malformed_shares_are_named_after_their_defect() {
    let (share, _) = made();
    let text = share.to_text();
    let sum = share.fingerprint();
    let line = |name: &str| {
        let begins = format!("{name}: ");
        let line = text.lines().find(|line| line.starts_with(&begins)).unwrap();
        format!("{line}\n")
    };
    let cases: Vec<(&str, String, ShareError)> = vec![
        ("empty", String::new(), ShareError::NoBegin),
        ("not a share", "hello".to_owned(), ShareError::NoBegin),
        (
            "cut off in the middle",
            text.lines()
                .take(9)
                .map(|line| format!("{line}\n"))
                .collect(),
            ShareError::NoEnd,
        ),
        (
            "a line without a colon",
            text.replace("Share: 2", "Share 2"),
            ShareError::Line { line: 6 },
        ),
        (
            "two lines changed places",
            text.replace("Needed: 2\nOf: 3", "Of: 3\nNeeded: 2"),
            ShareError::Order {
                line: 7,
                expected: "Needed",
                got: "Of".to_owned(),
            },
        ),
        (
            "no checksum",
            text.replace(&line("Checksum"), ""),
            ShareError::Missing { name: "Checksum" },
        ),
        (
            "a line too many",
            text.replace(END, &format!("More: 1\n{END}")),
            ShareError::Order {
                line: 15,
                expected: END,
                got: "More".to_owned(),
            },
        ),
        (
            "another version",
            with(&text, "Version", "2"),
            ShareError::Version {
                got: "2".to_owned(),
            },
        ),
        (
            "a KDF that takes all memory",
            with(&text, "KDF", "argon2id v=19 m=4294967295 t=3 p=1"),
            ShareError::Cost,
        ),
        (
            "a KDF that takes all day",
            with(&text, "KDF", "argon2id v=19 m=65536 t=4000000000 p=1"),
            ShareError::Cost,
        ),
    ];
    for (defect, text, expected) in cases {
        assert_eq!(Share::parse(&text).unwrap_err(), expected, "{defect}");
    }
    let mistyped = text.replace("Of: 3", "Of: 4");
    match Share::parse(&mistyped).unwrap_err() {
        ShareError::Checksum { got, computed } => {
            assert_eq!(got, sum);
            assert_ne!(computed, sum);
        }
        other => panic!("{other}"),
    }
    for (name, value) in [
        ("Ceremony", "not-a-uuid"),
        ("KEK-Label", "TAPE2026"),
        ("KEK-Label", "\"\""),
        ("KEK-Hash", "12"),
        ("Share", "0"),
        ("Share", "4"),
        ("Needed", "1"),
        ("Of", "300"),
        ("KDF", "scrypt n=2"),
        ("Salt", "00"),
        ("Nonce", "zz"),
        ("Sealed-A", ""),
        ("Sealed-B", "00"),
    ] {
        match Share::parse(&with(&text, name, value)) {
            Err(ShareError::Value { .. }) => {}
            other => panic!("{name}: {value}: {other:?}"),
        }
    }
}
