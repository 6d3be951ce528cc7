//! A PostgreSQL server of the tests' own: one for all of them, a database for
//! each. It listens on a Unix socket only, and ends with this process.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use ekm::store::DatabaseConfig;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::wait_for;

/// A server. It is stopped when this is dropped, and when this process is killed.
#[derive(Debug)]
pub(crate) struct Postgres {
    folder: PathBuf,
    bin: PathBuf,
    /// Settings of its own.
    options: Vec<String>,
    /// Which also names the Unix socket.
    port: u16,
    keeper: Mutex<Option<(Child, ChildStdin)>>,
    _directory: Option<TempDir>,
}

impl Postgres {
    /// The one that tests share, which none of them stops. None, loudly, where
    /// PostgreSQL is not installed; in CI that is an error.
    pub(crate) fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Postgres>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref()
    }

    /// One of a test's own.
    pub(crate) fn start() -> Option<Self> {
        let server = Self::made()?;
        server.up();
        Some(server)
    }

    /// One that takes connections on a port too: over TLS with this certificate
    /// and key (PEM), and with this password only.
    pub(crate) fn with_tls(certificate: &str, key: &str, password: &str) -> Option<(Self, u16)> {
        let mut server = Self::made()?;
        // None that Linux gives by default to a test that asks for any.
        let first = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
        let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
        let port = (first..32_000).find(free).unwrap();
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let path = server.folder.join("data").join(name);
            crate::support::write_private(&path, text);
            if root() {
                run(Command::new("chown").arg("postgres").arg(&path));
            }
        }
        let data = server.folder.join("data");
        std::fs::write(
            data.join("pg_hba.conf"),
            "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n",
        )
        .unwrap();
        server.options = vec![
            "ssl=on".to_owned(),
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
        ];
        server.port = port;
        server.up();
        server.psql("postgres", &format!("ALTER ROLE ekm PASSWORD '{password}'"));
        Some((server, port))
    }

    /// A replica of it, of that name.
    pub(crate) fn replica(&self, name: &str) -> Self {
        let (directory, folder) = owned();
        run(as_owner(&self.bin.join("pg_basebackup"))
            .args(["-U", "ekm", "-X", "stream", "-R", "-c", "fast", "-h"])
            .arg(&self.folder)
            .args(["-p", &self.port.to_string(), "-D"])
            .arg(folder.join("data")));
        let replica = Self {
            folder,
            bin: self.bin.clone(),
            options: vec![
                "listen_addresses=".to_owned(),
                format!("cluster_name={name}"),
            ],
            port: 5432,
            keeper: Mutex::default(),
            _directory: Some(directory),
        };
        replica.up();
        replica
    }

    fn made() -> Option<Self> {
        let Some(bin) = bin() else {
            let what = "PostgreSQL is not installed (Debian: postgresql)";
            assert!(std::env::var_os("CI").is_none(), "{what}");
            eprintln!("WARNING: SKIPPED: {what}");
            return None;
        };
        let (directory, folder) = owned();
        run(as_owner(&bin.join("initdb"))
            .args([
                "--no-sync",
                "-A",
                "trust",
                "-U",
                "ekm",
                "-E",
                "UTF8",
                "--no-locale",
                "-D",
            ])
            .arg(folder.join("data")));
        Some(Self {
            folder,
            bin,
            options: vec!["listen_addresses=".to_owned()],
            port: 5432,
            keeper: Mutex::default(),
            _directory: Some(directory),
        })
    }

    /// Starts it, and waits until it answers.
    pub(crate) fn up(&self) {
        let mut keeper = self.keeper.lock().unwrap();
        assert!(keeper.is_none(), "it is up");
        // The shell ends the server when this process has gone, however that went.
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(
                "\"$@\" & server=$!; read -r _; kill -QUIT $server 2>/dev/null; wait $server; exit 0",
            )
            .arg("postgres")
            .args(owner())
            .arg(self.bin.join("postgres"))
            .arg("-D")
            .arg(self.folder.join("data"))
            .arg("-k")
            .arg(&self.folder)
            // What is killed here are processes, whose writes the kernel keeps.
            .args(["-c", "max_connections=200", "-c", "fsync=off"])
            .args(self.options.iter().flat_map(|option| ["-c", option]))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(self.folder.with_extension("log")).unwrap())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        *keeper = Some((child, stdin));
        wait_for("PostgreSQL", Duration::from_secs(30), || {
            Command::new(self.bin.join("pg_isready"))
                .args(["-q", "-U", "ekm", "-d", "postgres", "-h"])
                .arg(&self.folder)
                .args(["-p", &self.port.to_string()])
                .status()
                .is_ok_and(|status| status.success())
        });
    }

    /// Stops it at once, as `kill -9` of all its processes would (`immediate`
    /// shutdown: no checkpoint, recovery at the next start).
    pub(crate) fn kill(&self) {
        let keeper = self.keeper.lock().unwrap().take();
        if let Some((mut child, stdin)) = keeper {
            drop(stdin);
            child.wait().unwrap();
        }
    }

    /// Sends a signal to the server and all its processes: `STOP` makes one that hangs.
    pub(crate) fn signal(&self, signal: Signal) {
        let text = std::fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap();
        let postmaster: i32 = text.lines().next().unwrap().parse().unwrap();
        // One that has ended meanwhile needs none.
        let send = |process, signal| {
            let _ = kill_process(Pid::from_raw(process).unwrap(), signal);
        };
        // It begins no others then.
        send(postmaster, Signal::STOP);
        for process in children(postmaster) {
            send(process, signal);
        }
        send(postmaster, signal);
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join(".s.PGSQL.5432")
    }

    /// A new, empty database.
    pub(crate) fn database(&self) -> DatabaseConfig {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("ekm{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name}"));
        self.named(&name)
    }

    /// How a database of this server is named in a configuration.
    pub(crate) fn named(&self, database: &str) -> DatabaseConfig {
        DatabaseConfig::at(format!(
            "postgresql://ekm@localhost/{database}?host={}",
            self.folder.display()
        ))
    }

    /// What a statement answers, as psql prints it unaligned and without a head.
    pub(crate) fn psql(&self, database: &str, statement: &str) -> String {
        let output = Command::new(self.bin.join("psql"))
            .args([
                "-XqAt",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                "ekm",
                "-d",
                database,
                "-h",
            ])
            .arg(&self.folder)
            .args(["-p", &self.port.to_string()])
            .arg("-c")
            .arg(statement)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{statement}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
        drop(std::fs::remove_file(self.folder.with_extension("log")));
    }
}

