//! The job's policy: what the host decides is put to a real server, and the command line that
//! explains it.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use ekm::api::{CreateRequest, EedkInAnswer, ResolveRequest};
use ekm::client::{ClientError, KeyClient};
use ekm::problem::EkmCode;
use ekm::proxy::{Asks, Decision, HostConfig, Job, Loaded};
use serde_json::Value;
use uuid::Uuid;

use crate::door::{House, HouseDrive};
use crate::support::EKM;

const HOST: &str = r#"
[[data_classes]]
name = "CLEAR"
format = "EFMT4"
keylabl1 = "CLASS"

[[data_classes]]
name = "BARE"
format = "EEFMT4"

[[data_classes]]
name = "ONE"
format = "EEFMT4"
keylabl1 = "CLASS"

[[data_classes]]
name = "TWO"
format = "EEFMT4"
keylabl1 = "CLASS"
keylabl2 = "CLASS2"
keyencd2 = "H"

[[volume_ranges]]
first = "VOL100"
last = "VOL199"
keylabl1 = "RANGE"
keyencd1 = "H"
"#;

fn decide(class: &str, dd: &str, volser: &str, loaded: Loaded) -> Decision {
    let host = HostConfig::parse(Path::new("host.toml"), HOST).unwrap();
    let job = Job {
        data_class: Some(&class.parse().unwrap()),
        dd: &dd.parse().unwrap(),
        volser: Some(&volser.parse().unwrap()),
        loaded,
    };
    host.decide(&job).unwrap()
}

/// The request that a decision yields, put to the server.
async fn created(
    client: &mut KeyClient,
    drive: &HouseDrive,
    volser: &str,
    decision: &Decision,
) -> Result<ekm::api::CreateAnswer, ClientError> {
    let Asks::Create { kek1, kek2 } = decision.asks() else {
        panic!("no create: {decision:?}");
    };
    let request = CreateRequest {
        job: None,
        volser: volser.parse().unwrap(),
        kek1: kek1.clone(),
        kek2: kek2.clone(),
        ..drive.create()
    };
    client.create(&request).await
}

fn keks(eedks: &[EedkInAnswer]) -> String {
    let keks: Vec<String> = eedks
        .iter()
        .map(|eedk| format!("{}:{}", eedk.label.as_ref().unwrap(), eedk.encoding))
        .collect();
    keks.join(" ")
}

