//! Several servers on one PostgreSQL, each with a copy of one token.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ekm::api::{Base64, CreateAnswer, CreateRequest, ResolveAnswer, ResolveRequest};
use ekm::audit::Record;
use ekm::client::{ClientError, KeyClient};
use ekm::key::Sedk;
use ekm::problem::Problem;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use uuid::Uuid;

use crate::door::{House, HouseDrive, PATIENCE, Serving};
use crate::postgres::Postgres;

/// Node names.
pub(super) const NODES: [&str; 3] = ["a", "b", "c"];

/// The host speaks for all drives, and may name KEKs.
const RULES: &str =
    "[[policy.peers]]\npeer = \"drive:*\"\ncreate_keks = [\"*\"]\nrekey_keks = [\"*\"]\n";

/// The servers' surroundings.
pub(super) struct Stage {
    pub(super) house: House,
    pub(super) drives: Vec<HouseDrive>,
    pub(super) postgres: Postgres,
    pub(super) wire: Wire,
    database: String,
}

impl Stage {
    /// A database, so many enrolled drives, and a configuration for each node, whose `[database]`
    /// and `[fleet]` have these lines besides. The first node reaches the database by the wire.
    pub(super) async fn new(drives: u32, database: &str, fleet: &str) -> Option<Self> {
        let postgres = Postgres::start()?;
        let config = postgres.database();
        let name = config.url.split(['/', '?']).nth(3).unwrap().to_owned();
        let wire = Wire::to(postgres.socket());
        let url = format!("url = \"{}\"", config.url);
        let rest = format!("{RULES}\n[database]\n{url}\n{database}\n{fleet}\n");
        let house = House::new("", &rest);
        let drives = (1..=drives).map(|n| house.drive(n)).collect();
        let text = std::fs::read_to_string(house.at("ekm.toml")).unwrap();
        for node in NODES {
            let mut own = text.clone();
            for (from, to) in [
                ("node = \"house\"", format!("node = \"{node}\"")),
                ("state = \"state\"", format!("state = \"state-{node}\"")),
                ("audit = \"audit\"", format!("audit = \"audit-{node}\"")),
                (
                    "directory = \"token\"",
                    format!("directory = \"token-{node}\""),
                ),
            ] {
                assert!(own.contains(from), "{own}");
                own = own.replace(from, &to);
            }
            if node == "a" {
                let by_wire = format!(
                    "url = \"postgresql://ekm@localhost/{name}?host={}\"",
                    wire.folder().display()
                );
                own = own.replace(&url, &by_wire);
            }
            std::fs::write(house.at(&format!("{node}.toml")), own).unwrap();
            let copied = std::process::Command::new("cp")
                .arg("-a")
                .args([house.at("token"), house.at(&format!("token-{node}"))])
                .status();
            assert!(copied.unwrap().success());
        }
        Some(Self {
            house,
            drives,
            postgres,
            wire,
            database: name,
        })
    }

