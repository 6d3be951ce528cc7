//! States and backups of releases, which stay readable for ever.
//!
//! `schema-4.db` was made with the migrations before the history was searched, by SQLite itself;
//! the others with `make_the_golden_files`.

use std::path::Path;

use ekm::key::DataKeyId;
use ekm::store::{DriveState, Sql, Store};

use super::{GOLDEN, PASSPHRASE, Plain, fill, restored};

/// Writes the golden files anew: for a release, by hand.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it writes the files that the other tests read"]
async fn make_the_golden_files() {
    let site = Plain::new("");
    fill(&site.at("state"), 2).await;
    let store = site.open().await;
    let golden = Path::new(GOLDEN);
    let backup = golden.join("0.1.0.ekmbackup");
    drop(std::fs::remove_file(&backup));
    site.back_up(&store, &backup).await;
    store.close().await;
    std::fs::copy(site.at("state/state.db"), golden.join("0.1.0.db")).unwrap();
    std::fs::write(golden.join("passphrase"), format!("{PASSPHRASE}\n")).unwrap();
}

/// What all golden states have.
async fn golden(store: &Sql) {
    let serial = "000007800001".parse().unwrap();
    let drive = store.drive(&serial).await.unwrap().unwrap();
    assert_eq!(drive.kek2, Some("TAPE2026B:hash".parse().unwrap()));
    assert_eq!(
        store.drive(&"000007800002".parse().unwrap()).await.unwrap(),
        None
    );
    let waits = store.drive(&"000007800003".parse().unwrap()).await.unwrap();
    assert_eq!(waits.unwrap().state, DriveState::Pending);
    assert_eq!(store.keks().await.unwrap().len(), 2);
    assert_eq!(
        store.defaults().await.unwrap().kek1,
        Some("TAPE2026A".parse().unwrap())
    );
    let copies = store.kek_copies().await.unwrap();
    assert_eq!(copies[0].note.as_deref(), Some("cloned to the second site"));
    let volumes = store.volumes(None).await.unwrap();
    let generations: Vec<u32> = volumes.iter().map(|key| key.generation).collect();
    assert_eq!(
        generations,
        [3, 2, 1],
        "newest first: by the times that were made of the texts"
    );
    let dki: DataKeyId = volumes[0].dki;
    for key in &volumes {
        let eedk = &key.eedks[0].eedk;
        assert_eq!(eedk.dki(), dki);
        assert!(store.issued(&eedk.digest()).await.unwrap().is_some());
    }
    let best = store.data_key(&dki).await.unwrap().unwrap();
    assert_eq!(best.generation, 1, "the one that a drive confirmed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_schema_4_is_brought_up_to_date_with_the_right_times() {
    let directory = tempfile::tempdir().unwrap();
    fill(directory.path(), 0).await;
    let store = Sql::sqlite(directory.path()).await.unwrap();
    golden(&store).await;
    store.close().await;
    let options =
        sqlx::sqlite::SqliteConnectOptions::new().filename(directory.path().join("state.db"));
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let made: Vec<(i64, i64)> = sqlx::query_as(
        "SELECT g.made, e.made FROM generations g JOIN eedks e USING (dki, generation)
         ORDER BY g.generation",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    // 2026-11-20T10:00:01Z and so on, in microseconds; SQLite's julianday keeps milliseconds.
    let wanted = [
        1_795_168_801_000_000,
        1_795_168_802_250_000,
        1_795_168_803_988_000,
    ];
    assert_eq!(made, wanted.map(|at| (at, at)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_this_release_stays_readable() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(
        Path::new(GOLDEN).join("0.1.0.db"),
        directory.path().join("state.db"),
    )
    .unwrap();
    golden(&Sql::sqlite(directory.path()).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backup_of_this_release_stays_readable() {
    let words = std::fs::read_to_string(Path::new(GOLDEN).join("passphrase")).unwrap();
    assert_eq!(words.trim_end(), PASSPHRASE);
    let to = tempfile::tempdir().unwrap();
    let file = Path::new(GOLDEN).join("0.1.0.ekmbackup");
    restored(&file, to.path(), false).await.unwrap();
    golden(&Sql::sqlite(&to.path().join("state")).await.unwrap()).await;
}
