//! The state, on SQLite and on a real PostgreSQL: the same tests on both.
//!
//! Each opens a new database twice, as two servers would.

mod evidence;
mod lifecycle;
mod operators;
mod servers;
mod sync;
mod tables;

use ekm::bridge::message::{Custody, Provenance};
use ekm::copies::{CopyKind, KekCopy};
use ekm::drive::DriveSerial;
use ekm::key::{DataKeyId, Eedk, KekHash, KekId, OaepHash, SedkForm, WrapAlgorithm};
use ekm::store::merge::Tables as _;
use ekm::store::{
    Birth, DatabaseConfig, Defaults, Drive, DriveKey, DriveState, EedkState, Forgiven, Issuance,
    Issued, KekLife as _, Opening, Origin, RegisteredKek, RequestKey, Sql, Store, StoreError,
    StoredEedk,
};
use ekm::tls::PeerId;
use tempfile::TempDir;
use time::OffsetDateTime;

use crate::postgres::Postgres;

/// A database, and what two servers have of it.
struct Two {
    one: Sql,
    other: Sql,
    place: Place,
}

enum Place {
    Sqlite(TempDir),
    Postgres(DatabaseConfig),
}

impl Place {
    async fn open(&self) -> Result<Sql, StoreError> {
        match self {
            Self::Sqlite(directory) => Sql::sqlite(directory.path()).await,
            Self::Postgres(database) => Sql::postgres(database).await,
        }
    }

    async fn two(self) -> Two {
        if let Self::Sqlite(directory) = &self {
            // SQLite 3.51.1 takes two locks in one order where the last connection of a process to a
            // file closes, and in the other where another one closes or opens it: so they hang for
            // ever, and whoever else uses SQLite with them. One that stays is in nobody's way.
            std::mem::forget(Sql::sqlite(directory.path()).await.unwrap());
        }
        Two {
            one: self.open().await.unwrap(),
            other: self.open().await.unwrap(),
            place: self,
        }
    }
}

/// SQLite, and PostgreSQL where there is one.
async fn both() -> Vec<Two> {
    let mut all = vec![Place::Sqlite(tempfile::tempdir().unwrap()).two().await];
    if let Some(server) = Postgres::shared() {
        all.push(Place::Postgres(server.database()).two().await);
    }
    all
}

fn row(serial: &str, custody: Custody) -> Drive {
    Drive {
        serial: serial.parse().unwrap(),
        wwn: Some("5005076300C0FFEE".parse().unwrap()),
        kek1: Some("KEK1:hash".parse().unwrap()),
        kek2: None,
        key: DriveKey::Pinned(vec![1, 2, 3]),
        form: SedkForm::T10Wrapped,
        custody,
        speakers: vec!["proxy:host1".parse().unwrap()],
        state: DriveState::Active,
    }
}

fn kek(label: &str, spki: &[u8]) -> RegisteredKek {
    RegisteredKek {
        label: label.parse().unwrap(),
        hash: KekHash::of_spki(spki),
        spki: spki.to_vec(),
        bits: 3072,
        token: "main".to_owned(),
        custody: Custody::Token,
        provenance: Provenance::Born,
    }
}

fn peer() -> PeerId {
    "drive:000007800001".parse().unwrap()
}

/// Numbers that no other test's keys have matter to nobody: each test has its database.
fn dki(number: u8) -> DataKeyId {
    DataKeyId::from_random([number; 9])
}

fn eedk(dki: DataKeyId, label: &str, filling: u8) -> StoredEedk {
    let kek = KekId::Label(label.parse().unwrap());
    let wrap = WrapAlgorithm::oaep(OaepHash::Sha256, true);
    StoredEedk {
        eedk: Eedk::new(dki, kek, wrap, vec![filling; 256]).unwrap(),
        kek_label: label.parse().unwrap(),
        kek_hash: KekHash::of_spki(label.as_bytes()),
        proved: true,
    }
}

