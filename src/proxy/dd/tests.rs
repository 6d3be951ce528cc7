//! DD statements: spelling, faults with their position, and hostile texts.

use proptest::prelude::*;

use super::*;

fn read(given: &str) -> (Vec<String>, Disp, u16) {
    let dd: Dd = given.parse().unwrap();
    let keks = dd.labels.iter().flat_map(|labels| {
        std::iter::once(&labels.kek1)
            .chain(&labels.kek2)
            .map(|kek| kek.value.to_string())
    });
    (keks.collect(), dd.disp(), dd.file())
}

#[test]
fn statements_are_read_as_jcl_spells_them() {
    for (given, keks, disp, file) in [
        ("", [].as_slice(), Disp::New, 1),
        ("DISP=OLD", &[], Disp::Old, 1),
        ("disp=shr", &[], Disp::Old, 1),
        ("DISP=(NEW,KEEP)", &[], Disp::New, 1),
        ("DISP=(,CATLG,DELETE)", &[], Disp::New, 1),
        ("DISP=(MOD)", &[], Disp::Mod, 1),
        ("DISP=(OLD,PASS,)", &[], Disp::Old, 1),
        ("FILESEQ=65535", &[], Disp::New, 65535),
        ("LABEL=(3,SL)", &[], Disp::New, 3),
        ("LABEL=4", &[], Disp::New, 4),
        ("LABEL=(0,SL)", &[], Disp::New, 1),
        ("LABEL=(,SL)", &[], Disp::New, 1),
        ("LABEL=(,SL),FILESEQ=2", &[], Disp::New, 2),
        ("LABEL=EXPDT=99365", &[], Disp::New, 1),
        ("LABEL=(2,AL,NOPWREAD,OUT,RETPD=30)", &[], Disp::New, 2),
        ("LABEL=(2,AL,,,EXPDT=2026/365)", &[], Disp::New, 2),
        ("KEYLABL1=TAPE2026A", &["TAPE2026A:label"], Disp::New, 1),
        (
            "keylabl1=tape2026a,keyencd1=h",
            &["TAPE2026A:hash"],
            Disp::New,
            1,
        ),
        (
            "KEYENCD1=L,KEYLABL1=SITE.KEK:1",
            &["SITE.KEK:1:label"],
            Disp::New,
            1,
        ),
        (
            "  KEYLABL1='a b',KEYENCD1=H,KEYLABL2='it''s (one, two)=&',KEYENCD2=L,DISP=MOD ",
            &["a b:hash", "it's (one, two)=&:label"],
            Disp::Mod,
            1,
        ),
        ("KEYLABL1='ключ'", &["ключ:label"], Disp::New, 1),
    ] {
        let (got, got_disp, got_file) = read(given);
        // Labels compare without case; how they were taken matters here.
        assert_eq!(got, keks, "{given}");
        assert_eq!((got_disp, got_file), (disp, file), "{given}");
    }
    let longest = format!(
        "KEYLABL1='{}',KEYLABL2='{}'",
        "''".repeat(64),
        "''".repeat(64)
    );
    assert_eq!(read(&longest).0.len(), 2);
}

