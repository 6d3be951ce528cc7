//! Keys that seal, anchors and heads of audit chains.

use ekm::audit::HeadMark;
use ekm::store::{Anchored, ChainStore as _, SealKeyRow};
use time::OffsetDateTime;

use super::both;

fn anchor(number: u64, hash: &str) -> Anchored {
    Anchored {
        node: "ekm1".to_owned(),
        number,
        seq: 10 * number,
        hash: hash.repeat(64),
        at: OffsetDateTime::UNIX_EPOCH,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_seal_are_kept_the_newest_first() {
    for two in both().await {
        assert_eq!(two.one.seal_keys().await.unwrap(), []);
        let mut keys = Vec::new();
        for number in 1..=2 {
            let key = SealKeyRow {
                id: [number; 16],
                spki: vec![number, 2, 3],
                token: "main".to_owned(),
                made: OffsetDateTime::UNIX_EPOCH + time::Duration::hours(number.into()),
            };
            two.one.add_seal_key(&key).await.unwrap();
            keys.insert(0, key);
        }
        assert_eq!(two.other.seal_keys().await.unwrap(), keys);
        // The same key is not there twice.
        assert!(two.other.add_seal_key(&keys[0]).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_anchor_is_never_overwritten_and_the_newest_is_found() {
    for two in both().await {
        assert_eq!(two.one.anchor("ekm1").await.unwrap(), None);
        for number in [1, 2, 10] {
            assert!(two.one.add_anchor(&anchor(number, "a")).await.unwrap());
        }
        // Again the same, as after an answer that was lost.
        assert!(two.other.add_anchor(&anchor(10, "a")).await.unwrap());
        assert!(!two.other.add_anchor(&anchor(10, "b")).await.unwrap());
        assert_eq!(
            two.other.anchor("ekm1").await.unwrap(),
            Some(anchor(10, "a"))
        );
        assert_eq!(two.one.anchor("ekm2").await.unwrap(), None);
        let peer = Anchored {
            node: "server:ekm2".to_owned(),
            ..anchor(3, "d")
        };
        assert!(two.one.add_anchor(&peer).await.unwrap());
        let newest = two.other.anchors().await.unwrap();
        assert_eq!(newest, [anchor(10, "a"), peer]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_record_of_each_server_takes_the_place_of_the_one_before() {
    for two in both().await {
        assert_eq!(two.one.chain_head("ekm1").await.unwrap(), None);
        for seq in [7, 8] {
            let head = HeadMark {
                seq,
                hash: "c".repeat(64),
            };
            two.one.set_chain_head("ekm1", &head).await.unwrap();
            assert_eq!(two.other.chain_head("ekm1").await.unwrap(), Some(head));
        }
        assert_eq!(two.one.chain_head("ekm2").await.unwrap(), None);
    }
}