fn issuance(request: &str, number: u8, volser: &str) -> Issuance {
    let dki = dki(number);
    Issuance {
        request: RequestKey {
            peer: peer(),
            id: request.to_owned(),
        },
        digest: [number; 32],
        dki,
        volser: volser.parse().unwrap(),
        drive: "000007800001".parse().unwrap(),
        token: "main".to_owned(),
        custody: Custody::Token,
        origin: Origin::Ours,
        new: true,
        eedks: vec![eedk(dki, "KEK1", number), eedk(dki, "KEK2", number)],
        server: "ekm1".to_owned(),
        job: Some("PAYROLL".to_owned()),
    }
}

async fn confirm(store: &Sql, given: &Issuance, stored: bool) -> Option<EedkState> {
    store
        .confirm(&given.request.id, &given.dki, &given.drive, stored, &peer())
        .await
        .unwrap()
        .map(|key| key.state)
}

#[tokio::test(flavor = "multi_thread")]
async fn drives_are_put_replaced_deleted_and_discovered() {
    for two in both().await {
        let first = row("000007800001", Custody::Token);
        two.one.put_drive(&first).await.unwrap();
        assert_eq!(
            two.other.drive(&first.serial).await.unwrap(),
            Some(first.clone())
        );
        let mut changed = row("000007800001", Custody::Host);
        changed.key = DriveKey::Certified;
        changed.wwn = None;
        changed.speakers.clear();
        two.other.put_drive(&changed).await.unwrap();
        assert_eq!(two.one.drives().await.unwrap(), vec![changed.clone()]);
        assert!(two.one.delete_drive(&first.serial).await.unwrap());
        assert!(!two.other.delete_drive(&first.serial).await.unwrap());
        assert_eq!(two.other.drive(&first.serial).await.unwrap(), None);
        // Who was deleted does not come back by asking.
        assert!(!two.other.discover_drive(&first).await.unwrap());
        let new = row("000007800002", Custody::Token);
        assert!(two.other.discover_drive(&new).await.unwrap());
        assert!(!two.one.discover_drive(&new).await.unwrap());
        two.one.put_drive(&first).await.unwrap();
        assert_eq!(two.other.drives().await.unwrap().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_is_one_keys_whoever_asks_at_the_same_moment() {
    for two in both().await {
        let (mine, theirs) = (kek("TAPE", b"mine"), kek("tape", b"theirs"));
        let (first, second) =
            tokio::join!(two.one.register_kek(&mine), two.other.register_kek(&theirs));
        assert_eq!(
            usize::from(first.is_ok()) + usize::from(second.is_ok()),
            1,
            "{first:?} {second:?}"
        );
        let refused = first.err().or(second.err()).unwrap();
        assert!(
            matches!(refused, StoreError::LabelTaken { .. }),
            "{refused}"
        );
        let kept = two.one.keks().await.unwrap();
        assert_eq!(kept.len(), 1);
        two.other.register_kek(&kept[0]).await.unwrap();
        assert_eq!(two.other.keks().await.unwrap(), kept);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn defaults_copies_births_and_the_guards_secret_are_shared() {
    for two in both().await {
        assert_eq!(two.one.defaults().await.unwrap(), Defaults::default());
        for label in ["KEK1", "KEK2:hash"] {
            let defaults = Defaults {
                kek1: Some(label.parse().unwrap()),
                kek2: None,
            };
            two.one.set_defaults(&defaults).await.unwrap();
            assert_eq!(two.other.defaults().await.unwrap(), defaults);
        }
        let copy = KekCopy {
            kek: KekHash::of_spki(b"k"),
            kind: CopyKind::Restored,
            ceremony: Some(uuid::Uuid::new_v4()),
            token: Some("second".to_owned()),
            serial: None,
            proven: true,
            note: None,
            at: OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap(),
        };
        two.one.add_kek_copy(&copy).await.unwrap();
        assert_eq!(two.other.kek_copies().await.unwrap()[..], [copy]);
        let birth = Birth {
            ceremony: uuid::Uuid::new_v4(),
            label: "KEK3".parse().unwrap(),
            token: "main".to_owned(),
            began: OffsetDateTime::from_unix_timestamp(1_790_000_001).unwrap(),
        };
        two.one.begin_birth(&birth).await.unwrap();
        two.one.begin_birth(&birth).await.unwrap();
        assert_eq!(two.other.births().await.unwrap(), vec![birth.clone()]);
        two.other.end_birth(&birth.ceremony).await.unwrap();
        assert!(two.one.births().await.unwrap().is_empty());
        let (mine, theirs) = tokio::join!(two.one.guard_secret(), two.other.guard_secret());
        assert_eq!(mine.unwrap(), theirs.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_and_removed() {
    for two in both().await {
        let hash = KekHash::of_spki(b"k");
        for der in [b"first".as_slice(), b"second"] {
            two.one.set_certificate(&hash, Some(der)).await.unwrap();
            let read = two.other.certificates().await.unwrap();
            assert_eq!(read.own.len(), 1);
            assert_eq!(read.own[0].certificate, der);
        }
        two.other.set_certificate(&hash, None).await.unwrap();
        assert!(two.one.certificates().await.unwrap().own.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_issued_is_found_again_and_never_changes() {
    for two in both().await {
        let given = issuance("r1", 1, "VOL001");
        assert_eq!(two.one.issue(&given).await.unwrap(), Issued::Now);
        let (digest, key) = two.other.answered(&given.request).await.unwrap().unwrap();
        assert_eq!(digest, given.digest);
        assert_eq!(key.eedks, given.eedks);
        assert_eq!((key.generation, key.state), (1, EedkState::Issued));
        assert_eq!(
            (key.server.as_str(), key.job.as_deref()),
            ("ekm1", Some("PAYROLL"))
        );
        let sha256 = given.eedks[1].eedk.digest();
        assert_eq!(two.other.issued(&sha256).await.unwrap(), Some(Origin::Ours));
        assert_eq!(two.other.issued(&[0; 32]).await.unwrap(), None);
        assert_eq!(
            two.other.origin(&given.dki).await.unwrap(),
            Some(Origin::Ours)
        );
        // An identifier that exists is no new data key.
        let mut twin = issuance("r2", 1, "VOL001");
        twin.eedks = vec![eedk(given.dki, "KEK1", 9)];
        assert!(two.other.issue(&twin).await.is_err());
        // A rekey is.
        twin.new = false;
        twin.origin = Origin::Foreign;
        twin.job = None;
        assert_eq!(two.other.issue(&twin).await.unwrap(), Issued::Now);
        assert_eq!(
            two.one.origin(&given.dki).await.unwrap(),
            Some(Origin::Ours)
        );
        assert_eq!(
            confirm(&two.one, &given, true).await,
            Some(EedkState::Confirmed)
        );
        assert_eq!(
            two.one
                .data_key(&given.dki)
                .await
                .unwrap()
                .unwrap()
                .generation,
            1
        );
        assert_eq!(
            confirm(&two.other, &twin, true).await,
            Some(EedkState::Confirmed)
        );
        let volser = "VOL001".parse().unwrap();
        let states: Vec<_> = two.one.volumes(Some(&volser)).await.unwrap();
        let states: Vec<_> = states
            .iter()
            .map(|key| (key.generation, key.state))
            .collect();
        assert_eq!(
            states,
            [(2, EedkState::Confirmed), (1, EedkState::Superseded)]
        );
        // What is superseded is not confirmed anew, and another drive confirms nothing.
        assert_eq!(
            confirm(&two.one, &given, true).await,
            Some(EedkState::Superseded)
        );
        let mut other = given.clone();
        other.drive = "000007800002".parse().unwrap();
        assert_eq!(confirm(&two.one, &other, true).await, None);
        let unknown = issuance("r9", 9, "VOL009");
        assert_eq!(confirm(&two.one, &unknown, true).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_two_servers_do_at_once_has_one_answer() {
    for two in both().await {
        for round in 0..20 {
            let request = format!("r{round}");
            let mine = issuance(&request, round * 2, "VOL001");
            let theirs = issuance(&request, round * 2 + 1, "VOL001");
            let (first, second) = tokio::join!(two.one.issue(&mine), two.other.issue(&theirs));
            let outcomes = [first.unwrap(), second.unwrap()];
            assert!(
                outcomes.contains(&Issued::Now) && outcomes.contains(&Issued::Before),
                "{outcomes:?}"
            );
            let given = if outcomes[0] == Issued::Now {
                &mine
            } else {
                &theirs
            };
            let (_, key) = two.one.answered(&mine.request).await.unwrap().unwrap();
            assert_eq!(key.dki, given.dki);
        }
        assert_eq!(two.one.volumes(None).await.unwrap().len(), 20);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_confirms_for_one_volume_the_later_counts() {
    for two in both().await {
        for round in 0..20 {
            let volser = format!("VOL{round:03}");
            let mine = issuance(&format!("a{round}"), round * 2, &volser);
            let theirs = issuance(&format!("b{round}"), round * 2 + 1, &volser);
            assert_eq!(two.one.issue(&mine).await.unwrap(), Issued::Now);
            assert_eq!(two.other.issue(&theirs).await.unwrap(), Issued::Now);
            tokio::join!(
                confirm(&two.one, &mine, true),
                confirm(&two.other, &theirs, true)
            );
            let held = two
                .one
                .volumes(Some(&volser.parse().unwrap()))
                .await
                .unwrap();
            let count = |state| held.iter().filter(|key| key.state == state).count();
            assert_eq!(
                (count(EedkState::Confirmed), count(EedkState::Superseded)),
                (1, 1),
                "{held:?}"
            );
        }
    }
}

/// What was given out first and confirmed last: it came in after the volume was stored on again.
#[tokio::test(flavor = "multi_thread")]
async fn a_confirm_that_comes_late_takes_nothing_from_what_is_on_the_cartridge() {
    for two in both().await {
        let (late, held) = (issuance("late", 1, "VOL001"), issuance("held", 2, "VOL001"));
        assert_eq!(two.one.issue(&held).await.unwrap(), Issued::Now);
        assert_eq!(
            confirm(&two.one, &held, true).await,
            Some(EedkState::Confirmed)
        );
        assert_eq!(two.other.issue(&late).await.unwrap(), Issued::Now);
        raw(
            &two.place,
            &format!("UPDATE generations SET made = 1 WHERE dki = '{}'", late.dki),
        )
        .await;
        assert_eq!(
            confirm(&two.other, &late, true).await,
            Some(EedkState::Superseded)
        );
        let of = two.one.data_key(&held.dki).await.unwrap().unwrap();
        assert_eq!(of.state, EedkState::Confirmed);
    }
}

/// An EEDK in a file may be of a data key that its author made up.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_is_imported_adds_nothing_to_a_data_key_of_ours() {
    for two in both().await {
        let given = issuance("r1", 1, "VOL001");
        assert_eq!(two.one.issue(&given).await.unwrap(), Issued::Now);
        let mut forged = two.one.data_key(&given.dki).await.unwrap().unwrap();
        forged.generation = 2;
        forged.eedks = vec![eedk(given.dki, "KEK1", 77)];
        let taken = two
            .other
            .take_volumes(std::slice::from_ref(&forged), "operator", true)
            .await
            .unwrap();
        assert_eq!((taken.added, taken.other), (0, 1));
        let digest = forged.eedks[0].eedk.digest();
        assert_eq!(two.one.issued(&digest).await.unwrap(), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_rekeys_of_a_data_key_at_once_are_two_generations() {
    for two in both().await {
        let given = issuance("r0", 1, "VOL001");
        assert_eq!(two.one.issue(&given).await.unwrap(), Issued::Now);
        let again = |request: &str, filling: u8| {
            let mut again = issuance(request, 1, "VOL001");
            again.new = false;
            again.eedks = vec![eedk(again.dki, "KEK1", filling)];
            again
        };
        let (mine, theirs) = (again("r1", 11), again("r2", 12));
        let (first, second) = tokio::join!(two.one.issue(&mine), two.other.issue(&theirs));
        assert_eq!([first.unwrap(), second.unwrap()], [Issued::Now; 2]);
        let mut generations: Vec<u32> = two
            .one
            .volumes(None)
            .await
            .unwrap()
            .iter()
            .map(|key| key.generation)
            .collect();
        generations.sort_unstable();
        assert_eq!(generations, [1, 2, 3]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_openings_count_until_they_are_forgiven() {
    for two in both().await {
        let kek = KekHash::of_spki(b"k");
        for failed in [true, false, true] {
            let at = OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap();
            let (peer, kek) = (peer(), kek);
            let opening = Opening {
                peer,
                kek,
                failed,
                at,
            };
            two.one.note_opening(&opening).await.unwrap();
        }
        let failed = two.other.failed_openings().await.unwrap();
        assert_eq!(failed.len(), 2);
        assert!(failed.iter().all(|one| one.of_peer && one.of_kek));
        two.other
            .forgive_openings(&Forgiven::Peer(peer()))
            .await
            .unwrap();
        let left = two.one.failed_openings().await.unwrap();
        assert!(left.iter().all(|one| !one.of_peer && one.of_kek) && left.len() == 2);
        two.one.forgive_openings(&Forgiven::Kek(kek)).await.unwrap();
        assert!(two.other.failed_openings().await.unwrap().is_empty());
    }
}

/// A newer version has added a table; an older one goes on, until the newer says that it must not.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_version_beside_an_older_one() {
    for two in both().await {
        let Two { place, one, other } = two;
        raw(&place, "CREATE TABLE of_the_future (name TEXT)").await;
        raw(
            &place,
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             SELECT 9000, 'future', success, checksum, 1 FROM _sqlx_migrations WHERE version = 1",
        )
        .await;
        let again = place.open().await.unwrap();
        let given = issuance("r1", 1, "VOL001");
        assert_eq!(again.issue(&given).await.unwrap(), Issued::Now);
        raw(
            &place,
            "UPDATE settings SET value = '9000' WHERE name = 'schema'",
        )
        .await;
        let refused = place.open().await.unwrap_err();
        assert!(refused.to_string().contains("newer ekm"), "{refused}");
        drop((one, other));
    }
}

async fn raw(place: &Place, statement: &str) {
    use sqlx::Connection as _;
    let url = match place {
        Place::Sqlite(directory) => {
            format!("sqlite://{}/state.db", directory.path().display())
        }
        Place::Postgres(database) => database.url.clone(),
    };
    let mut connection = sqlx::AnyConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned()))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_there_is_named_without_a_password() {
    let directory = tempfile::tempdir().unwrap();
    let password = directory.path().join("password");
    crate::support::write_private(&password, "very secret");
    let database = DatabaseConfig {
        password: Some(ekm::bridge::pin::PinSource::File(password)),
        ..DatabaseConfig::at("postgresql://ekm@127.0.0.1:1/ekm")
    };
    let error = Sql::postgres(&database).await.unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(text.contains("postgresql 127.0.0.1:1 ekm"), "{text}");
    assert!(!text.contains("very secret"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_network_the_database_shows_its_certificate_and_we_a_password() {
    let directory = tempfile::tempdir().unwrap();
    let issuer = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec![]).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).unwrap();
        let path = directory.path().join(name);
        std::fs::write(&path, certificate.pem()).unwrap();
        (rcgen::Issuer::new(parameters, key), path)
    };
    let ((ours, right), (_, wrong)) = (issuer("ca.crt"), issuer("other.crt"));
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .unwrap()
        .signed_by(&key, &ours)
        .unwrap();
    let password = "correct horse/battery:staple@?#";
    let Some((_server, port)) =
        Postgres::with_tls(&certificate.pem(), &key.serialize_pem(), password)
    else {
        return;
    };
    let file = directory.path().join("password");
    let database = |root: &std::path::Path, password: &str| {
        crate::support::write_private(&file, password);
        DatabaseConfig {
            password: Some(ekm::bridge::pin::PinSource::File(file.clone())),
            ..DatabaseConfig::at(format!(
                "postgresql://ekm@127.0.0.1:{port}/postgres?sslmode=verify-full&sslrootcert={}",
                root.display()
            ))
        }
    };
    let config = database(&right, password);
    assert!(config.faults().is_empty());
    let store = Sql::postgres(&config).await.unwrap();
    let given = issuance("r1", 1, "VOL001");
    assert_eq!(store.issue(&given).await.unwrap(), Issued::Now);
    for (root, given, why) in [
        (&wrong, password, "certificate"),
        (&right, "wrong", "password"),
    ] {
        let refused = database(root, given);
        let error = Sql::postgres(&refused).await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert!(!error.contains(password), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_waits_for_the_disk_whatever_the_role_says() {
    let Some(server) = Postgres::shared() else {
        return;
    };
    let database = server.database();
    let name = database.url.split(['/', '?']).nth(3).unwrap().to_owned();
    server.psql(
        &name,
        &format!("ALTER DATABASE {name} SET synchronous_commit = off"),
    );
    let store = Sql::postgres(&database).await.unwrap();
    let given = issuance("r1", 1, "VOL001");
    assert_eq!(store.issue(&given).await.unwrap(), Issued::Now);
    assert_eq!(
        store.durability().await.unwrap(),
        "synchronous_commit = on, no synchronous replica"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drive_that_somebody_else_changed_meanwhile_is_not_changed_back() {
    for two in both().await {
        let first = row("000007800001", Custody::Token);
        two.one.change_drive(None, &first).await.unwrap();
        let changed = |outcome: Result<(), StoreError>| {
            let error = outcome.unwrap_err();
            assert!(matches!(error, StoreError::Changed { .. }), "{error}");
        };
        changed(two.other.change_drive(None, &first).await);
        let mut host = first.clone();
        host.custody = Custody::Host;
        two.other.change_drive(Some(&first), &host).await.unwrap();
        // Decided by the row as it was.
        let mut late = first.clone();
        late.kek1 = Some("KEK9".parse().unwrap());
        changed(two.one.change_drive(Some(&first), &late).await);
        assert_eq!(
            two.one.drive(&first.serial).await.unwrap(),
            Some(host.clone())
        );
        // Nor does a change bring back what was deleted.
        assert!(two.one.delete_drive(&first.serial).await.unwrap());
        changed(two.other.change_drive(Some(&host), &late).await);
        assert_eq!(two.other.drive(&first.serial).await.unwrap(), None);
        two.other.change_drive(None, &late).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_was_written_after_all_the_volume_holds_what_it_held_before() {
    for two in both().await {
        let state = async |given: &Issuance| {
            let all = two.one.volumes(Some(&given.volser)).await.unwrap();
            let found = all.iter().find(|key| key.dki == given.dki);
            found.map(|key| key.state).unwrap()
        };
        let before = issuance("r1", 1, "VOL001");
        let lost = issuance("r2", 2, "VOL001");
        let new = issuance("r3", 3, "VOL001");
        let aside = issuance("r4", 4, "VOL002");
        for given in [&before, &lost, &new, &aside] {
            assert_eq!(two.one.issue(given).await.unwrap(), Issued::Now);
        }
        confirm(&two.one, &before, true).await;
        confirm(&two.one, &aside, true).await;
        // One that was never confirmed gives way, too.
        confirm(&two.other, &new, true).await;
        assert_eq!(state(&before).await, EedkState::Superseded);
        assert_eq!(state(&lost).await, EedkState::Superseded);
        for _ in 0..2 {
            confirm(&two.one, &new, false).await;
            assert_eq!(state(&new).await, EedkState::Abandoned);
            assert_eq!(state(&before).await, EedkState::Confirmed);
            assert_eq!(state(&lost).await, EedkState::Issued);
            assert_eq!(state(&aside).await, EedkState::Confirmed);
        }
        // What comes later supersedes as ever.
        let later = issuance("r5", 5, "VOL001");
        assert_eq!(two.one.issue(&later).await.unwrap(), Issued::Now);
        confirm(&two.one, &later, true).await;
        assert_eq!(state(&before).await, EedkState::Superseded);
        // And what it was superseded by does not come back by the older one's word.
        confirm(&two.one, &before, false).await;
        assert_eq!(state(&later).await, EedkState::Confirmed);
        assert_eq!(state(&before).await, EedkState::Superseded);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kek_that_opened_what_was_not_issued_here_is_remembered_with_its_first_volume() {
    for two in both().await {
        let kek = KekHash::of_spki(b"k");
        assert_eq!(two.one.foreign_keks().await.unwrap(), []);
        for volser in ["VOL001", "VOL002"] {
            let volser = volser.parse().unwrap();
            two.one.note_foreign(&kek, Some(&volser)).await.unwrap();
        }
        let [(found, first)] = two.other.foreign_keks().await.unwrap().try_into().unwrap();
        assert!(found == kek && first.contains("VOL001"), "{first}");
    }
}
