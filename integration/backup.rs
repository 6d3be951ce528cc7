//! Backups: what goes in comes back, on SQLite and PostgreSQL; bad files change nothing; a KEK
//! that is in no backup is not served where the policy says so. Files of older versions stay
//! readable. That a drive reads again after a restore is in `drill.rs`.

mod golden;
mod served;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use ekm::backup::frame::{self, Frame, Totals};
use ekm::backup::restore::{self, Asked};
use ekm::backup::seal::Sealer;
use ekm::backup::{BackupError, Manifest, Place, make};
use ekm::config::Config;
use ekm::key::SedkForm;
use ekm::store::merge::Tables as _;
use ekm::store::{Backups as _, Drive, DriveKey, DriveState, Sql, Store as _};
use secrecy::SecretString;
use tempfile::TempDir;
use time::OffsetDateTime;

use crate::postgres::Postgres;

const PASSPHRASE: &str = "a passphrase for tests";

/// This release's state and backup, and the state of schema 4, before the history was searched.
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/golden/state");

fn passphrase() -> SecretString {
    SecretString::from(PASSPHRASE)
}

/// A site without tokens, by hand: its files need not make sense.
struct Plain {
    directory: TempDir,
}

impl Plain {
    fn new(database: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for folder in ["tls", "state/pins", "audit"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        for name in ["tls/s.crt", "tls/s.key", "tls/ca.crt", "state/pins/main"] {
            std::fs::write(at(name), format!("content of {name}")).unwrap();
        }
        // A server is in the middle of the last line.
        std::fs::write(
            at("audit/audit-00000001.jsonl"),
            "{\"a\":1}\n{\"b\":2}\n{\"c\"",
        )
        .unwrap();
        let text = format!(
            "node = \"plain\"\nstate = \"state\"\naudit = \"audit\"\n{database}\n[server]\nlisten = \"127.0.0.1:0\"\ncertificate = \"tls/s.crt\"\nkey = \"tls/s.key\"\nclient_ca = \"tls/ca.crt\"\n"
        );
        std::fs::write(at("ekm.toml"), text).unwrap();
        Self { directory }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self) -> Config {
        Config::draft(&self.at("ekm.toml")).unwrap()
    }

    async fn open(&self) -> Sql {
        let config = self.config();
        Sql::open(&config.state, config.database.as_ref())
            .await
            .unwrap()
    }

    async fn back_up(&self, store: &Sql, file: &Path) -> make::Made {
        make::make(
            &make::Asked {
                config_path: &self.at("ekm.toml"),
                config: &self.config(),
                file,
                passphrase: &passphrase(),
                with_pins: false,
                audit: true,
                id: uuid::Uuid::new_v4(),
                at: OffsetDateTime::now_utc(),
                keks: Vec::new(),
            },
            store,
        )
        .await
        .unwrap()
    }
}

async fn restored(file: &Path, to: &Path, sqlite: bool) -> Result<restore::Restored, BackupError> {
    restore::restore(&Asked {
        operator: "operator:test",
        file,
        passphrase: &passphrase(),
        config: &to.join("ekm.toml"),
        in_place: false,
        overwrite: false,
        sqlite,
    })
    .await
}

fn row(number: u32) -> Drive {
    Drive {
        serial: format!("00000780{number:04}").parse().unwrap(),
        wwn: None,
        kek1: Some("TAPE2026A".parse().unwrap()),
        kek2: None,
        key: DriveKey::Certified,
        form: SedkForm::RsaOaepSha1,
        custody: ekm::bridge::message::Custody::Token,
        speakers: Vec::new(),
        state: DriveState::Active,
    }
}

/// The golden state of this release, and more rows than go into one frame and one statement.
async fn fill(directory: &Path, more: u32) {
    std::fs::create_dir_all(directory).unwrap();
    std::fs::copy(
        Path::new(GOLDEN).join("schema-4.db"),
        directory.join("state.db"),
    )
    .unwrap();
    let store = Sql::sqlite(directory).await.unwrap();
    for number in 100..100 + more {
        store.put_drive(&row(number)).await.unwrap();
    }
    store.close().await;
}

async fn same(one: &Sql, other: &Sql) {
    assert_eq!(
        one.dump_tables().await.unwrap(),
        other.dump_tables().await.unwrap()
    );
    assert_eq!(
        one.volumes(None).await.unwrap(),
        other.volumes(None).await.unwrap()
    );
    assert_eq!(
        one.defaults().await.unwrap(),
        other.defaults().await.unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_comes_back_from_sqlite_into_postgresql_and_back() {
    let site = Plain::new("");
    fill(&site.at("state"), 700).await;
    let store = site.open().await;
    let file = site.at("first.ekmbackup");
    let made = site.back_up(&store, &file).await;
    assert!(made.totals.rows > 700, "{made:?}");

    // Into SQLite, in an empty directory.
    let new = tempfile::tempdir().unwrap();
    let to = new.path().join("site");
    let back = restored(&file, &to, false).await.unwrap();
    assert_eq!(back.manifest, made.manifest);
    let again = Sql::sqlite(&to.join("state")).await.unwrap();
    same(&store, &again).await;
    for name in ["tls/s.key", "state/pins/main"] {
        assert_eq!(
            std::fs::read_to_string(to.join(name)).unwrap(),
            format!("content of {name}")
        );
    }
    assert_eq!(
        std::fs::read_to_string(to.join("audit/audit-00000001.jsonl")).unwrap(),
        "{\"a\":1}\n{\"b\":2}\n"
    );
    // The state knows the backup that it came from.
    assert_eq!(again.backups(9).await.unwrap()[0].id, made.manifest.id);

    let Some(server) = Postgres::shared() else {
        return;
    };
    // Into PostgreSQL: the configuration names it.
    let url = server.database().url;
    let shared = Plain::new(&format!("[database]\nurl = \"{url}\"\n"));
    let text = std::fs::read(shared.at("ekm.toml")).unwrap();
    let empty = shared.open().await;
    std::fs::copy(site.at("ekm.toml"), site.at("kept.toml")).unwrap();
    std::fs::write(site.at("ekm.toml"), &text).unwrap();
    let file = site.at("second.ekmbackup");
    site.back_up(&store, &file).await;
    let moved = tempfile::tempdir().unwrap();
    restored(&file, moved.path(), false).await.unwrap();
    assert!(!moved.path().join("state/state.db").exists());
    same(&store, &empty).await;
    // Numbers that the database gives go on after those that came.
    empty.put_drive(&row(1)).await.unwrap();
    let copy = store.kek_copies().await.unwrap()[0].clone();
    empty.add_kek_copy(&copy).await.unwrap();
    // A second time there is something in it.
    let other = tempfile::tempdir().unwrap();
    let refused = restored(&file, other.path(), false).await.unwrap_err();
    assert!(refused.to_string().contains("not empty"), "{refused}");
    assert!(names(other.path()).is_empty());

    // And from PostgreSQL into SQLite.
    let file = shared.at("third.ekmbackup");
    shared.back_up(&empty, &file).await;
    let home = tempfile::tempdir().unwrap();
    let back = restored(&file, home.path(), true).await.unwrap();
    assert!(back.detached);
    let again = Sql::sqlite(&home.path().join("state")).await.unwrap();
    same(&empty, &again).await;
    again.add_kek_copy(&copy).await.unwrap();
}

/// All names below a directory.
fn names(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_changes_nothing() {
    let site = Plain::new("");
    fill(&site.at("state"), 300).await;
    let file = site.at("good");
    let store = site.open().await;
    site.back_up(&store, &file).await;
    let good = std::fs::read(&file).unwrap();
    let to = tempfile::tempdir().unwrap();
    let mut bad: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"no backup at all".to_vec(),
        good[..good.len() - 1].to_vec(),
        good[..good.len() / 2].to_vec(),
        [good.as_slice(), b"x"].concat(),
    ];
    for at in [8, 30, 50, 100, good.len() / 2, good.len() - 3] {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        bad.push(flipped);
    }
    for (n, content) in bad.iter().enumerate() {
        let path = site.at("bad");
        std::fs::write(&path, content).unwrap();
        let refused = restored(&path, to.path(), false).await;
        assert!(refused.is_err(), "file {n}");
        assert!(names(to.path()).is_empty(), "file {n}");
    }
    let wrong = restore::restore(&Asked {
        operator: "operator:test",
        file: &file,
        passphrase: &SecretString::from("another passphrase"),
        config: &to.path().join("ekm.toml"),
        in_place: false,
        overwrite: false,
        sqlite: false,
    })
    .await
    .unwrap_err();
    assert!(wrong.to_string().contains("passphrase is wrong"), "{wrong}");
    assert!(names(to.path()).is_empty());
}

fn manifest() -> Manifest {
    Manifest {
        version: 1,
        id: uuid::Uuid::new_v4(),
        at: OffsetDateTime::now_utc(),
        node: "hostile".to_owned(),
        ekm: "0".to_owned(),
        database: "sqlite".to_owned(),
        migrations: vec![1, 2, 3, 4, 5],
        state: Place::Beside("state".to_owned()),
        audit: Place::Beside("audit".to_owned()),
        pins: false,
        keks: Vec::new(),
        missing: Vec::new(),
    }
}

/// Who has the passphrase may write what he likes into a backup.
fn forged(path: &Path, frames: &[Frame]) {
    let file = std::fs::File::create(path).unwrap();
    let mut to = Sealer::begin(file, &passphrase()).unwrap();
    for frame in frames {
        frame::write(&mut to, frame).unwrap();
    }
    to.finish().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_backup_writes_nothing_outside_its_directory() {
    let site = Plain::new("");
    let text = std::fs::read(site.at("ekm.toml")).unwrap();
    let head = |manifest: &Manifest| Frame::Manifest(serde_json::to_string(manifest).unwrap());
    let config = [
        Frame::File {
            place: Place::Config,
        },
        Frame::Data(text.clone()),
        Frame::FileEnd {
            bytes: u64::try_from(text.len()).unwrap(),
        },
    ];
    let end = Frame::End(Totals {
        files: 2,
        tables: 0,
        rows: 0,
    });
    let mut cases = Vec::new();
    for place in [
        Place::Beside("../escaped".to_owned()),
        Place::Beside("/tmp/escaped".to_owned()),
        Place::Elsewhere("/tmp/../escaped".to_owned()),
        Place::Elsewhere("escaped".to_owned()),
        Place::Beside(String::new()),
    ] {
        let mut frames = vec![head(&manifest())];
        frames.extend(config.clone());
        frames.extend([
            Frame::File { place },
            Frame::Data(b"x".to_vec()),
            Frame::FileEnd { bytes: 1 },
            end.clone(),
        ]);
        cases.push(frames);
    }
    // A state elsewhere by its manifest, other counts than there are, no end, a newer version.
    let mut strange = manifest();
    strange.state = Place::Beside("../../state".to_owned());
    cases.push(vec![head(&strange), end.clone()]);
    cases.push(
        [
            &[head(&manifest())],
            &config[..],
            std::slice::from_ref(&end),
        ]
        .concat(),
    );
    cases.push([&[head(&manifest())], &config[..]].concat());
    let mut newer = manifest();
    newer.version = 2;
    cases.push(vec![head(&newer), end.clone()]);
    cases.push(vec![end.clone()]);
    cases.push(vec![Frame::Data(vec![0; 1000]); 3]);
    let to = tempfile::tempdir().unwrap();
    let path = site.at("forged");
    for (n, frames) in cases.iter().enumerate() {
        forged(&path, frames);
        let inner = to.path().join("inner");
        let refused = restored(&path, &inner, false).await;
        assert!(refused.is_err(), "case {n}");
        assert!(names(to.path()).is_empty(), "case {n}");
    }
    // A frame that says it is longer than any, and rows that are not there.
    let mut to_file = Sealer::begin(std::fs::File::create(&path).unwrap(), &passphrase()).unwrap();
    to_file.write_all(&u32::MAX.to_be_bytes()).unwrap();
    to_file.finish().unwrap();
    let refused = restored(&path, to.path(), false).await.unwrap_err();
    assert!(refused.to_string().contains("longer than"), "{refused}");
    let mut to_file = Sealer::begin(std::fs::File::create(&path).unwrap(), &passphrase()).unwrap();
    // Frame::Rows with 2^60 rows, in postcard.
    let hostile = [5, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    to_file
        .write_all(&u32::try_from(hostile.len()).unwrap().to_be_bytes())
        .unwrap();
    to_file.write_all(&hostile).unwrap();
    to_file.finish().unwrap();
    assert!(restored(&path, to.path(), false).await.is_err());
    assert!(names(to.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_overwrites_nothing_unless_told() {
    let site = Plain::new("");
    fill(&site.at("state"), 3).await;
    let store = site.open().await;
    let file = tempfile::tempdir().unwrap();
    let file = file.path().join("b");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    site.back_up(&store, &file).await;
    store.put_drive(&row(9000)).await.unwrap();
    store.close().await;
    let before = names(site.directory.path());
    let refused = restored(&file, site.directory.path(), false)
        .await
        .unwrap_err();
    assert!(matches!(refused, BackupError::Exists(_)), "{refused}");
    assert_eq!(names(site.directory.path()), before);
    let running = std::os::unix::net::UnixListener::bind(site.at("state/ekm.sock")).unwrap();
    let overwrite = Asked {
        operator: "operator:test",
        file: &file,
        passphrase: &passphrase(),
        config: &site.at("ekm.toml"),
        in_place: false,
        overwrite: true,
        sqlite: false,
    };
    let refused = restore::restore(&overwrite).await.unwrap_err();
    assert!(matches!(refused, BackupError::Running(_)), "{refused}");
    drop(running);
    let back = restore::restore(&overwrite).await.unwrap();
    assert!(
        back.aside
            .iter()
            .all(|(was, now)| was.exists() && now.exists())
    );
    let store = site.open().await;
    assert_eq!(store.drive(&row(9000).serial).await.unwrap(), None);
    let (_, old) = back
        .aside
        .iter()
        .find(|(was, _)| was.ends_with("state"))
        .unwrap();
    let old = Sql::sqlite(old).await.unwrap();
    assert!(old.drive(&row(9000).serial).await.unwrap().is_some());
    // A backup is not overwritten by another either.
    let there = make::make(
        &make::Asked {
            config_path: &site.at("ekm.toml"),
            config: &site.config(),
            file: &file,
            passphrase: &passphrase(),
            with_pins: false,
            audit: false,
            id: uuid::Uuid::new_v4(),
            at: OffsetDateTime::now_utc(),
            keks: Vec::new(),
        },
        &store,
    )
    .await
    .unwrap_err();
    assert!(matches!(there, BackupError::Taken(_)), "{there}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_file_that_the_configuration_names_is_in_the_backup() {
    let site = Plain::new("");
    let named = [
        "tls/drives.crt",
        "tls/revoked.crl",
        "tls/peers.crt",
        "tls/log-ca.crt",
        "tls/log.crt",
        "tls/log.key",
    ];
    for name in named {
        std::fs::write(site.at(name), format!("content of {name}")).unwrap();
    }
    let mut text = std::fs::read_to_string(site.at("ekm.toml")).unwrap();
    text += &format!("drive_ca = {:?}\ncrl = {:?}\n", named[0], named[1]);
    text += &format!("[sync]\nca = {:?}\n", named[2]);
    text += &format!(
        "[[records.syslog]]\nto = \"tls://log:6514\"\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n",
        named[3], named[4], named[5]
    );
    std::fs::write(site.at("ekm.toml"), text).unwrap();
    fill(&site.at("state"), 1).await;
    let store = site.open().await;
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("b");
    site.back_up(&store, &file).await;
    let to = place.path().join("to");
    restored(&file, &to, false).await.unwrap();
    for name in named
        .into_iter()
        .chain(["tls/s.crt", "tls/s.key", "tls/ca.crt"])
    {
        let back = std::fs::read_to_string(to.join(name)).unwrap();
        assert_eq!(back, format!("content of {name}"));
    }
}
