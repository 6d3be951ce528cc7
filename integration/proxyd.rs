//! The host's daemon as its operators meet it: `ekm proxy run`, its socket, `display` and `set`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use ekm::proxy::{KeyServers, KeyService, ServiceError};
use ekm::tls::{ClientPaths, ClientTls};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::door::{Identity, PATIENCE};
use crate::pair::{Pair, server, times};
use crate::relay::{Relay, Way};
use crate::support::wait_for;

/// The daemon, running; killed when a test fails under it.
struct Running {
    child: Child,
}

impl Running {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Stops it as systemd would; how long that took.
    fn stop(mut self) -> Duration {
        let start = Instant::now();
        self.signal(Signal::TERM);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
        start.elapsed()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const TIMES: &str =
    "connect_seconds = 2\nanswer_seconds = 2\ntotal_seconds = 10\nprobe_seconds = 1\n";

/// Writes `host.toml` for these servers; `servers` is lines of `[key_servers]`.
fn configure(pair: &Pair, servers: &str) -> String {
    // Issued, so that the files are there.
    pair.host();
    let text = format!(
        "[tls]\nca = \"tls/ca.crt\"\ncertificate = \"tls/issued/proxy-host1.crt\"\nkey = \"tls/issued/proxy-host1.key\"\n\n[key_servers]\n{servers}\n{TIMES}\n[[drives]]\nserial = \"000000000001\"\npath = \"in-band\"\n"
    );
    std::fs::write(pair.house.at("host.toml"), &text).unwrap();
    text
}

fn listed(relays: &[Relay]) -> String {
    let names: Vec<String> = relays
        .iter()
        .map(|relay| format!("\"{}\"", relay.address))
        .collect();
    format!("servers = [{}]", names.join(", "))
}

fn run(pair: &Pair, more: &[&str]) -> Running {
    let log = std::fs::File::create(pair.house.at("proxy.log")).unwrap();
    let mut child = pair
        .house
        .command(&["proxy", "run", "--config", "host.toml"])
        .args(more)
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let running = Running { child };
    assert!(
        line.starts_with("listening on "),
        "{line:?}\n{}",
        log_of(pair)
    );
    running
}

fn log_of(pair: &Pair) -> String {
    std::fs::read_to_string(pair.house.at("proxy.log")).unwrap_or_default()
}

fn proxy(pair: &Pair, arguments: &[&str]) -> Output {
    let mut all = vec!["proxy", "--config", "host.toml"];
    all.extend(arguments);
    pair.house.run(&all)
}

/// It ends with that code and says all of that.
fn says(pair: &Pair, code: i32, arguments: &[&str], wanted: &[&str]) -> String {
    let output = proxy(pair, arguments);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    for one in wanted {
        assert!(text.contains(one), "{arguments:?}: no {one:?} in\n{text}");
    }
    text
}

fn json(pair: &Pair, arguments: &[&str]) -> Value {
    let mut with = arguments.to_vec();
    with.push("--json");
    let output = proxy(pair, &with);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A line on a connection of its own, and the answer.
fn line(stream: &mut UnixStream, text: &[u8]) -> Value {
    // The daemon may close before it has taken everything in.
    let _ = stream.write_all(text);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn display_and_verify_show_what_is_down_and_set_changes_it_at_run_time() {
    let pair = Pair::new(0);
    let (_servings, relays) = pair.both().await;
    let [a, b] = [0, 1].map(|which: usize| relays[which].address.to_string());
    let text = configure(&pair, &listed(&relays));
    let good = ["config", "check", "--host", "host.toml"];
    let good = pair.house.done(&good);
    assert!(
        good.contains("2 key server(s)") && good.contains("proxy.sock"),
        "{good}"
    );
    let running = run(&pair, &[]);
    let mode = std::fs::metadata(pair.house.at("proxy.sock")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);

    let verified = says(
        &pair,
        0,
        &["display", "--verify", "all"],
        &[&a, &b, "primary", "secondary"],
    );
    assert_eq!(verified.matches(" ready").count(), 2, "{verified}");
    relays[1].set(Way::Closed);
    says(
        &pair,
        3,
        &["display", "--verify"],
        &[&b, "cannot be reached"],
    );
    says(&pair, 0, &["display", "--verify", "primary"], &[&a]);
    says(&pair, 3, &["display", "--verify", "secondary"], &[&b]);
    let checked = json(&pair, &["display", "--verify", "all"]);
    assert_eq!(checked["servers"][0]["failure"], Value::Null);
    assert!(checked["servers"][0]["milliseconds"].is_u64());
    assert!(checked["servers"][1]["failure"].is_string());
    let shown = says(
        &pair,
        0,
        &["display"],
        &[
            &a,
            &b,
            "down",
            "last error",
            "maxconn 255",
            "out-of-band (default)",
            "000000000001",
            "in-band",
        ],
    );
    for row in shown.lines().filter(|row| !row.starts_with("last error")) {
        assert!(row.len() <= 80, "{row}");
    }
    let shown = json(&pair, &["display"]);
    assert_eq!(shown["keys"]["servers"][0]["state"], "ready");
    assert_eq!(shown["keys"]["servers"][0]["next"], true);
    assert_eq!(shown["keys"]["servers"][1]["state"], "down");
    assert_eq!(shown["keys"]["servers"][1]["role"], "secondary");
    assert_eq!(shown["peer"], "proxy:host1");
    assert_eq!(shown["changed"], false);
    // Back, without a restart and without a word.
    relays[1].set(Way::Open);
    wait_for("the secondary's return", PATIENCE, || {
        json(&pair, &["display"])["keys"]["servers"][1]["state"] == "ready"
    });

    says(
        &pair,
        0,
        &["set", "--primary", &b, "--secondary", &a, "--maxconn", "4"],
        &["host.toml stays as it is", "maxconn 4", "a command"],
    );
    let shown = json(&pair, &["display"]);
    assert_eq!(shown["keys"]["servers"][0]["server"], b.as_str());
    assert_eq!(shown["keys"]["maxpconn"], 4);
    assert_eq!(shown["changed"], true);
    says(&pair, 0, &["set", "--secondary", "none"], &[]);
    assert_eq!(
        json(&pair, &["display"])["keys"]["servers"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    says(&pair, 1, &["set", "--secondary", &b], &["is listed twice"]);
    says(
        &pair,
        1,
        &["set", "--maxconn", "300"],
        &["maxconn: 300 is not 1 to 255"],
    );
    says(&pair, 1, &["set"], &["give what is to change"]);
    says(&pair, 2, &["set", "--drive", "000000000001"], &["--path"]);
    says(
        &pair,
        1,
        &["display", "--verify", "secondary"],
        &["no secondary"],
    );

    says(
        &pair,
        0,
        &["set", "--drive", "000000000001", "--path", "out-of-band"],
        &["command"],
    );
    says(
        &pair,
        0,
        &["set", "--path", "in-band"],
        &["in-band (command)"],
    );
    let shown = json(&pair, &["display"]);
    assert_eq!(shown["drives"][0]["path"], "out-of-band");
    assert_eq!(shown["drives"][0]["by"], "command");
    says(
        &pair,
        0,
        &["set", "--drive", "000000000001", "--path", "default"],
        &["line "],
    );
    let now = std::fs::read_to_string(pair.house.at("host.toml")).unwrap();
    assert!(now == text, "host.toml was changed");
    // A file with a fault says where the daemon is, all the same.
    std::fs::write(
        pair.house.at("host.toml"),
        format!("{text}\n[[drives]]\nserial = \"x\"\nnonsense = 1\n"),
    )
    .unwrap();
    says(&pair, 0, &["display"], &["000000000001"]);
    std::fs::write(pair.house.at("host.toml"), text).unwrap();
    running.stop();
    says(
        &pair,
        1,
        &["display"],
        &["no proxy listens", "ekm proxy run"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_and_hanging_clients_hold_nobody_up() {
    let pair = Pair::new(0);
    let relay = Relay::to("127.0.0.1:1").await;
    configure(&pair, &listed(&[relay]));
    let running = run(&pair, &[]);
    let connect = || UnixStream::connect(pair.house.at("proxy.sock")).unwrap();
    // They say nothing, or half a line, or never read.
    let mut hanging: Vec<UnixStream> = (0..60).map(|_| connect()).collect();
    for stream in &mut hanging[..30] {
        stream.write_all(b"{\"command\":").unwrap();
    }
    let start = Instant::now();
    says(&pair, 0, &["display"], &["primary"]);
    assert!(start.elapsed() < Duration::from_secs(5));

    let failed = |text: &[u8], wanted: &str| {
        let answer = line(&mut connect(), text);
        assert_eq!(answer["reply"], "failed", "{answer}");
        let reason = answer["reason"].as_str().unwrap();
        assert!(reason.contains(wanted), "{reason}");
    };
    failed(b"\n", "no command");
    failed(b"null\n", "no command");
    failed(b"\xff\xfe\x00\n", "no command");
    failed(b"{\"command\":\"display\",\"and\":1}\n", "no command");
    failed(b"{\"command\":\"launch\"}\n", "no command");
    failed(
        &[b"[".repeat(60_000), b"\n".to_vec()].concat(),
        "no command",
    );
    failed(&b"x".repeat(80_000), "at most 65536 bytes");
    failed(b"GET / HTTP/1.1\r\n", "no command");
    // A line that is wrong costs only itself, and one connection takes several.
    let mut stream = connect();
    assert_eq!(line(&mut stream, b"nonsense\n")["reply"], "failed");
    assert_eq!(
        line(&mut stream, b"{\"command\":\"display\"}\n")["reply"],
        "display"
    );
    // Without its end, but the client has ended.
    let mut stream = connect();
    stream.write_all(b"{\"command\":\"display\"}").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(line(&mut stream, b"")["reply"], "display");
    // Half a line is given up.
    let mut answer = String::new();
    hanging[0].set_read_timeout(Some(PATIENCE)).unwrap();
    hanging[0].read_to_string(&mut answer).unwrap();
    assert!(answer.contains("did not come to its end"), "{answer}");

    // A second daemon does not take the socket; one that was killed leaves it to the next.
    let second = proxy(&pair, &["run"]);
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("another ekm process"), "{said}");
    running.signal(Signal::KILL);
    drop(running);
    let running = run(&pair, &[]);
    let _silent = connect();
    let took = running.stop();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_lin_tape_is_read_and_its_bad_lines_are_named() {
    let pair = Pair::new(0);
    let (_servings, relays) = pair.both().await;
    let [a, b] = [0, 1].map(|which: usize| relays[which].address.to_string());
    std::fs::write(
        pair.house.at("ibmekm.conf"),
        format!("# ours\nserver 2 {b}\nserver 2 {a}\n"),
    )
    .unwrap();
    let order = |shown: &Value| {
        let servers = shown["keys"]["servers"].as_array().unwrap().clone();
        let name = |server: &Value| server["server"].as_str().unwrap().to_owned();
        servers.iter().map(name).collect::<Vec<_>>()
    };
    // Named by the host's file, or on the command line in its place.
    configure(&pair, "file = \"ibmekm.conf\"\nmaxconn = 7");
    let running = run(&pair, &[]);
    let shown = json(&pair, &["display"]);
    assert_eq!(order(&shown), [b.clone(), a.clone()]);
    assert_eq!(
        (&shown["keys"]["maxconn"], &shown["keys"]["maxpconn"]),
        (&7.into(), &7.into())
    );
    says(&pair, 0, &["display", "--verify", "all"], &[&a, &b]);
    running.stop();
    configure(&pair, &listed(&relays));
    let running = run(&pair, &["--ibmekm-conf", "ibmekm.conf"]);
    assert_eq!(order(&json(&pair, &["display"])), [b.clone(), a]);
    running.stop();

    std::fs::write(
        pair.house.at("bad.conf"),
        format!("server 2 {b}\nserver x {b}\n\nsrv 1 c:1\nserver 5 c\n"),
    )
    .unwrap();
    let bad = ["bad.conf", "line 2: ", "line 4: ", "line 5: "];
    says(&pair, 1, &["run", "--ibmekm-conf", "bad.conf"], &bad);
    configure(&pair, "file = \"bad.conf\"");
    says(&pair, 1, &["run"], &bad);
    let check = ["config", "check", "--host", "host.toml"];
    let checked = pair.house.run(&check);
    assert_eq!(checked.status.code(), Some(3));
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(bad.iter().all(|one| said.contains(one)), "{said}");
    configure(&pair, "file = \"no-such.conf\"");
    says(&pair, 1, &["run"], &["no-such.conf"]);
}

#[test]
fn a_daemon_without_what_it_lives_by_says_what_is_missing() {
    let pair = Pair::new(0);
    let write = |text: &str| std::fs::write(pair.house.at("host.toml"), text).unwrap();
    write("[key_servers]\nprimary = \"127.0.0.1:1\"\n");
    says(&pair, 1, &["run"], &["host.toml has no [tls]"]);
    let tls = |name: &str| {
        format!(
            "[tls]\nca = \"tls/ca.crt\"\ncertificate = \"tls/issued/{name}.crt\"\nkey = \"tls/issued/{name}.key\"\n"
        )
    };
    pair.host();
    write(&tls("proxy-host1"));
    says(&pair, 1, &["run"], &["host.toml has no [key_servers]"]);
    let servers = "[key_servers]\nprimary = \"127.0.0.1:1\"\n";
    pair.house.identity("operator", "watcher");
    write(&[tls("operator-watcher").as_str(), servers].concat());
    says(&pair, 1, &["run"], &["operator:watcher", "--role proxy"]);
    write(&[tls("no-such").as_str(), servers].concat());
    says(&pair, 1, &["run"], &["no-such.crt"]);
    let checked = pair.house.run(&["config", "check", "--host", "host.toml"]);
    assert_eq!(checked.status.code(), Some(3));
    write(
        &[
            tls("proxy-host1").as_str(),
            "[key_servers]\nprimary = \"a\"\ntotal_seconds = 290\nfile = \"x\"\nretry = 1\n",
        ]
        .concat(),
    );
    says(&pair, 1, &["run"], &["unknown field", "retry"]);
    write(
        &[
            tls("proxy-host1").as_str(),
            "[key_servers]\nprimary = \"a\"\ntotal_seconds = 290\nfile = \"x\"\n",
        ]
        .concat(),
    );
    says(
        &pair,
        1,
        &["run"],
        &[
            "line 7: key_servers.total_seconds: 290 is not 1 to 240",
            "line 8: key_servers.file: ",
        ],
    );
}

/// A renewed certificate is taken in by the next connection; one that is of no use is not.
#[tokio::test(flavor = "multi_thread")]
async fn changed_certificates_are_taken_in_while_it_runs() {
    let pair = Pair::new(1);
    let serving = pair.serve(0).await;
    let relay = Relay::to(&serving.address).await;
    let watcher = pair.house.identity("operator", "watcher");
    let host = pair.host();
    let own = |name: &str| pair.house.at(name);
    let put = |identity: &Identity| {
        std::fs::copy(&identity.certificate, own("own.crt")).unwrap();
        std::fs::copy(&identity.key, own("own.key")).unwrap();
    };
    put(&host);
    let tls = ClientTls::load(ClientPaths {
        ca: host.ca.clone(),
        certificate: own("own.crt"),
        key: own("own.key"),
    });
    // Nothing rests, so each request has a connection of its own.
    let servers = KeyServers {
        servers: vec![server(&relay)],
        maxconn: 2,
        maxpconn: 0,
    };
    let keys = KeyService::start(servers, tls.unwrap(), times()).await;
    keys.create(&pair.create(0), None).await.unwrap();
    put(&watcher);
    let refused = |outcome| match outcome {
        Err(ServiceError::Refused { problem, .. }) => problem.detail,
        other => panic!("not refused: {other:?}"),
    };
    let said = refused(keys.create(&pair.create(0), None).await.map(drop));
    assert!(said.contains("operator:watcher may not speak"), "{said}");
    std::fs::write(own("own.crt"), "nonsense").unwrap();
    let said = refused(keys.create(&pair.create(0), None).await.map(drop));
    assert!(said.contains("operator:watcher may not speak"), "{said}");
    put(&host);
    keys.create(&pair.create(0), None).await.unwrap();
}