/// DD statement, data class, volume range, drive, defaults: the KEKs that come out.
#[tokio::test(flavor = "multi_thread")]
async fn the_keks_of_a_cartridge_are_those_of_the_first_level_that_names_any() {
    let house = House::bare(
        "",
        "[[policy.peers]]\npeer = \"proxy:host1\"\ndrives = [\"*\"]\ncreate_keks = [\"*\"]",
    );
    for label in [
        "GLOBAL", "GLOBAL2", "ROW", "ROW2", "CLASS", "CLASS2", "JOB", "RANGE",
    ] {
        house.done(&["kek", "generate", label, "--bits", "2048"]);
    }
    house.done(&[
        "kek",
        "default",
        "--kek1",
        "GLOBAL:hash",
        "--kek2",
        "GLOBAL2",
    ]);
    let (plain, one, two) = (house.drive(1), house.drive(2), house.drive(3));
    let output = house.run(&["drive", "mod", one.serial.as_str(), "--kek1", "ROW:hash"]);
    let warned = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{warned}");
    assert!(warned.contains("(--kek2 GLOBAL2"), "{warned}");
    house.done(&[
        "drive",
        "mod",
        two.serial.as_str(),
        "--kek1",
        "ROW",
        "--kek2",
        "ROW2:hash",
    ]);
    let serving = house.serve().await;
    let mut client = house.client_of(&serving, &house.identity("proxy", "host1"));

    for (drive, class, dd, volser, expected) in [
        (
            &two,
            "TWO",
            "KEYLABL1=JOB,KEYENCD1=H,DISP=NEW",
            "VOL100",
            "JOB:hash",
        ),
        (
            &two,
            "TWO",
            "KEYLABL1=JOB,KEYLABL2=RANGE,KEYENCD2=H",
            "VOL100",
            "JOB:label RANGE:hash",
        ),
        (&two, "TWO", "DISP=NEW", "VOL100", "CLASS:label CLASS2:hash"),
        (&two, "ONE", "DISP=NEW", "VOL100", "CLASS:label"),
        (&two, "BARE", "KEYLABL1=job", "VOL100", "JOB:label"),
        (&two, "BARE", "DISP=NEW", "VOL100", "RANGE:hash"),
        (&two, "BARE", "DISP=NEW", "VOL300", "ROW:label ROW2:hash"),
        (&one, "BARE", "DISP=NEW", "VOL300", "ROW:hash"),
        (
            &plain,
            "BARE",
            "DISP=NEW",
            "VOL300",
            "GLOBAL:hash GLOBAL2:label",
        ),
        (&plain, "BARE", "DISP=NEW", "VOL199", "RANGE:hash"),
        (&plain, "ONE", "DISP=NEW", "VOL300", "CLASS:label"),
    ] {
        // What a scratch cartridge holds decides nothing.
        let decision = decide(class, dd, volser, Loaded::Encrypted);
        let answer = created(&mut client, drive, volser, &decision)
            .await
            .unwrap();
        assert_eq!(keks(&answer.eedks), expected, "{class} {dd} {volser}");
    }

    // A later file: the same data key, whatever the job names.
    let decision = decide("TWO", "DISP=NEW", "VOL100", Loaded::Clear);
    let written = created(&mut client, &plain, "VOL100", &decision)
        .await
        .unwrap();
    for (dd, more) in [
        ("DISP=MOD,KEYLABL1=JOB", true),
        ("LABEL=(2,SL)", true),
        ("DISP=OLD", false),
    ] {
        let decision = decide("BARE", dd, "VOL100", Loaded::Encrypted);
        assert_eq!(decision.asks(), &Asks::Resolve { append: more });
        let request = ResolveRequest {
            dki: None,
            request_id: Uuid::new_v4(),
            drive: plain.create().drive,
            volser: Some("VOL100".parse().unwrap()),
            eedks: written.eedks.iter().map(|eedk| eedk.eedk.clone()).collect(),
            append: more,
        };
        let resolved = client.resolve(&request).await.unwrap();
        assert_eq!(resolved.dki, written.dki, "{dd}");
    }
    assert_eq!(
        decide("TWO", "DISP=MOD", "VOL100", Loaded::Clear).asks(),
        &Asks::Nothing
    );
    assert_eq!(
        decide("CLEAR", "KEYLABL1=JOB", "VOL100", Loaded::Encrypted).asks(),
        &Asks::Nothing
    );

    // Nobody names a label.
    house.done(&["kek", "default", "--none"]);
    let decision = decide("BARE", "DISP=NEW", "VOL300", Loaded::Unknown);
    match created(&mut client, &plain, "VOL300", &decision).await {
        Err(ClientError::Refused(problem)) => {
            assert_eq!(problem.code, EkmCode::EE31, "{problem}");
            assert!(problem.detail.contains("no key label"), "{problem}");
        }
        other => panic!("{other:?}"),
    }
    serving.stop();
}

/// A host: a directory with the example as its file, and no server.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        let example = host.run(&["config", "example", "--host"], &[]);
        std::fs::write(host.0.path().join("host.toml"), example.stdout).unwrap();
        host
    }

    fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        Command::new(EKM)
            .args(arguments)
            .current_dir(self.0.path())
            .env_remove("EKM_CONFIG")
            .env_remove("EKM_HOST_CONFIG")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// What it says, both ways out, when it ends with that code.
    fn says(&self, code: i32, arguments: &[&str]) -> String {
        self.says_with(code, arguments, &[])
    }

    fn says_with(&self, code: i32, arguments: &[&str], variables: &[(&str, &str)]) -> String {
        let output = self.run(arguments, variables);
        let text = format!(
            "{}{}",
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap()
        );
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        text
    }

    fn explain(&self, code: i32, arguments: &[&str]) -> String {
        self.says(code, &[&["tape", "policy", "explain"], arguments].concat())
    }
}