#[test]
fn faults_are_told_with_their_position() {
    for (given, position, text) in [
        ("DSN=A.B", 1, "\"DSN\" is none of KEYLABL1"),
        ("DISP=NEW,DCB=X", 10, "\"DCB\""),
        ("KEYLABL1", 9, "expected = and a value, got the end"),
        ("KEYLABL1=", 10, "expected a label"),
        ("KEYLABL1=,DISP=NEW", 10, "expected a label"),
        ("KEYLABL1=A B", 11, "a blank"),
        ("KEYLABL1=A, KEYENCD1=H", 12, "a blank"),
        ("  KEYLABL1=A, KEYENCD1=H", 14, "a blank"),
        ("KEYLABL1=É", 10, "in apostrophes"),
        ("KEYLABL1=A=B", 11, "in apostrophes"),
        (
            "KEYLABL1='A'B",
            13,
            "expected a comma before the next operand, got 'B'",
        ),
        ("KEYLABL1='A", 10, "not closed"),
        ("KEYLABL1='A''", 10, "not closed"),
        ("KEYLABL1=''", 10, "blank"),
        ("KEYLABL1='a\tb'", 10, "control character"),
        (
            "KEYLABL1=A,",
            12,
            "expected a keyword such as KEYLABL1, got the end",
        ),
        (",KEYLABL1=A", 1, "expected a keyword"),
        (
            "KEYLABL1=A,KEYENCD1=X",
            21,
            "expected L (label) or H (hash), got \"X\"",
        ),
        ("KEYLABL1=A,KEYENCD1=hash", 21, "\"HASH\""),
        ("KEYENCD1=H", 1, "KEYENCD1 without KEYLABL1"),
        ("KEYLABL1=A,KEYENCD2=H", 12, "KEYENCD2 without KEYLABL2"),
        ("DISP=NEW,KEYLABL2=A", 10, "KEYLABL2 without KEYLABL1"),
        (
            "KEYLABL1=A,KEYLABL1=B",
            12,
            "KEYLABL1 is given a second time",
        ),
        ("FILESEQ=2,LABEL=(2,SL)", 11, "second time"),
        ("DISP=", 6, "expected NEW, OLD, SHR or MOD, got \"\""),
        ("DISP=(", 7, "closing parenthesis"),
        ("DISP=(NEW,KEEP", 15, "closing parenthesis, got the end"),
        ("DISP=(NEW,EAT)", 11, "DELETE, KEEP"),
        ("DISP=(NEW,KEEP,PASS)", 16, "DELETE, KEEP"),
        ("DISP=(NEW,KEEP,KEEP,KEEP)", 21, "at most"),
        ("DISP=NEWER", 6, "\"NEWER\""),
        ("FILESEQ=0", 9, "1 to 65535"),
        ("FILESEQ=65536", 9, "1 to 65535"),
        ("FILESEQ=+1", 9, "1 to 65535"),
        ("FILESEQ=", 9, "1 to 65535"),
        ("LABEL=(1,XL)", 10, "type SL"),
        ("LABEL=(1,SL,,IN,X)", 17, "EXPDT="),
        ("LABEL=()", 8, "1 to 65535"),
    ] {
        let error = given.parse::<Dd>().unwrap_err();
        assert_eq!(error.position, position, "{given}: {error}");
        assert!(error.to_string().contains(text), "{given}: {error}");
    }
    let long = format!("KEYLABL1={}", "A".repeat(65));
    let error = long.parse::<Dd>().unwrap_err();
    assert!(error.to_string().contains("at most 64"), "{error}");
    let error = "A".repeat(2_000_000).parse::<Dd>().unwrap_err();
    assert_eq!((error.position, error.fault), (1025, DdFault::TooLong));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(given in any::<String>()) {
        let _ = given.parse::<Dd>();
    }

    /// Texts of the pieces that statements are made of get further in.
    #[test]
    fn no_statement_makes_it_panic(
        pieces in prop::collection::vec(
            prop::sample::select(vec![
                "KEYLABL1=", "KEYENCD1=", "KEYLABL2=", "KEYENCD2=", "DISP=", "FILESEQ=", "LABEL=",
                ",", "(", ")", "'", "''", "=", " ", "A", "h", "L", "NEW", "MOD", "KEEP", "3", "SL",
                "é", "\u{0}", "99999999999999999999", "EXPDT=",
            ]),
            0..40,
        )
    ) {
        let given = pieces.concat();
        if let Err(error) = given.parse::<Dd>() {
            prop_assert!((1..=given.chars().count() + 1).contains(&error.position));
            prop_assert!(!error.to_string().contains(char::is_control));
        }
    }

    /// Any label survives its apostrophes.
    #[test]
    fn a_quoted_label_is_read_back(label in "[^\\p{Cc}]{1,64}", hash: bool) {
        let Ok(wanted) = label.parse::<KeyLabel>() else { return Ok(()) };
        let encoding = if hash { "H" } else { "L" };
        let given = format!("KEYLABL1='{}',KEYENCD1={encoding}", label.replace('\'', "''"));
        let dd: Dd = given.parse().unwrap();
        let kek = dd.labels.unwrap().kek1.value;
        prop_assert_eq!(kek.label.as_str(), wanted.as_str());
        prop_assert_eq!(kek.encoding == Encoding::Hash, hash);
    }
}
