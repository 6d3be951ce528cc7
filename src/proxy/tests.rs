//! The precedence, as a table of expected values written by hand.

use std::path::Path;

use super::*;

/// Lines are counted in what is expected below.
const HOST: &str = r#"# 1
[[data_classes]]
name = "CLEAR"
format = "EFMT4"

[[data_classes]]
name = "CLEARLAB"
format = "EFMT2"
keylabl1 = "CLASS"

[[data_classes]]
name = "BARE"
format = "EEFMT4"

[[data_classes]]
name = "ONE"
format = "EEFMT2"
keylabl1 = "CLASS"
keyencd1 = "H"

[[data_classes]]
name = "TWO"
format = "EEFMT3"
keylabl1 = "CLASS"
keylabl2 = "CLASS2"
keyencd2 = "H"

[[volume_ranges]]
first = "VOL100"
last = "VOL199"
keylabl1 = "RANGE"
keyencd1 = "H"
keylabl2 = "RANGE2"

[[volume_ranges]]
first = "VOL200"
last = "VOL299"
keylabl1 = "RANGE"
"#;

fn host() -> HostConfig {
    HostConfig::parse(Path::new("host.toml"), HOST).unwrap()
}

fn decide(class: &str, dd: &str, volser: &str, loaded: Loaded) -> Decision {
    let class = (!class.is_empty()).then(|| class.parse().unwrap());
    let volser = (!volser.is_empty()).then(|| volser.parse().unwrap());
    let job = Job {
        data_class: class.as_ref(),
        dd: &dd.parse().unwrap(),
        volser: volser.as_ref(),
        loaded,
    };
    host().decide(&job).unwrap()
}

/// `create`, its labels and where they come from; `resolve`, `append`, `nothing`, …
fn short(decision: &Decision) -> String {
    match decision.asks() {
        Asks::Create { kek1, kek2 } => {
            let keks: String = kek1
                .iter()
                .chain(kek2)
                .map(|kek| {
                    format!(
                        " {}:{}",
                        kek.label,
                        if kek.encoding == crate::key::Encoding::Hash {
                            "H"
                        } else {
                            "L"
                        }
                    )
                })
                .collect();
            let from = match decision.labels_from().unwrap() {
                LabelLevel::Dd => "dd",
                LabelLevel::DataClass => "class",
                LabelLevel::VolumeRange => "range",
                LabelLevel::KeyServer => "server",
            };
            format!("create{keks} by {from}")
        }
        Asks::Resolve { append: false } => "resolve".to_owned(),
        Asks::Resolve { append: true } => "append".to_owned(),
        Asks::ResolveIfEncrypted { append: false } => "resolve?".to_owned(),
        Asks::ResolveIfEncrypted { append: true } => "append?".to_owned(),
        Asks::Nothing => "nothing".to_owned(),
    }
}

#[test]
fn the_first_file_gets_what_the_table_says() {
    for (class, dd, volser, expected) in [
        // No data class, or one that does not encrypt: nothing, whatever names labels.
        ("", "", "", "nothing"),
        ("", "KEYLABL1=JOB", "VOL100", "nothing"),
        ("", "DISP=NEW", "VOL100", "nothing"),
        ("CLEAR", "DISP=NEW", "VOL100", "nothing"),
        (
            "CLEAR",
            "KEYLABL1=JOB,KEYENCD1=H,DISP=NEW",
            "VOL100",
            "nothing",
        ),
        ("CLEARLAB", "DISP=NEW", "", "nothing"),
        // An encrypting one: the first level that names a label.
        ("BARE", "", "", "create by server"),
        ("BARE", "DISP=NEW", "VOL300", "create by server"),
        (
            "BARE",
            "DISP=NEW",
            "VOL100",
            "create RANGE:H RANGE2:L by range",
        ),
        (
            "BARE",
            "DISP=NEW",
            "VOL199",
            "create RANGE:H RANGE2:L by range",
        ),
        ("BARE", "DISP=NEW", "VOL200", "create RANGE:L by range"),
        ("BARE", "DISP=NEW", "VOL10", "create by server"),
        ("BARE", "KEYLABL1=JOB", "", "create JOB:L by dd"),
        (
            "BARE",
            "KEYLABL1=JOB,KEYENCD1=L",
            "VOL100",
            "create JOB:L by dd",
        ),
        (
            "BARE",
            "KEYLABL1=JOB,KEYENCD1=H",
            "VOL100",
            "create JOB:H by dd",
        ),
        ("ONE", "DISP=NEW", "", "create CLASS:H by class"),
        ("ONE", "DISP=NEW", "VOL100", "create CLASS:H by class"),
        ("TWO", "DISP=NEW", "", "create CLASS:L CLASS2:H by class"),
        (
            "TWO",
            "DISP=NEW",
            "VOL100",
            "create CLASS:L CLASS2:H by class",
        ),
        (
            "two",
            "disp=(,catlg)",
            "",
            "create CLASS:L CLASS2:H by class",
        ),
        // One label of the job replaces both of the data class, and their encodings.
        ("ONE", "KEYLABL1=JOB", "", "create JOB:L by dd"),
        ("TWO", "KEYLABL1=JOB", "", "create JOB:L by dd"),
        (
            "TWO",
            "KEYLABL1=JOB,KEYENCD1=H",
            "VOL100",
            "create JOB:H by dd",
        ),
        (
            "ONE",
            "KEYLABL1=JOB,KEYLABL2=JOB2,KEYENCD2=H",
            "",
            "create JOB:L JOB2:H by dd",
        ),
        (
            "TWO",
            "KEYLABL1=JOB,KEYENCD1=H,KEYLABL2=JOB2,KEYENCD2=L",
            "",
            "create JOB:H JOB2:L by dd",
        ),
        (
            "TWO",
            "KEYLABL1=CLASS,KEYENCD1=H",
            "",
            "create CLASS:H by dd",
        ),
        // The first file, said otherwise.
        ("ONE", "FILESEQ=1", "", "create CLASS:H by class"),
        (
            "ONE",
            "LABEL=(1,SL),DISP=(NEW,KEEP)",
            "",
            "create CLASS:H by class",
        ),
    ] {
        // What a scratch cartridge holds does not matter.
        for loaded in [Loaded::Unknown, Loaded::Clear, Loaded::Encrypted] {
            let decision = decide(class, dd, volser, loaded);
            assert_eq!(
                short(&decision),
                expected,
                "{class} {dd} {volser} {loaded:?}"
            );
        }
    }
}