#[test]
fn explain_says_what_is_asked_and_which_line_decided() {
    let host = Host::new();
    let text = host.explain(
        0,
        &[
            "--data-class",
            "secure",
            "--dd",
            "KEYLABL1='Partner 7',KEYENCD1=H,DISP=(NEW,KEEP)",
            "--volser",
            "off001",
            "--drive",
            "1013000123",
        ],
    );
    assert_eq!(
        text,
        "\
asks  create under Partner 7 by hash
of    ekm1.example.com:3801, then ekm2.example.com:3801
path  in-band, through this host (drive 001013000123, host.toml:58)
why   --dd, position 33: first file, DISP=NEW: the data class decides on encryption
      host.toml:35: data class SECURE writes EEFMT4 (TS1140), which is encrypted
      --dd, position 1: the DD statement names one label, which serves both EEDKs
      host.toml:36: passed over: the labels of data class SECURE
      host.toml:52: passed over: the labels of the volume range of OFF001
"
    );
    let text = host.explain(0, &["--dd", "KEYLABL1=A"]);
    assert_eq!(
        text,
        "\
asks     nothing; the file is in clear
why      by rule: first file, DISP=NEW: the data class decides on encryption
         by rule: no data class is given, so it is not encrypted
warning  --dd, position 1: the labels of the DD statement have no effect: only a data class encrypts
"
    );
    let text = host.explain(0, &["--data-class", "SECURE", "--dd", "DISP=MOD"]);
    assert!(
        text.contains("resolve if the cartridge is encrypted"),
        "{text}"
    );
    let text = host.explain(
        0,
        &[
            "--data-class",
            "SECURE",
            "--dd",
            "DISP=MOD",
            "--loaded-encrypted",
            "no",
        ],
    );
    assert!(text.starts_with("asks     nothing"), "{text}");
    assert!(
        text.contains("warning  host.toml:35: data class SECURE encrypts, but"),
        "{text}"
    );
    // A drive that is in-band, whose host writes nothing in clear unsaid.
    let in_band = ["--drive", "1013000123", "--volser", "VOL001"];
    let text = host.explain(0, &in_band);
    let last = text.lines().last().unwrap();
    assert!(
        last.contains("refused: this job would write VOL001 in clear"),
        "{text}"
    );
    assert!(!text.contains("the file is in clear"), "{text}");
    let add = ["--data-class", "SECURE", "--dd", "DISP=MOD"];
    let text = host.explain(0, &[&in_band[..], &add[..]].concat());
    assert!(text.contains("in clear, refused: VOL001 is"), "{text}");
    let text = host.explain(0, &[&in_band[..], &["--data-class", "PLAIN"]].concat());
    assert!(!text.contains("refused"), "{text}");

    let text = host.explain(0, &["--dd", "FILESEQ=2", "--loaded-encrypted", "yes"]);
    assert!(text.contains("resolve, to write more"), "{text}");

    let text = host.explain(
        0,
        &["--json", "--data-class", "SECURE0", "--drive", "1013000124"],
    );
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        json["asks"],
        serde_json::json!({"verb": "create", "kek1": null, "kek2": null})
    );
    assert_eq!(json["labels_from"], "key-server");
    assert_eq!(json["reasons"][1]["at"], "host.toml:45");
    assert_eq!(json["drive"]["path"], "out-of-band");
    assert_eq!(json["drive"]["at"], "host.toml:5");
    assert_eq!(json["key_servers"]["servers"][1], "ekm2.example.com:3801");
    let text = host.explain(0, &["--json", "--data-class", "SECURE"]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        json["asks"]["kek2"],
        serde_json::json!({"label": "PARTNER", "encoding": "hash"})
    );
}

