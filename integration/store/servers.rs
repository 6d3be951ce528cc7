//! The servers that share a state.

use ekm::key::KekHash;
use ekm::store::{Defaults, KekHeld, KeyServer, Servers as _, TokenHeld};
use time::OffsetDateTime;
use uuid::Uuid;

use super::both;

fn server(node: &str, instance: u128) -> KeyServer {
    KeyServer {
        node: node.to_owned(),
        instance: Uuid::from_u128(instance),
        version: "0.1.0".to_owned(),
        started: OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap(),
        seen: OffsetDateTime::from_unix_timestamp(1_790_000_005).unwrap(),
        knows: 7,
        tokens: vec![TokenHeld {
            name: "main".to_owned(),
            serial: "0001".to_owned(),
            known: true,
            keks: vec![KekHeld {
                label: "KEK1".parse().unwrap(),
                hash: KekHash::of_spki(b"k"),
            }],
        }],
        defaults: Defaults {
            kek1: Some("KEK1:hash".parse().unwrap()),
            kek2: None,
        },
    }
}

/// The same with the time that each gave itself, which nobody else's clock need agree with: what is
/// kept is the database's.
fn at_its_own_time(servers: impl IntoIterator<Item = KeyServer>) -> Vec<KeyServer> {
    let now = OffsetDateTime::now_utc();
    let own = server("", 0).seen;
    servers
        .into_iter()
        .map(|server| {
            assert!((now - server.seen).abs() < time::Duration::minutes(5));
            KeyServer {
                seen: own,
                ..server
            }
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_tell_of_themselves_and_see_each_other() {
    for two in both().await {
        let (a, b) = (server("a", 1), server("b", 2));
        assert_eq!(two.one.tell(&a).await.unwrap(), None);
        assert_eq!(two.other.tell(&b).await.unwrap(), None);
        let known = two.one.servers().await.unwrap();
        assert_eq!(at_its_own_time(known), [a.clone(), b.clone()]);
        // Another one of the same name sees whom it takes the place of.
        let twin = server("a", 3);
        let former = two.other.tell(&twin).await.unwrap();
        assert_eq!(at_its_own_time(former), [a]);
        assert!(two.one.forget_server("b").await.unwrap());
        assert!(!two.one.forget_server("b").await.unwrap());
        let known = two.other.servers().await.unwrap();
        assert_eq!(at_its_own_time(known), [twin]);
    }
}
