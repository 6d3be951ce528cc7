//! The ways that operators come: the socket, as a group's, and the door for other hosts.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command as Process, Output};

use ekm::api::RekeyRequest;
use ekm::client::{ClientError, KeyClient};
use ekm::problem::EkmCode;

use super::records;
use crate::door::{House, HouseDrive, Serving};
use crate::support::EKM;

/// Where the operators' door listens.
fn door(serving: &Serving) -> String {
    let log = serving.log();
    let (_, rest) = log.split_once("operators are served at ").unwrap();
    rest.split_whitespace().next().unwrap().to_owned()
}

/// The command line of an operator on another host: no configuration.
fn from_afar(house: &House, site: &str, name: &str, arguments: &[&str]) -> Output {
    let identity = house.identity("operator", name);
    let away = tempfile::tempdir().unwrap();
    Process::new(EKM)
        .args(arguments)
        .current_dir(away.path())
        .env_remove("EKM_CONFIG")
        .env("EKM_SITE", site)
        .env("EKM_OPERATOR_CERT", &identity.certificate)
        .env("EKM_OPERATOR_KEY", &identity.key)
        .env("EKM_SITE_CA", &identity.ca)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

async fn rekey(house: &House, serving: &Serving, mut client: KeyClient, drive: &HouseDrive) {
    let made = client.create(&drive.create()).await.unwrap();
    let request = || RekeyRequest {
        request_id: uuid::Uuid::new_v4(),
        serial: drive.serial.clone(),
        volser: "VOL001".parse().unwrap(),
        eedks: made.eedks.iter().map(|one| one.eedk.clone()).collect(),
        kek1: "KEK1:hash".parse().unwrap(),
        kek2: None,
    };
    for name in ["anna", "audrey", "eve"] {
        let mut operator = house.client_of(serving, &house.identity("operator", name));
        let Err(ClientError::Refused(problem)) = operator.rekey(&request()).await else {
            panic!("{name} has not the role, and was not refused");
        };
        assert_eq!(problem.code, EkmCode::EE30, "{problem}");
        assert!(problem.detail.contains("key-admin"), "{problem}");
    }
    let mut operator = house.client_of(serving, &house.identity("operator", "carl"));
    operator.rekey(&request()).await.unwrap();
}

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_of_other_hosts_come_over_tls_with_their_roles() {
    let house = House::new(
        "",
        &format!(
            r#"[operators]
listen = "127.0.0.1:0"

[[operators.people]]
name = "root"
unix = "{}"
roles = ["owner"]

[[operators.people]]
name = "anna"
certificate = "operator:anna"
roles = ["drive-admin"]

[[operators.people]]
name = "bob"
certificate = "operator:bob"
roles = ["drive-admin"]

[[operators.people]]
name = "carl"
certificate = "operator:carl"
roles = ["key-admin"]

[[operators.people]]
name = "audrey"
certificate = "operator:audrey"
roles = ["auditor"]

[policy.approval]
actions = ["drive-del"]
"#,
            uid()
        ),
    );
    let drive = house.unknown_drive(1);
    let serving = house.serve().await;
    let site = door(&serving);
    let serial = drive.serial.to_string();
    let key = house.done(&["softdrive", "key", &drive.directory]);
    std::fs::write(house.at("drive.pem"), key).unwrap();
    let pem = house.at("drive.pem").display().to_string();
    let add = ["drive", "add", &serial, "--wwn", &drive.wwn, "--key", &pem];

    let refused = from_afar(&house, &site, "audrey", &add);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        said(&refused).contains("takes the role drive-admin"),
        "{}",
        said(&refused)
    );
    let added = from_afar(&house, &site, "anna", &add);
    assert!(added.status.success(), "{}", said(&added));
    let listed = from_afar(&house, &site, "audrey", &["drive", "list"]);
    assert!(said(&listed).contains(&serial), "{}", said(&listed));

    // A rekey by an operator's certificate at the drives' door takes the role, too.
    let soft = house.client_of(&serving, &drive.identity);
    rekey(&house, &serving, soft, &drive).await;

    // By two.
    let waits = from_afar(&house, &site, "anna", &["drive", "del", &serial]);
    assert_eq!(waits.status.code(), Some(4), "{}", said(&waits));
    let asked = from_afar(&house, &site, "bob", &["approval", "list", "--json"]);
    let asked: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap();
    let id = asked[0]["id"].as_str().unwrap();
    let own = from_afar(&house, &site, "anna", &["approval", "approve", id]);
    assert_eq!(own.status.code(), Some(1), "{}", said(&own));
    let done = from_afar(&house, &site, "bob", &["approval", "approve", id]);
    assert!(done.status.success(), "{}", said(&done));
    let listed = from_afar(&house, &site, "audrey", &["drive", "list"]);
    assert!(!said(&listed).contains(&serial), "{}", said(&listed));

    // Whom nobody named; a drive's certificate; one that was revoked.
    let eve = from_afar(&house, &site, "eve", &["drive", "list"]);
    assert!(
        said(&eve).contains("none of the operators"),
        "{}",
        said(&eve)
    );
    let thief = Process::new(EKM)
        .args(["--site", &site, "drive", "list"])
        .arg("--operator-cert")
        .arg(&drive.identity.certificate)
        .arg("--operator-key")
        .arg(&drive.identity.key)
        .arg("--site-ca")
        .arg(&drive.identity.ca)
        .output()
        .unwrap();
    assert!(said(&thief).contains("is no operator"), "{}", said(&thief));
    // A token of another host is not worked with from here.
    let adopt = from_afar(&house, &site, "carl", &["kek", "adopt", "--token", "main"]);
    assert!(said(&adopt).contains("without --site"), "{}", said(&adopt));
    // A PIN does not go over the net.
    let pin = house.at("pin").display().to_string();
    let unlock = ["token", "unlock", "main", "--pin-file", &pin];
    let unlock = from_afar(&house, &site, "bob", &unlock);
    assert!(said(&unlock).contains("own host only"), "{}", said(&unlock));
    // The door of the drives knows no operators' commands.
    let wrong = format!("https://{}", serving.address);
    let wrong = from_afar(&house, &wrong, "anna", &["drive", "list"]);
    assert!(
        said(&wrong).contains("is the drives' door"),
        "{}",
        said(&wrong)
    );

    house.done(&["tls", "revoke", "operator:anna"]);
    let start = std::time::Instant::now();
    loop {
        let gone = from_afar(&house, &site, "anna", &["drive", "list"]);
        if !gone.status.success() {
            break;
        }
        assert!(start.elapsed() < crate::door::PATIENCE, "{}", said(&gone));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    serving.stop();

    let records = records(&house.at("audit"));
    let of = |action: &str, who: &str| {
        let mut of = records.iter().filter(|record| record.action == action);
        of.any(|record| {
            record
                .peer
                .as_deref()
                .is_some_and(|peer| peer.contains(who))
        })
    };
    assert!(of(
        "drive-add",
        "operator:anna (certificate operator:anna at 127.0.0.1)"
    ));
    assert!(of("drive-add", "operator:audrey (certificate"));
    assert!(of("drive-del", "approved by operator:bob"));
    assert!(of(
        "drive-list",
        "operator:? (certificate operator:eve at 127.0.0.1)"
    ));
    assert!(of("operator-door", &format!("drive:{serial} at 127.0.0.1")));
}

fn open_to_all(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn as_user(user: &str, group: &str, socket: &Path, arguments: &[&str]) -> Output {
    Process::new("setpriv")
        .args([
            &format!("--reuid={user}"),
            &format!("--regid={group}"),
            "--clear-groups",
        ])
        .arg(EKM)
        .arg("--site")
        .arg(format!("unix:{}", socket.display()))
        .args(arguments)
        .current_dir("/")
        .env_remove("EKM_CONFIG")
        .output()
        .unwrap()
}

/// The kernel says who is at the other end of the socket; the table says what he may.
#[tokio::test(flavor = "multi_thread")]
async fn unix_users_of_a_group_come_over_the_socket_with_their_roles() {
    // Other users are there for root only; else the roles of the own user are looked at.
    let root = uid() == 0;
    let group = if root {
        "daemon".to_owned()
    } else {
        rustix::process::getegid().as_raw().to_string()
    };
    let run = tempfile::tempdir_in("/tmp").unwrap();
    open_to_all(run.path(), 0o755);
    let socket = run.path().join("ekm.sock");
    let mut rest = format!(
        r#"[operators]
socket = "{}"
group = "{group}"

[[operators.people]]
name = "own"
unix = "{}"
roles = ["operator", "key-admin"]
"#,
        socket.display(),
        uid()
    );
    if root {
        rest.push_str(
            "\n[[operators.people]]\nname = \"anna\"\nunix = \"daemon\"\nroles = [\"drive-admin\"]\n",
        );
    }
    let house = House::new("", &rest);
    let serving = house.serve().await;
    assert!(house.run(&["drive", "list"]).status.success());
    let refused = house.run(&["drive", "del", "000000000001"]);
    assert!(
        said(&refused).contains("takes the role drive-admin"),
        "{}",
        said(&refused)
    );
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    if root {
        let add = [
            "drive",
            "add",
            "000000000001",
            "--form",
            "t10-00h",
            "--custody",
            "host",
        ];
        let added = as_user("daemon", "daemon", &socket, &add);
        assert!(added.status.success(), "{}", said(&added));
        let unlock = as_user("daemon", "daemon", &socket, &["token", "unlock", "main"]);
        assert!(
            said(&unlock).contains("takes the role operator"),
            "{}",
            said(&unlock)
        );
        // In the group, and nobody there.
        let nobody = as_user("nobody", "daemon", &socket, &["drive", "list"]);
        assert!(
            said(&nobody).contains("none of the operators"),
            "{}",
            said(&nobody)
        );
        // Not in the group: the kernel keeps him out.
        let outside = as_user("nobody", "nogroup", &socket, &["drive", "list"]);
        assert!(
            said(&outside).contains("ermission denied"),
            "{}",
            said(&outside)
        );
    }
    serving.stop();
    if root {
        let records = records(&house.at("audit"));
        let daemon = records.iter().any(|record| {
            record.action == "drive-add" && record.peer.as_deref() == Some("operator:anna (uid 1)")
        });
        assert!(daemon, "{records:?}");
    }
}

#[test]
fn a_configuration_of_operators_names_what_is_wrong_with_it() {
    let house = House::bare("", "");
    house.configure(
        "",
        r#"[operators]
group = "daemon"
listen = "127.0.0.1:0"

[[operators.people]]
name = "anna"
unix = "0"
roles = ["drive-admin"]

[[operators.people]]
name = "anna2"
unix = "root"
roles = []

[[operators.people]]
name = "carl"
certificate = "proxy:carl"
roles = ["key-admin"]

[[operators.people]]
name = "dora"
unix = "no-such-user"
roles = ["owner"]

[[operators.people]]
name = "fritz"
roles = ["owner"]

[policy.approval]
actions = ["kek-list", "retire-all", "kek-generate", "custody-host"]
hours = 0
"#,
    );
    let checked = house.run(&["config", "check"]);
    assert_eq!(checked.status.code(), Some(3));
    let text = said(&checked);
    for fault in [
        "set operators.socket",
        "anna and anna2 are one Unix user (uid 0)",
        "operators.people anna2: give roles",
        "proxy:carl is no operator",
        "there is no user no-such-user",
        "operators.people fritz: say how to know this person",
        "kek-list cannot wait for a second person",
        "\"retire-all\" is no action",
        "policy.approval.hours: 0",
    ] {
        assert!(text.contains(fault), "no {fault:?} in {text}");
    }
    // Three may make KEKs: carl and both owners.
    assert!(!text.contains("kek-generate takes two"), "{text}");
    let table = house.done(&["config", "roles"]);
    assert!(
        table.contains("custody-host") && table.contains("asked"),
        "{table}"
    );
}