#[test]
fn a_wrong_statement_or_host_file_is_told_with_its_place() {
    let host = Host::new();
    for (dd, text) in [
        ("KEYLABL1='A", "position 10: this apostrophe is not closed"),
        ("KEYENCD1=H", "position 1: KEYENCD1 without KEYLABL1"),
        ("KEYLABL2=B", "position 1: KEYLABL2 without KEYLABL1"),
        ("DSN=A", "position 1: \"DSN\" is none of"),
        ("-", "position 1"),
    ] {
        let said = host.explain(2, &["--dd", dd]);
        assert!(said.contains(text), "{dd}: {said}");
    }
    let said = host.explain(2, &["--data-class", "TOOLONGNAME"]);
    assert!(said.contains("1 to 8 characters"), "{said}");
    let said = host.explain(1, &["--data-class", "NONE"]);
    assert!(
        said.contains("host.toml has no data class NONE; it has PLAIN, SECURE, SECURE0"),
        "{said}"
    );

    // What the daemon would refuse to start with is wrong: the certificate is not there yet.
    let check = ["config", "check", "--host", "host.toml"];
    assert!(host.says(3, &check).contains("tls/ca.crt"));
    host.says(0, &["tls", "init"]);
    host.says(0, &["tls", "issue", "host1", "--role", "proxy"]);
    let good = host.says(0, &check);
    let first = "host.toml: good; 3 data class(es), 1 volume range(s), 1 drive(s), 2 key server(s)\nekm proxy run: certificate good until ";
    assert!(good.starts_with(first), "{good}");
    host.says(2, &["config", "check", "ekm.toml", "--host", "host.toml"]);
    let bad = "[[data_classes]]\nname = \"A\"\nformat = \"EEFMT1\"\nkeyencd1 = \"H\"\n";
    std::fs::write(host.0.path().join("bad.toml"), bad).unwrap();
    let said = host.says(3, &["config", "check", "--host", "bad.toml"]);
    assert!(
        said.contains("bad.toml:\n  line 3: data_classes.format: expected EFMT1"),
        "{said}"
    );
    assert!(
        said.contains("\n  line 4: data_classes: KEYENCD1 without KEYLABL1"),
        "{said}"
    );
    let said = host.says(3, &["config", "check", "--host", "bad.toml", "--json"]);
    let json: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(json["faults"].as_array().unwrap().len(), 2);
    let said = host.explain(1, &["--config", "bad.toml"]);
    assert!(said.contains("line 3"), "{said}");
    std::fs::write(host.0.path().join("bad.toml"), "drive = 1\n").unwrap();
    let said = host.says(3, &["config", "check", "--host", "bad.toml"]);
    assert!(said.contains("line 1") && said.contains("drive"), "{said}");
    let said = host.explain(1, &["--config", "none.toml"]);
    assert!(
        said.contains("none.toml") && said.contains("config example --host"),
        "{said}"
    );
}

/// A server's file is on many hosts too, and is never taken for the host's.
#[test]
fn the_hosts_file_is_the_one_named_and_never_a_servers() {
    fn explain<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
        [&["tape", "policy", "explain"], arguments].concat()
    }

    let host = Host::new();
    let class = |name: &str| format!("[[data_classes]]\nname = \"{name}\"\nformat = \"EFMT1\"\n");
    std::fs::write(host.0.path().join("a.toml"), class("A")).unwrap();
    std::fs::write(host.0.path().join("b.toml"), class("B")).unwrap();
    let server = ("EKM_CONFIG", "ekm.toml");
    let text = host.says_with(0, &explain(&["--data-class", "PLAIN"]), &[server]);
    assert!(text.contains("host.toml:31"), "{text}");
    let own = ("EKM_HOST_CONFIG", "a.toml");
    let text = host.says_with(0, &explain(&["--data-class", "A"]), &[server, own]);
    assert!(text.contains("a.toml:3"), "{text}");
    let named = ["--data-class", "B", "--config", "b.toml"];
    let text = host.says_with(0, &explain(&named), &[server, own]);
    assert!(text.contains("b.toml:3"), "{text}");
    let before = [
        "--config",
        "b.toml",
        "tape",
        "policy",
        "explain",
        "--data-class",
        "B",
    ];
    host.says_with(0, &before, &[server, own]);
}
