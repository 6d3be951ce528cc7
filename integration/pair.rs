//! Two key servers with the same KEKs and drive table, each with a state of its own, behind ways
//! that can be blocked.

use std::path::Path;
use std::time::{Duration, Instant};

use ekm::api::{Base64, CreateRequest, ResolveRequest};
use ekm::proxy::{KeyServer, KeyServers, KeyService, ServerAddress, ServerState, Times};
use ekm::tls::{ClientPaths, ClientTls};
use serde_json::Value;
use uuid::Uuid;

use crate::door::{House, HouseDrive, Identity, PATIENCE, Serving};
use crate::relay::Relay;

/// The host speaks for all drives, and may name KEKs.
const RULES: &str = "[[policy.peers]]\npeer = \"proxy:host1\"\ndrives = [\"*\"]\ncreate_keks = [\"*\"]\nrekey_keks = [\"*\"]\n";

/// The times of the tests: short, and long enough for a loaded machine.
pub(crate) fn times() -> Times {
    Times {
        connect: Duration::from_secs(5),
        answer: Duration::from_secs(5),
        retries: 1,
        total: PATIENCE,
        probe: Duration::from_millis(200),
        wait: true,
    }
}

pub(crate) struct Pair {
    pub(crate) house: House,
    pub(crate) drives: Vec<HouseDrive>,
}

/// A configuration of one of the two.
const CONFIGS: [&str; 2] = ["ekm.toml", "ekm2.toml"];

impl Pair {
    /// Two sites, not running, with so many drives enrolled in both.
    pub(crate) fn new(drives: u32) -> Self {
        let house = House::new("", RULES);
        let drives = (1..=drives).map(|n| house.drive(n)).collect();
        copy(&house.at("state"), &house.at("state2"));
        copy(&house.at("token"), &house.at("token2"));
        let text = std::fs::read_to_string(house.at("ekm.toml")).unwrap();
        let mut other = text.clone();
        for (from, to) in [
            ("node = \"house\"", "node = \"other\""),
            ("state = \"state\"", "state = \"state2\""),
            ("audit = \"audit\"", "audit = \"audit2\""),
            ("directory = \"token\"", "directory = \"token2\""),
        ] {
            assert!(other.contains(from), "{other}");
            other = other.replace(from, to);
        }
        std::fs::write(house.at("ekm2.toml"), other).unwrap();
        Self { house, drives }
    }

    /// Starts the first or the second server, and waits until its token is ready.
    pub(crate) async fn serve(&self, which: usize) -> Serving {
        let serving = self.launch(which).await;
        let watcher = self.house.identity("operator", "watcher");
        let mut client = self.house.client_of(&serving, &watcher);
        let start = Instant::now();
        while client.get("/readyz").await.unwrap().0 != 200 {
            assert!(start.elapsed() < PATIENCE, "not ready:\n{}", serving.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        serving
    }

    /// Starts it, ready or not.
    pub(crate) async fn launch(&self, which: usize) -> Serving {
        let command = self.house.command(&["--config", CONFIGS[which], "serve"]);
        self.house.serve_command(command).await
    }

    /// Both servers and the ways to them.
    pub(crate) async fn both(&self) -> ([Serving; 2], [Relay; 2]) {
        let servings = [self.serve(0).await, self.serve(1).await];
        let relays = [
            Relay::to(&servings[0].address).await,
            Relay::to(&servings[1].address).await,
        ];
        (servings, relays)
    }

    /// A command at one of them.
    pub(crate) fn on(&self, which: usize, arguments: &[&str]) -> String {
        let mut all = vec!["--config", CONFIGS[which]];
        all.extend(arguments);
        self.house.done(&all)
    }

    /// The data keys in the history of one of them: DKi and state.
    pub(crate) fn history(&self, which: usize) -> Vec<(String, String)> {
        let listed = self.on(which, &["volume", "list", "--json"]);
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let keys = listed.as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        keys.map(|key| (text(&key["dki"]), text(&key["state"])))
            .collect()
    }

    /// Whether one of them has a record of that request.
    pub(crate) fn recorded(&self, which: usize, request: &Uuid) -> bool {
        let audit = self.house.at(["audit", "audit2"][which]);
        let request = request.to_string();
        std::fs::read_dir(audit).unwrap().any(|entry| {
            let path = entry.unwrap().path();
            path.is_file()
                && String::from_utf8_lossy(&std::fs::read(path).unwrap()).contains(&request)
        })
    }

    pub(crate) fn host(&self) -> Identity {
        self.house.identity("proxy", "host1")
    }

    /// The host's keys from these, in that order.
    pub(crate) async fn keys(&self, relays: &[Relay], times: Times) -> KeyService {
        let servers = relays.iter().map(server).collect();
        self.keys_of(KeyServers::of(servers).unwrap(), times).await
    }

    /// The same, whose confirms that wait are in that directory.
    pub(crate) async fn keys_keeping(&self, relays: &[Relay], directory: &Path) -> KeyService {
        let servers = relays.iter().map(server).collect();
        let Identity {
            ca,
            certificate,
            key,
        } = self.host();
        let paths = ClientPaths {
            ca,
            certificate,
            key,
        };
        let (servers, tls) = (KeyServers::of(servers), ClientTls::load(paths));
        KeyService::start_keeping(servers.unwrap(), tls.unwrap(), times(), directory).await
    }

    pub(crate) async fn keys_of(&self, servers: KeyServers, times: Times) -> KeyService {
        let Identity {
            ca,
            certificate,
            key,
        } = self.host();
        let paths = ClientPaths {
            ca,
            certificate,
            key,
        };
        KeyService::start(servers, ClientTls::load(paths).unwrap(), times).await
    }

    pub(crate) fn create(&self, drive: usize) -> CreateRequest {
        self.drives[drive].create()
    }

    pub(crate) fn resolve(&self, drive: usize, eedks: &[Base64]) -> ResolveRequest {
        ResolveRequest {
            dki: None,
            request_id: Uuid::new_v4(),
            drive: self.create(drive).drive,
            volser: None,
            eedks: eedks.to_vec(),
            append: false,
        }
    }
}

pub(crate) fn server(relay: &Relay) -> KeyServer {
    let address: ServerAddress = relay.address.to_string().parse().unwrap();
    address.into()
}

/// Whether that answer came from there.
pub(crate) fn is_from(by: &ekm::proxy::Issuer, relay: &Relay) -> bool {
    by.address().to_string() == relay.address.to_string()
}

/// Waits until the server of that place is so.
pub(crate) async fn becomes(keys: &KeyService, place: usize, wanted: ServerState) {
    let start = Instant::now();
    while keys.seen().servers[place].state != wanted {
        assert!(
            start.elapsed() < PATIENCE,
            "not {wanted}: {:?}",
            keys.seen()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn copy(from: &Path, to: &Path) {
    let done = std::process::Command::new("cp")
        .args(["-a"])
        .args([from, to])
        .status();
    assert!(done.unwrap().success());
}
