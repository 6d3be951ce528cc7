//! Two servers that share no database: each a process with a state of its own, over real TLS.

mod hostile;

use std::time::{Duration, Instant};

use ekm::api::ConfirmRequest;
use ekm::client::{ClientError, KeyClient};
use ekm::problem::EkmCode;
use serde_json::Value;

use crate::door::{House, PATIENCE, Serving};
use crate::relay::{Relay, Way};
use crate::support::wait_for;

/// The first gives its tables to the second.
const SERVE: &str = "[sync]\nserve = [\"server:ekm2\"]\n";

/// A site with a second server, whose token holds the same KEK.
pub(crate) struct Twins {
    pub(crate) house: House,
}

impl Twins {
    pub(crate) fn new() -> Self {
        let house = House::new("", SERVE);
        house.identity("server", "ekm2");
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .args([house.at("token"), house.at("token2")])
            .status();
        assert!(copied.unwrap().success());
        Self { house }
    }

    /// Writes the second's configuration: it reads the first at that address.
    pub(crate) fn second(&self, address: &str, more: &str) {
        self.second_with(
            "",
            &format!("peer = \"server:ekm1\"\naddress = \"{address}\"\n{more}"),
        );
    }

    /// The same, with lines of `[sync]` and of its one `[[sync.from]]`.
    pub(crate) fn second_with(&self, sync: &str, from: &str) {
        let mut text = std::fs::read_to_string(self.house.at("ekm.toml")).unwrap();
        for (old, new) in [
            ("node = \"house\"", "node = \"other\""),
            ("state = \"state\"", "state = \"state2\""),
            ("audit = \"audit\"", "audit = \"audit2\""),
            ("directory = \"token\"", "directory = \"token2\""),
            ("issued/server-ekm1.crt", "issued/server-ekm2.crt"),
            ("issued/server-ekm1.key", "issued/server-ekm2.key"),
            (SERVE, ""),
        ] {
            assert!(text.contains(old), "{old}: {text}");
            text = text.replace(old, new);
        }
        text += &format!("[sync]\n{sync}\n[[sync.from]]\n{from}\n");
        std::fs::write(self.house.at("ekm2.toml"), text).unwrap();
    }