#[test]
fn every_other_file_follows_the_cartridge() {
    for class in ["", "CLEAR", "BARE", "TWO"] {
        for (dd, unknown, clear, encrypted) in [
            ("DISP=NEW,FILESEQ=2", "append?", "nothing", "append"),
            ("LABEL=(65535,SL)", "append?", "nothing", "append"),
            ("DISP=MOD", "append?", "nothing", "append"),
            ("DISP=MOD,FILESEQ=2", "append?", "nothing", "append"),
            ("DISP=MOD,KEYLABL1=JOB", "append?", "nothing", "append"),
            ("DISP=OLD", "resolve?", "nothing", "resolve"),
            (
                "DISP=(OLD,KEEP),FILESEQ=7",
                "resolve?",
                "nothing",
                "resolve",
            ),
            (
                "DISP=SHR,KEYLABL1=JOB,KEYLABL2=JOB2",
                "resolve?",
                "nothing",
                "resolve",
            ),
        ] {
            for (loaded, expected) in [
                (Loaded::Unknown, unknown),
                (Loaded::Clear, clear),
                (Loaded::Encrypted, encrypted),
            ] {
                let decision = decide(class, dd, "VOL100", loaded);
                assert_eq!(short(&decision), expected, "{class} {dd} {loaded:?}");
                assert_eq!(decision.labels_from(), None);
            }
        }
    }
}

/// Where the reasons and the warnings stand, one after another.
fn places(decision: &Decision) -> (String, String) {
    let places = |reasons: &[Reason]| {
        let places: Vec<String> = reasons.iter().map(|reason| reason.at.to_string()).collect();
        places.join("; ")
    };
    (places(decision.reasons()), places(decision.warnings()))
}

#[test]
fn the_line_that_decided_is_named() {
    for (class, dd, volser, loaded, reasons, warnings) in [
        ("", "", "", Loaded::Unknown, "by rule; by rule", ""),
        (
            "",
            "KEYLABL1=JOB,DISP=NEW",
            "VOL250",
            Loaded::Unknown,
            "--dd, position 14; by rule",
            "--dd, position 1; host.toml:38",
        ),
        (
            "CLEARLAB",
            "",
            "",
            Loaded::Unknown,
            "by rule; host.toml:8",
            "host.toml:9",
        ),
        (
            "BARE",
            "DISP=NEW",
            "",
            Loaded::Unknown,
            "--dd, position 1; host.toml:13; by rule",
            "by rule",
        ),
        (
            "BARE",
            "DISP=NEW",
            "VOL300",
            Loaded::Unknown,
            "--dd, position 1; host.toml:13; by rule",
            "",
        ),
        (
            "BARE",
            "",
            "VOL150",
            Loaded::Unknown,
            "by rule; host.toml:13; host.toml:31",
            "",
        ),
        (
            "TWO",
            "DISP=NEW,KEYLABL1=JOB",
            "VOL250",
            Loaded::Encrypted,
            "--dd, position 1; host.toml:23; by rule; --dd, position 10; host.toml:24; host.toml:38",
            "",
        ),
        (
            "TWO",
            "DISP=NEW,LABEL=(2,SL)",
            "",
            Loaded::Clear,
            "--dd, position 10; by rule",
            "host.toml:23",
        ),
        (
            "TWO",
            "DISP=MOD,LABEL=(2,SL)",
            "",
            Loaded::Unknown,
            "--dd, position 1",
            "host.toml:23",
        ),
        (
            "TWO",
            "DISP=MOD",
            "",
            Loaded::Encrypted,
            "--dd, position 1; by rule",
            "",
        ),
        (
            "TWO",
            "DISP=OLD",
            "",
            Loaded::Clear,
            "--dd, position 1; by rule",
            "",
        ),
        (
            "CLEAR",
            "KEYLABL1=JOB,DISP=OLD",
            "",
            Loaded::Encrypted,
            "--dd, position 14; by rule",
            "--dd, position 1",
        ),
    ] {
        let got = places(&decide(class, dd, volser, loaded));
        assert_eq!(
            got,
            (reasons.to_owned(), warnings.to_owned()),
            "{class} {dd} {volser}"
        );
    }
}

#[test]
fn a_data_class_that_is_not_there_is_an_error_for_any_file() {
    for dd in ["DISP=NEW", "DISP=MOD"] {
        let job = Job {
            data_class: Some(&"NONE".parse().unwrap()),
            dd: &dd.parse().unwrap(),
            volser: None,
            loaded: Loaded::Unknown,
        };
        let error = host().decide(&job).unwrap_err().to_string();
        assert_eq!(
            error,
            "host.toml has no data class NONE; it has CLEAR, CLEARLAB, BARE, ONE, TWO"
        );
    }
}