    /// Starts a server and waits until its token is ready and the cached table is on its disk.
    pub(super) async fn serve(&self, node: usize) -> Serving {
        let serving = self.launch(node).await.unwrap();
        let watcher = self.house.identity("operator", "watcher");
        let mut client = self.house.client_of(&serving, &watcher);
        let start = Instant::now();
        let cache = self.state(node).join("fleet-cache.json");
        while client.get("/readyz").await.unwrap().0 != 200 || !cache.exists() {
            assert!(start.elapsed() < PATIENCE, "not ready:\n{}", serving.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        serving
    }

    /// Starts it, ready or not; what it said where it does not start.
    pub(super) async fn launch(&self, node: usize) -> Result<Serving, String> {
        let config = format!("{}.toml", NODES[node]);
        let command = self.house.command(&["--config", &config, "serve"]);
        let log = format!("server-{}.log", NODES[node]);
        self.house.launch(command, &log).await
    }

    pub(super) fn state(&self, node: usize) -> PathBuf {
        self.house.at(&format!("state-{}", NODES[node]))
    }

    /// A command at one of them.
    pub(super) fn on(&self, node: usize, arguments: &[&str]) -> String {
        let config = format!("{}.toml", NODES[node]);
        let mut all = vec!["--config", config.as_str()];
        all.extend(arguments);
        self.house.done(&all)
    }

    /// What `ekm fleet status` says there.
    pub(super) fn status(&self, node: usize) -> Value {
        serde_json::from_str(&self.on(node, &["fleet", "status", "--json"])).unwrap()
    }

    /// Waits until the status of a server is as wanted.
    pub(super) async fn becomes(&self, node: usize, what: &str, so: impl Fn(&Value) -> bool) {
        let start = Instant::now();
        loop {
            let status = self.status(node);
            if so(&status) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "not {what}: {status:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What a replica of the database says.
    pub(super) fn at_replica(&self, replica: &Postgres, statement: &str) -> String {
        replica.psql(&self.database, statement)
    }

    /// Has every commit wait until that replica has applied it.
    pub(super) fn wait_for_replica(&self, name: &str) {
        let database = &self.database;
        self.sql(&format!(
            "ALTER DATABASE {database} SET synchronous_commit = remote_apply"
        ));
        self.sql(&format!(
            "ALTER SYSTEM SET synchronous_standby_names = '{name}'"
        ));
        self.sql("SELECT pg_reload_conf()");
    }

    pub(super) fn sql(&self, statement: &str) -> String {
        self.postgres.psql(&self.database, statement)
    }

    /// A connection of a drive to a server.
    pub(super) fn client(&self, serving: &Serving, drive: usize) -> KeyClient {
        self.house.client_of(serving, &self.drives[drive].identity)
    }

    pub(super) fn create(&self, drive: usize) -> CreateRequest {
        self.drives[drive].create()
    }

    pub(super) fn resolve(&self, drive: usize, eedks: &[Base64]) -> ResolveRequest {
        ResolveRequest {
            dki: None,
            request_id: Uuid::new_v4(),
            drive: self.create(drive).drive,
            volser: None,
            eedks: eedks.to_vec(),
            append: false,
        }
    }

    /// The data key, as the drive opens it.
    pub(super) fn opened(&self, drive: usize, sedk: &Sedk) -> [u8; 32] {
        let opened = self.drives[drive].soft.unwrap_sedk(sedk).unwrap();
        *opened.expose_secret()
    }

    /// All records of a server, its chain verified.
    pub(super) fn records(&self, node: usize) -> Vec<Record> {
        let audit = self.house.at(&format!("audit-{}", NODES[node]));
        ekm::audit::verify(&audit).unwrap();
        ekm::audit::read(&audit)
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap()
    }
}

pub(super) fn eedks(answer: &CreateAnswer) -> Vec<Base64> {
    answer.eedks.iter().map(|one| one.eedk.clone()).collect()
}

pub(super) fn refused<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> Problem {
    match outcome {
        Err(ClientError::Refused(problem)) => problem,
        other => panic!("not refused: {other:?}"),
    }
}

/// Has a drive read a tape there, and compares the key.
pub(super) async fn reads(
    stage: &Stage,
    client: &mut KeyClient,
    drive: usize,
    tape: &[Base64],
    key: &[u8; 32],
) -> ResolveAnswer {
    let answer = client.resolve(&stage.resolve(drive, tape)).await.unwrap();
    assert!(stage.opened(drive, &answer.sedk) == *key, "another key");
    answer
}

/// A way to the database's socket that can be cut.
#[derive(Debug)]
pub(super) struct Wire {
    folder: tempfile::TempDir,
    whole: Arc<watch::Sender<bool>>,
}

impl Wire {
    fn to(socket: PathBuf) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("ekmwire")
            .tempdir_in("/tmp")
            .unwrap();
        let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
        let whole = Arc::new(watch::channel(true).0);
        let state = Arc::clone(&whole);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (socket, mut cut) = (socket.clone(), state.subscribe());
                tokio::spawn(async move {
                    if !*cut.borrow() {
                        return;
                    }
                    let Ok(mut far) = UnixStream::connect(&socket).await else {
                        return;
                    };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.wait_for(|whole| !whole) => {}
                    }
                });
            }
        });
        Self { folder, whole }
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn cut(&self) {
        self.whole.send_replace(false);
    }

    pub(super) fn mend(&self) {
        self.whole.send_replace(true);
    }
}
