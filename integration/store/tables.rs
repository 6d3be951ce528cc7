//! Whole tables, on both databases: as they were at one moment, and written all or not at all.

use ekm::certificates::Vouched;
use ekm::store::merge::{self, Changes, Tables as _};
use ekm::store::{Partner, Remembered};

use super::*;

fn partner(label: &str) -> Partner {
    Partner {
        label: label.parse().unwrap(),
        hash: KekHash::of_spki(label.as_bytes()),
        spki: label.as_bytes().to_vec(),
        certificate: vec![0x30],
        vouched: Vouched::Ca("CN=Root".to_owned()),
        operator: "operator:test".to_owned(),
        confirmed: OffsetDateTime::now_utc().truncate_to_second(),
        seals: Vec::new(),
    }
}

async fn fill(store: &Sql) {
    store
        .put_drive(&row("000007800001", Custody::Token))
        .await
        .unwrap();
    store
        .put_drive(&row("000007800002", Custody::Host))
        .await
        .unwrap();
    store
        .delete_drive(&"000007800002".parse().unwrap())
        .await
        .unwrap();
    store.register_kek(&kek("TAPE", b"tape")).await.unwrap();
    store.add_partner(&partner("BANK")).await.unwrap();
    store.add_partner(&partner("BROKER")).await.unwrap();
    store
        .delete_partner(&"broker".parse().unwrap())
        .await
        .unwrap();
    let defaults = Defaults {
        kek1: Some("TAPE".parse().unwrap()),
        kek2: None,
    };
    store.set_defaults(&defaults).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_another_server_merges_are_the_same_there() {
    for (two, empty) in both().await.into_iter().zip(both().await) {
        fill(&two.one).await;
        let theirs = two.other.dump_tables().await.unwrap();
        assert_eq!(theirs.drives.as_ref().unwrap().len(), 2);
        assert_eq!(theirs.partners.as_ref().unwrap().len(), 2);
        // Through the text that a file or a peer would have.
        let theirs = serde_json::from_str(&serde_json::to_string(&theirs).unwrap()).unwrap();
        let ours = empty.one.dump_tables().await.unwrap();
        let changes = merge::merge(&ours, &theirs);
        empty.one.apply(&changes).await.unwrap();
        let after = empty.other.dump_tables().await.unwrap();
        assert_eq!(after, theirs);
        assert!(merge::merge(&after, &theirs).is_empty());
        assert!(merge::rewrite(&after, &theirs, OffsetDateTime::now_utc()).is_empty());
        // Deleted here after that: it does not come back.
        let serial = "000007800001".parse().unwrap();
        empty.one.delete_drive(&serial).await.unwrap();
        empty
            .one
            .delete_partner(&"BANK".parse().unwrap())
            .await
            .unwrap();
        let later = empty.one.dump_tables().await.unwrap();
        assert_eq!(merge::merge(&later, &theirs).kept.len(), 2);
        // And the other way round it is deleted there too.
        let back = merge::merge(&theirs, &later);
        two.one.apply(&back).await.unwrap();
        assert_eq!(two.other.dump_tables().await.unwrap(), later);
        assert_eq!(two.other.drive(&serial).await.unwrap(), None);
        // Confirmed anew it is back.
        two.one.add_partner(&partner("BANK")).await.unwrap();
        assert_eq!(
            two.other.certificates().await.unwrap().partners[0].label,
            "BANK".parse().unwrap()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_where_a_row_changed_meanwhile() {
    for (two, empty) in both().await.into_iter().zip(both().await) {
        fill(&two.one).await;
        let theirs = two.one.dump_tables().await.unwrap();
        let ours = empty.one.dump_tables().await.unwrap();
        let changes = merge::merge(&ours, &theirs);
        // Each of them alone is in the way of the rest.
        let late = row("000007800001", Custody::Host);
        empty.other.put_drive(&late).await.unwrap();
        let refused = empty.one.apply(&changes).await.unwrap_err();
        assert!(matches!(refused, StoreError::Changed { .. }), "{refused}");
        assert!(empty.one.keks().await.unwrap().is_empty());
        assert_eq!(empty.one.drive(&late.serial).await.unwrap(), Some(late));

        let ours = empty.one.dump_tables().await.unwrap();
        let changes = merge::rewrite(&ours, &theirs, OffsetDateTime::now_utc());
        empty.other.register_kek(&kek("tape", b"x")).await.unwrap();
        assert!(empty.one.apply(&changes).await.is_err());
        assert_eq!(
            empty.one.defaults().await.unwrap(),
            Defaults::default(),
            "the defaults were written without the rest"
        );

        let ours = empty.one.dump_tables().await.unwrap();
        let changes = merge::rewrite(&ours, &theirs, OffsetDateTime::now_utc());
        empty
            .other
            .set_defaults(&Defaults::default())
            .await
            .unwrap();
        let refused = empty.one.apply(&changes).await.unwrap_err();
        assert!(refused.to_string().contains("defaults"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_remembered_of_a_drive_goes_with_the_tables() {
    let directory = tempfile::tempdir().unwrap();
    let beside = Sql::sqlite(directory.path()).await.unwrap();
    let remembered = Remembered::new(beside, std::time::Duration::from_secs(3600));
    let known = row("000007800001", Custody::Token);
    remembered.put_drive(&known).await.unwrap();
    remembered.drive(&known.serial).await.unwrap();
    let ours = remembered.dump_tables().await.unwrap();
    let mut theirs = ours.clone();
    theirs.drives = Some(Vec::new());
    let changes = merge::rewrite(&ours, &theirs, OffsetDateTime::now_utc());
    remembered.apply(&changes).await.unwrap();
    assert_eq!(remembered.drive(&known.serial).await.unwrap(), None);
    remembered.apply(&Changes::default()).await.unwrap();
}