/// A directory of the user that PostgreSQL runs as.
fn owned() -> (TempDir, PathBuf) {
    // Short: a socket's path has at most 107 bytes.
    let directory = tempfile::Builder::new()
        .prefix("ekmpg")
        .tempdir_in("/tmp")
        .unwrap();
    let folder = directory.path().to_owned();
    if root() {
        // initdb refuses root; the package brings its own user.
        run(Command::new("chown").arg("postgres").arg(&folder));
    }
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o700)).unwrap();
    (directory, folder)
}

/// Processes whose parent is that one.
fn children(parent: i32) -> Vec<i32> {
    let parent = format!("PPid:\t{parent}\n");
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let process = entry.file_name().to_str()?.parse().ok()?;
            let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
            status.contains(&parent).then_some(process)
        })
        .collect()
}

/// Where its programs are: Debian keeps them out of the path.
fn bin() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .flatten()
        .map(|version| version.path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop()
}

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The words before a command that has it run as an unprivileged user.
fn owner() -> Vec<&'static str> {
    if root() {
        vec![
            "setpriv",
            "--reuid=postgres",
            "--regid=postgres",
            "--clear-groups",
        ]
    } else {
        Vec::new()
    }
}

fn as_owner(program: &Path) -> Command {
    let mut words = owner().into_iter();
    match words.next() {
        Some(first) => {
            let mut command = Command::new(first);
            command.args(words).arg(program);
            command
        }
        None => Command::new(program),
    }
}

fn run(command: &mut Command) {
    let output = command.current_dir("/").output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
