//! What must hold when things go wrong around a request: a full disk, a
//! bridge that ends, a module that is not there.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ekm::api::{CreateRequest, DriveInRequest};
use ekm::audit::Outcome;
use ekm::bridge::pin::{Handed, PinSource};
use ekm::bridge::supervisor::{Program, TokenState};
use ekm::keystore::Custody;
use ekm::policy::PolicyConfig;
use ekm::problem::EkmCode;
use ekm::store::Defaults;
use rustix::process::{Pid, Signal, kill_process};
use secrecy::SecretString;
use uuid::Uuid;

use crate::support::{Bench, EKM, Hsm, Kind, PIN, TestDrive, drive, lives, wait_for};

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn request(drive: &TestDrive) -> CreateRequest {
    CreateRequest {
        job: None,
        request_id: Uuid::new_v4(),
        drive: DriveInRequest {
            serial: drive.soft.serial().clone(),
            stores_eedks: true,
            public_key: None,
            session_key: None,
        },
        volser: "HARD01".parse().unwrap(),
        kek1: None,
        kek2: None,
    }
}

async fn default_kek(bench: &Bench, label: &str) {
    let defaults = Defaults {
        kek1: Some(label.parse().unwrap()),
        kek2: None,
    };
    bench.store().set_defaults(&defaults).await.unwrap();
}