    pub(crate) async fn serve_second(&self) -> Serving {
        let command = self.house.command(&["--config", "ekm2.toml", "serve"]);
        let serving = self.house.serve_command(command).await;
        let mut client = self.watcher(&serving);
        let start = Instant::now();
        while client.get("/readyz").await.unwrap().0 != 200 {
            assert!(start.elapsed() < PATIENCE, "not ready:\n{}", serving.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        serving
    }

    pub(crate) fn watcher(&self, serving: &Serving) -> KeyClient {
        let watcher = self.house.identity("operator", "watcher");
        self.house.client_of(serving, &watcher)
    }

    pub(crate) fn on_first(&self, arguments: &[&str]) -> String {
        self.house.done(arguments)
    }

    pub(crate) fn on_second(&self, arguments: &[&str]) -> String {
        let mut all = vec!["--config", "ekm2.toml"];
        all.extend(arguments);
        self.house.done(&all)
    }

    /// What a sync of the second says that must fail.
    pub(crate) fn refused(&self, arguments: &[&str]) -> String {
        let mut all = vec!["--config", "ekm2.toml", "sync", "--from", "ekm1"];
        all.extend(arguments);
        let output = self.house.run(&all);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        said
    }

    pub(crate) fn sync(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["sync", "--from", "ekm1", "--json"];
        all.extend(arguments);
        serde_json::from_str(&self.on_second(&all)).unwrap()
    }

    /// The serials in the drive table of the second.
    pub(crate) fn drives(&self) -> Vec<String> {
        let listed: Value =
            serde_json::from_str(&self.on_second(&["drive", "list", "--json"])).unwrap();
        let drives = listed.as_array().unwrap().iter();
        drives
            .map(|drive| drive["serial"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The records of one of them that are about a sync: action and outcome.
    fn records(&self, audit: &str) -> Vec<(String, String, Option<String>)> {
        ekm::audit::read(&self.house.at(audit))
            .unwrap()
            .map(|record| record.unwrap().event)
            .filter(|event| event.kind == ekm::audit::Kind::DataSynchronization)
            .map(|event| (event.action, format!("{:?}", event.outcome), event.drive))
            .collect()
    }
}

/// A drive without a key, as quickly entered.
const PLAIN: [&str; 4] = ["--form", "t10-00h", "--custody", "host"];

fn add(serial: &str) -> Vec<&str> {
    let mut words = vec!["drive", "add", serial];
    words.extend(PLAIN);
    words
}

const A: &str = "00000000000A";
const B: &str = "00000000000B";
const C: &str = "00000000000C";

#[tokio::test(flavor = "multi_thread")]
async fn a_drive_that_is_deleted_here_gets_no_key_there_after_the_next_sync() {
    let twins = Twins::new();
    let drive = twins.house.drive(1);
    let serial = drive.serial.to_string();
    let first = twins.house.serve().await;
    twins.second(&first.address, "what = \"all\"\n");
    let second = twins.serve_second().await;
    let mut client = twins.house.client_of(&second, &drive.identity);
    let unknown = async |client: &mut KeyClient| {
        let refused = client.create(&drive.create()).await.unwrap_err();
        let ClientError::Refused(problem) = refused else {
            panic!("{refused}");
        };
        assert_eq!(problem.code, EkmCode::EF01, "{problem}");
    };
    unknown(&mut client).await;

    // Dry: the table, and nothing else.
    let told = twins.on_second(&["sync", "--from", "ekm1", "--dry-run"]);
    assert!(told.contains(&serial) && told.contains("added"), "{told}");
    assert!(told.lines().all(|line| line.len() <= 80), "{told}");
    assert!(twins.drives().is_empty());
    assert!(twins.records("audit2").is_empty());

    let report = twins.sync(&[]);
    assert_eq!(report["drives"][0]["change"], "added", "{report}");
    // The labels came with it.
    assert_eq!(report["defaults"]["kek1"]["label"], "KEK1", "{report}");
    assert_eq!(report["differences"]["missing_keks"], serde_json::json!([]));
    client.create(&drive.create()).await.unwrap();

    twins.on_first(&["drive", "del", &serial]);
    client.create(&drive.create()).await.unwrap();
    let report = twins.sync(&[]);
    assert_eq!(report["drives"][0]["change"], "deleted", "{report}");
    unknown(&mut client).await;
    assert_eq!(twins.sync(&[])["drives"], serde_json::json!([]));

    // Added again later than it was deleted.
    let pem = "drive1.pem";
    twins.on_first(&["drive", "add", &serial, "--wwn", &drive.wwn, "--key", pem]);
    twins.sync(&[]);
    client.create(&drive.create()).await.unwrap();

    let records = twins.records("audit2");
    let of = |action: &str, outcome: &str| {
        let same = records
            .iter()
            .filter(|(a, o, _)| a == action && o == outcome);
        same.count()
    };
    assert_eq!(of("sync", "Success"), 4, "{records:?}");
    assert_eq!(of("sync-drive", "Intent"), 3, "{records:?}");
    assert!(records.iter().any(|(.., of)| of.as_ref() == Some(&serial)));
    // A head each, the dry run's too.
    assert_eq!(twins.records("audit").len(), 5);
    first.stop();
    second.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_row_stands_and_a_rewrite_makes_ours_theirs() {
    let twins = Twins::new();
    let first = twins.house.serve().await;
    twins.second(&first.address, "");
    let second = twins.serve_second().await;
    twins.on_first(&add(A));
    twins.on_first(&add(B));
    twins.on_second(&add(C));
    twins.sync(&["--merge"]);
    assert_eq!(twins.drives(), [A, B, C]);

    // Deleted there, then changed here: the change is newer.
    twins.on_first(&["drive", "del", A]);
    twins.on_second(&["drive", "mod", A, "--speaker", "proxy:h1"]);
    // Changed here, then deleted there: the deletion is.
    twins.on_second(&["drive", "mod", B, "--speaker", "proxy:h1"]);
    twins.on_first(&["drive", "del", B]);
    let report = twins.sync(&["--merge"]);
    assert_eq!(twins.drives(), [A, C], "{report}");
    let left = report["left"][0].as_str().unwrap();
    assert!(left.contains(A) && left.contains("later"), "{left}");

    // Whose defaults were set later.
    twins.on_second(&["kek", "default", "--kek1", "KEK1:hash"]);
    let report = twins.sync(&["--merge", "--what", "config"]);
    assert_eq!(report["defaults"], Value::Null, "{report}");
    let differ = &report["differences"]["defaults"];
    assert_eq!(differ["ours"]["kek1"]["encoding"], "hash", "{report}");
    assert_eq!(differ["theirs"]["kek1"]["encoding"], "label", "{report}");
    second_says(&twins, &second, "EKM-A17").await;

    // A rewrite takes what only the second has; what was deleted here later than that stays away.
    twins.on_first(&add(B));
    let dry = twins.sync(&["--rewrite", "--what", "all", "--dry-run"]);
    let report = twins.sync(&["--rewrite", "--what", "all"]);
    assert_eq!(dry["drives"], report["drives"]);
    assert_eq!(twins.drives(), [B], "{report}");
    assert_eq!(report["defaults"]["kek1"]["encoding"], "label", "{report}");
    assert_eq!(twins.sync(&["--rewrite"])["drives"], serde_json::json!([]));
    second_silent(&twins, &second, "EKM-A17").await;
    first.stop();
    second.stop();
}

async fn ready(twins: &Twins, serving: &Serving) -> String {
    let (_, body) = twins.watcher(serving).get("/readyz").await.unwrap();
    String::from_utf8_lossy(&body).into_owned()
}

async fn until(twins: &Twins, serving: &Serving, what: &str, there: bool) {
    let start = Instant::now();
    loop {
        let said = ready(twins, serving).await;
        if said.contains(what) == there {
            return;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "{what} {there}: {said}\n{}",
            serving.log()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn second_says(twins: &Twins, serving: &Serving, what: &str) {
    until(twins, serving, what, true).await;
}

async fn second_silent(twins: &Twins, serving: &Serving, what: &str) {
    until(twins, serving, what, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_comes_along_so_that_either_server_knows_what_the_other_gave() {
    let twins = Twins::new();
    let drive = twins.house.drive(1);
    let first = twins.house.serve().await;
    twins.second(&first.address, "what = \"all\"\n");
    let second = twins.serve_second().await;
    let request = drive.create();
    let mut client = twins.house.client_of(&first, &drive.identity);
    let given = client.create(&request).await.unwrap();
    let report = twins.sync(&[]);
    assert_eq!(report["history"]["generations"], 1, "{report}");
    assert_eq!(report["history"]["complete"], true, "{report}");

    // The answer was lost, and the drive asks the other server: the same data key.
    let mut other = twins.house.client_of(&second, &drive.identity);
    let again = other.create(&request).await.unwrap();
    assert_eq!(again.dki, given.dki);
    let confirm = ConfirmRequest {
        request_id: request.request_id,
        serial: drive.serial.clone(),
        dki: given.dki,
        stored: true,
    };
    other.confirm(&confirm).await.unwrap();
    let listed: Value =
        serde_json::from_str(&twins.on_second(&["volume", "list", "--json"])).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed[0]["state"], "confirmed", "{listed}");
    assert_eq!(listed[0]["server"], "house", "{listed}");

    // What is there already is no news, and nothing of it goes back to an earlier state.
    let report = twins.sync(&[]);
    assert_eq!(report["history"]["generations"], 0, "{report}");
    assert_eq!(report["history"]["states"], 0, "{report}");
    let listed: Value =
        serde_json::from_str(&twins.on_second(&["volume", "list", "--json"])).unwrap();
    assert_eq!(listed[0]["state"], "confirmed", "{listed}");
    first.stop();
    second.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_given_to_the_servers_that_are_named_and_to_nobody_else() {
    let twins = Twins::new();
    let first = twins.house.serve().await;
    let ask = async |role: &str, name: &str, path: &str| {
        let identity = twins.house.identity(role, name);
        let mut client = twins.house.client_of(&first, &identity);
        let (status, body) = client.get(path).await.unwrap();
        (status, String::from_utf8_lossy(&body).into_owned())
    };
    let paths = ["head", "drives?after=", "keks?after=0", "history?from=1"];
    for (role, name) in [
        ("drive", "000000000001"),
        ("proxy", "ekm2"),
        ("operator", "ekm2"),
        ("server", "ekm3"),
    ] {
        for path in paths {
            let (status, body) = ask(role, name, &format!("/v1/sync/{path}")).await;
            assert_eq!(status, 403, "{role}:{name} {path}: {body}");
            assert!(body.contains("EE30") && !body.contains("rows"), "{body}");
        }
    }
    // What is given stands in the records before it is.
    let (status, body) = ask("server", "ekm2", "/v1/sync/drives").await;
    assert_eq!(status, 409, "{body}");
    for path in paths {
        let (status, body) = ask("server", "ekm2", &format!("/v1/sync/{path}")).await;
        assert_eq!(status, 200, "{path}: {body}");
    }
    let (status, body) = ask("server", "ekm2", "/v1/sync/history?from=x").await;
    assert_eq!(status, 400, "{body}");
    let records = twins.records("audit");
    let outcomes: Vec<&str> = records
        .iter()
        .map(|(_, outcome, _)| outcome.as_str())
        .collect();
    assert_eq!(
        outcomes,
        ["Failure", "Failure", "Failure", "Failure", "Success"]
    );

    // Whom the second expects there is another.
    twins.second_with(
        "",
        &format!("peer = \"server:ekm9\"\naddress = \"{}\"", first.address),
    );
    let said = twins
        .house
        .run(&["--config", "ekm2.toml", "sync", "--from", "ekm9"]);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("is server:ekm1, not server:ekm9"), "{said}");
    let said = twins.refused(&[]);
    assert!(said.contains("there are server:ekm9"), "{said}");

    // One whose certificate was revoked is nobody.
    twins.second(&first.address, "");
    twins.sync(&[]);
    twins.on_first(&["tls", "revoke", "server:ekm1"]);
    let said = twins.refused(&[]);
    assert!(
        said.contains("cannot reach") && said.contains("evoked"),
        "{said}"
    );
    first.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_by_itself_that_fails_raises_an_alarm_until_one_succeeds() {
    let twins = Twins::new();
    twins.on_first(&add(A));
    let first = twins.house.serve().await;
    let relay = Relay::to(&first.address).await;
    relay.set(Way::Closed);
    twins.second(&relay.address.to_string(), "every_seconds = 1\n");
    let second = twins.serve_second().await;
    second_says(&twins, &second, "EKM-A16").await;
    let said = ready(&twins, &second).await;
    assert!(said.contains("cannot reach server:ekm1"), "{said}");
    relay.set(Way::Open);
    second_silent(&twins, &second, "EKM-A16").await;
    assert_eq!(twins.drives(), [A]);
    // And what changes comes by itself.
    twins.on_first(&add(B));
    wait_for("the drive", PATIENCE, || twins.drives() == [A, B]);
    let records = twins.records("audit2");
    let failed = records
        .iter()
        .filter(|(.., outcome, _)| outcome == "Failure");
    assert!(failed.count() > 0, "{records:?}");
    first.stop();
    second.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_of_two_keys_is_told_and_nothing_that_names_it_is_taken() {
    let twins = Twins::new();
    twins.on_first(&["kek", "generate", "SAME", "--bits", "2048"]);
    twins.on_first(&["kek", "generate", "ONLYTHERE", "--bits", "2048"]);
    let mut named = add(A);
    named.extend(["--kek1", "SAME"]);
    twins.on_first(&named);
    twins.on_first(&add(B));
    twins.on_first(&["kek", "default", "--kek1", "SAME"]);
    twins.second("127.0.0.1:1", "what = \"all\"\n");
    twins.on_second(&["kek", "generate", "same", "--bits", "2048"]);
    let first = twins.house.serve().await;
    twins.second(&first.address, "what = \"all\"\n");
    let second = twins.serve_second().await;
    let report = twins.sync(&[]);
    assert_eq!(twins.drives(), [B], "{report}");
    assert_eq!(report["defaults"], Value::Null, "{report}");
    let differences = &report["differences"];
    assert_eq!(differences["labels"][0]["label"], "SAME", "{report}");
    let missing: Vec<&str> = differences["missing_keks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|kek| kek["label"].as_str().unwrap())
        .collect();
    assert!(missing.contains(&"ONLYTHERE"), "{report}");
    assert_eq!(report["left"].as_array().unwrap().len(), 2, "{report}");
    second_says(&twins, &second, "labels of two keys: SAME").await;
    first.stop();
    second.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_many_large_rows_comes_whole() {
    use ekm::store::merge::{Changes, DriveRow, Tables as _, Write};
    use ekm::store::{Drive, DriveKey, DriveState, Sql, Store as _};
    let twins = Twins::new();
    let speakers: Vec<ekm::tls::PeerId> = (0..40)
        .map(|n| format!("proxy:{n:060}").parse().unwrap())
        .collect();
    let rows = (0..1200).map(|n| DriveRow {
        drive: Drive {
            serial: format!("{n:012}").parse().unwrap(),
            wwn: None,
            kek1: None,
            kek2: None,
            key: DriveKey::None,
            form: ekm::key::SedkForm::T10Plain,
            custody: ekm::keystore::Custody::Host,
            speakers: speakers.clone(),
            state: DriveState::Active,
        },
        updated: time::OffsetDateTime::now_utc(),
        deleted: n % 7 == 0,
    });
    let changes = Changes {
        drives: rows.map(|row| Write { row, over: None }).collect(),
        ..Changes::default()
    };
    let state = Sql::sqlite(&twins.house.at("state")).await.unwrap();
    state.apply(&changes).await.unwrap();
    let theirs = state.drives().await.unwrap();
    drop(state);
    let first = twins.house.serve().await;
    twins.second(&first.address, "");
    let report = twins.sync(&[]);
    assert_eq!(report["drives"].as_array().unwrap().len(), theirs.len());
    let ours = Sql::sqlite(&twins.house.at("state2")).await.unwrap();
    assert_eq!(ours.drives().await.unwrap(), theirs);
    // Deletions are rows, too.
    let extent = ekm::store::sync::SyncTables::drive_extent(&ours).await;
    assert_eq!(extent.unwrap().rows, 1200);
    first.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_keeps_the_newest_seal_and_tells_of_a_log_that_was_put_back() {
    let twins = Twins::new();
    twins.on_first(&["audit", "key", "--generate"]);
    let first = twins.house.serve().await;
    twins.second(&first.address, "");
    let anchored = |node: &str| {
        let listed = twins.on_second(&["audit", "anchors", "--json"]);
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let mut all = listed.as_array().unwrap().iter();
        let found = all.find(|anchor| anchor["node"] == node);
        found.map(|anchor| anchor["seal"].as_str().unwrap().to_owned())
    };
    twins.on_first(&["audit", "seal"]);
    // Dry: nothing is kept.
    twins.sync(&["--dry-run"]);
    assert_eq!(anchored("server:ekm1"), None);
    first.stop();
    let places = ["state", "audit"];
    let cp = |from: std::path::PathBuf, to: std::path::PathBuf| {
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .args([from, to])
            .status();
        assert!(copied.unwrap().success());
    };
    for place in places {
        cp(
            twins.house.at(place),
            twins.house.at(&format!("{place}.copy")),
        );
    }
    let first = twins.house.serve().await;
    twins.second(&first.address, "");
    twins.on_first(&["audit", "seal"]);
    assert_eq!(twins.sync(&[])["differences"]["chain"], Value::Null);
    let kept = anchored("server:ekm1").unwrap();
    // As the first one knows it itself.
    assert!(twins.on_first(&["audit", "anchors"]).contains(&kept));
    first.stop();
    for place in places {
        std::fs::remove_dir_all(twins.house.at(place)).unwrap();
        cp(
            twins.house.at(&format!("{place}.copy")),
            twins.house.at(place),
        );
    }
    let first = twins.house.serve().await;
    twins.second(&first.address, "");
    let second = twins.serve_second().await;
    let told = twins.on_second(&["sync", "--from", "ekm1"]);
    let line = told.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(line.contains(&kept) && line.contains("put back"), "{told}");
    second_says(&twins, &second, "EKM-A17").await;
    assert_eq!(anchored("server:ekm1"), Some(kept));
    first.stop();
    second.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kek_that_is_retired_on_one_server_only_is_an_alarm() {
    let twins = Twins::new();
    let first = twins.house.serve().await;
    twins.second(&first.address, "");
    let second = twins.serve_second().await;
    twins.on_first(&["kek", "generate", "OLD", "--bits", "2048"]);
    drop(second);
    // The token of the second is a cluster's node: it has the key as well.
    std::fs::remove_dir_all(twins.house.at("token2")).unwrap();
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([twins.house.at("token"), twins.house.at("token2")])
        .status();
    assert!(copied.unwrap().success());
    let second = twins.serve_second().await;
    assert_eq!(
        twins.sync(&[])["differences"]["states"],
        serde_json::json!([])
    );
    twins.on_first(&["kek", "retire", "OLD"]);
    let report = twins.sync(&[]);
    assert_eq!(
        report["differences"]["states"],
        serde_json::json!([{"label": "OLD", "ours": "active", "theirs": "retired"}])
    );
    second_says(&twins, &second, "OLD (active here, retired there)").await;
    twins.on_second(&["kek", "retire", "OLD"]);
    twins.sync(&[]);
    // The defaults differ still.
    second_silent(&twins, &second, "states of KEKs").await;
    second_says(&twins, &second, "EKM-A17").await;
    first.stop();
    second.stop();
}

/// Two servers that exchange their states by sync may be on one cluster: what one of them destroys
/// is gone for the other, whose newest tapes are in nobody else's history.
#[tokio::test(flavor = "multi_thread")]
async fn a_kek_that_a_server_beside_may_write_under_is_not_destroyed() {
    let twins = Twins::new();
    twins.on_first(&["kek", "generate", "OLD", "--bits", "2048"]);
    std::fs::remove_dir_all(twins.house.at("token2")).unwrap();
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([twins.house.at("token"), twins.house.at("token2")])
        .status();
    assert!(copied.unwrap().success());
    let first = twins.house.serve().await;
    twins.second(&first.address, "what = \"all\"\n");
    let second = twins.serve_second().await;
    twins.on_second(&["kek", "retire", "OLD"]);
    let refusal = || {
        let words = ["--config", "ekm2.toml", "kek", "delete", "OLD", "--destroy"];
        let output = twins.house.run(&words);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refusal();
    assert!(
        said.contains("what server:ekm1 wrote under it is not known"),
        "{said}"
    );
    twins.sync(&[]);
    let said = refusal();
    assert!(said.contains("it is active on server:ekm1"), "{said}");
    twins.on_first(&["kek", "retire", "OLD"]);
    twins.sync(&[]);
    twins.on_second(&["kek", "delete", "OLD", "--destroy"]);
    first.stop();
    second.stop();
}