/// A file system of few bytes, which is soon full; unmounted when dropped.
pub(crate) struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    pub(crate) fn mount(at: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={size},mode=700"),
                "tmpfs",
            ])
            .arg(at)
            .status()
            .is_ok_and(|status| status.success());
        if !mounted {
            assert!(
                std::env::var_os("CI").is_none(),
                "CI must be able to mount a small tmpfs"
            );
            eprintln!("WARNING: SKIPPED, a small tmpfs cannot be mounted here (not root?)");
            return None;
        }
        Some(Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_audit_disk_stops_the_keys() {
    let hsm = Hsm::new(Kind::Embedded, "full").await;
    let root = tempfile::tempdir().unwrap();
    let Some(_disk) = SmallDisk::mount(&root.path().join("audit"), "64k") else {
        return;
    };
    let bench = Bench::at(root, vec![hsm.config("main")], PolicyConfig::default()).await;
    bench.kek("KEK", "main", Custody::Token).await;
    default_kek(&bench, "KEK").await;
    let a = drive(bench.directory.path(), 1, Kind::Embedded.form());
    bench.enrol(&a).await;
    let mut served = Vec::new();
    let refusal = loop {
        assert!(served.len() < 1000, "a disk of 64 KiB took 1000 records");
        let request = request(&a);
        match bench.service.create(&a.peer, &request).await {
            Ok(_) => served.push(request.request_id.to_string()),
            Err(problem) => break problem,
        }
    };
    assert_eq!((refusal.code, refusal.status), (EkmCode::EE0F, 503));
    assert!(!served.is_empty());
    // It stays so, also where a short record might still fit.
    let again = bench.service.create(&a.peer, &request(&a)).await;
    assert_eq!(again.map(drop).unwrap_err().code, EkmCode::EE0F);
    assert!(bench.service.ready().is_err());
    let recorded: Vec<String> = ekm::audit::read(&bench.config.audit)
        .unwrap()
        .filter_map(Result::ok)
        .filter(|record| {
            record.event.action == "create" && record.event.outcome == Outcome::Success
        })
        .filter_map(|record| record.event.request)
        .collect();
    for id in &served {
        assert!(
            recorded.contains(id),
            "{id} was answered and is not recorded"
        );
    }
}

/// The embedded profile, with its bridge renewed after three host exchanges.
fn short_lived(directory: &Path) -> String {
    let text = include_str!("../hsm-profiles/embedded.toml")
        .replace("host_exchanges = 64", "host_exchanges = 3")
        .replace("name = \"embedded\"", "name = \"short-lived\"");
    let path = directory.join("short-lived.toml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_is_renewed_after_its_share_of_host_custody() {
    let hsm = Hsm::new(Kind::Embedded, "renewed").await;
    let mut token = hsm.config("main");
    token.profile = short_lived(hsm.directory.path());
    let bench = Bench::with(vec![token], PolicyConfig::default()).await;
    bench.kek("HOSTKEK", "main", Custody::Host).await;
    default_kek(&bench, "HOSTKEK").await;
    let mut a = drive(bench.directory.path(), 1, ekm::key::SedkForm::T10Plain);
    a.row.custody = Custody::Host;
    bench.enrol(&a).await;
    let first = bridge_pid(&bench);
    for _ in 0..10 {
        bench.service.create(&a.peer, &request(&a)).await.unwrap();
    }
    assert_ne!(
        bridge_pid(&bench),
        first,
        "ten host exchanges and still the same bridge"
    );
}

/// The next bridge would have no PIN, and a token that is well would lock itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_whose_pin_an_operator_gave_outlasts_its_bridges_share() {
    let hsm = Hsm::new(Kind::Embedded, "attended").await;
    let mut token = hsm.config("main");
    token.profile = short_lived(hsm.directory.path());
    token.pin = PinSource::Operator;
    let root = tempfile::tempdir().unwrap();
    let config = Bench::config(root.path(), vec![token], PolicyConfig::default());
    let service = ekm::server::open(&config, &Program::at(EKM.into()))
        .await
        .unwrap();
    // It is not ready by itself, as a bench is.
    let bench = Bench {
        service: Arc::new(service),
        config,
        directory: root,
    };
    let bridge = &bench.service.tokens().bridges()[0];
    wait_for("a token that waits for its operator", PATIENCE, || {
        matches!(bridge.state(), TokenState::Locked { .. })
    });
    let shown = bridge.shown().await.unwrap();
    let pin = Handed::new(&SecretString::from(PIN)).unwrap();
    bridge.unlock(&shown, false, Some(&pin)).await.unwrap();
    wait_for("a token that serves", PATIENCE, || bridge.serves());
    bench.kek("HOSTKEK", "main", Custody::Host).await;
    default_kek(&bench, "HOSTKEK").await;
    let mut a = drive(bench.directory.path(), 1, ekm::key::SedkForm::T10Plain);
    a.row.custody = Custody::Host;
    bench.enrol(&a).await;
    let first = bridge.state().bridges().to_vec();
    // More than three times its share.
    for _ in 0..10 {
        bench.service.create(&a.peer, &request(&a)).await.unwrap();
    }
    assert_eq!(
        bridge.state().bridges(),
        first,
        "the bridge was started anew, and nobody was there for its PIN"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_whose_module_never_frees_all_is_renewed_and_costs_no_request() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "frees").await;
    let mut token = hsm.config("main");
    let text = include_str!("../hsm-profiles/softhsm2.toml")
        .replace("exchanges = 50000", "exchanges = 40")
        .replace("name = \"softhsm2\"", "name = \"frees\"");
    let path = hsm.directory.path().join("frees.toml");
    std::fs::write(&path, text).unwrap();
    token.profile = path.display().to_string();
    let bench = Bench::with(vec![token], PolicyConfig::default()).await;
    bench.kek("KEK", "main", Custody::Token).await;
    default_kek(&bench, "KEK").await;
    let a = drive(bench.directory.path(), 1, hsm.kind.form());
    bench.enrol(&a).await;
    let first = bridge_pid(&bench);
    // Many at once, so that some are under way whenever the bridge has had its share.
    let creates = (0..100).map(|_| async {
        let request = request(&a);
        bench.service.create(&a.peer, &request).await.map(drop)
    });
    for outcome in futures_util::future::join_all(creates).await {
        outcome.unwrap();
    }
    assert_ne!(
        bridge_pid(&bench),
        first,
        "200 exchanges and still the same bridge"
    );
}

/// The bridge of a token that is well; on a busy machine it may be silent for a moment.
fn bridge_pid(bench: &Bench) -> u32 {
    let state = || bench.service.tokens().bridges()[0].state();
    wait_for("a token that is ready", Duration::from_secs(20), || {
        matches!(state(), TokenState::Ready { .. })
    });
    state().bridges()[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_bridge_costs_no_request_and_comes_back() {
    let hsm = Hsm::new(Kind::Softhsm, "killed").await;
    let bench = Bench::new(&[&hsm], PolicyConfig::default()).await;
    bench.kek("KEK", "main", Custody::Token).await;
    default_kek(&bench, "KEK").await;
    let a = drive(bench.directory.path(), 1, Kind::Softhsm.form());
    bench.enrol(&a).await;
    bench.service.create(&a.peer, &request(&a)).await.unwrap();
    let pid = bridge_pid(&bench);
    let bridge = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    kill_process(bridge, Signal::KILL).unwrap();
    // Asked at once: the request waits for the next bridge.
    bench.service.create(&a.peer, &request(&a)).await.unwrap();
    assert_ne!(bridge_pid(&bench), pid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_ends_with_its_server() {
    let hsm = Hsm::new(Kind::Softhsm, "orphan").await;
    let bench = Bench::new(&[&hsm], PolicyConfig::default()).await;
    let pid = bridge_pid(&bench);
    assert!(lives(pid));
    drop(bench);
    wait_for("the end of the bridge", Duration::from_secs(10), || {
        !lives(pid)
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_starts_without_its_token_and_says_so() {
    let hsm = Hsm::new(Kind::Embedded, "absent").await;
    let mut token = hsm.config("main");
    token.uri = "pkcs11:token=some-other-token".parse().unwrap();
    let root = tempfile::tempdir().unwrap();
    let config = Bench::config(root.path(), vec![token], PolicyConfig::default());
    let service = ekm::server::open(&config, &Program::at(EKM.into()))
        .await
        .unwrap();
    let fault = service.tokens().bridges()[0].settled().await.unwrap_err();
    assert!(fault.to_string().contains("some-other-token"), "{fault}");
    assert!(service.ready().is_err());
}

/// As at the failover of a cluster, where two slots may show one label for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_token_of_the_same_label_locks_nothing_once_it_is_gone() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "double").await;
    let other = Hsm::new(Kind::SofthsmInProcess, "double").await;
    let tokens = |hsm: &Hsm| hsm.directory.path().join("tokens");
    let of_other = std::fs::read_dir(tokens(&other)).unwrap().next();
    let away = of_other.unwrap().unwrap().path();
    let here = tokens(&hsm).join(away.file_name().unwrap());
    std::fs::rename(&away, &here).unwrap();

    let root = tempfile::tempdir().unwrap();
    let config = Bench::config(
        root.path(),
        vec![hsm.config("main")],
        PolicyConfig::default(),
    );
    let service = ekm::server::open(&config, &Program::at(EKM.into()))
        .await
        .unwrap();
    let bridge = &service.tokens().bridges()[0];
    let fault = bridge.settled().await.unwrap_err().to_string();
    for words in ["more than one token matches", "serial=", "ekm slot list"] {
        assert!(fault.contains(words), "{fault}");
    }
    // It is looked for again and again: the second time was no time of a locked one's.
    wait_for("a third bridge", PATIENCE, || bridge.starts() >= 3);
    let state = bridge.state();
    assert!(matches!(state, TokenState::Failed { .. }), "{state:?}");

    std::fs::rename(&here, &away).unwrap();
    wait_for("the token", PATIENCE, || bridge.serves());
}
