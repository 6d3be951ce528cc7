//! In-band, without a kernel: a real key server, the host's real daemon, jobs as processes, and
//! software drives behind the sockets that carry their commands.

mod host;

use std::process::{Command, Stdio};
use std::time::Duration;

use ekm::softdrive::{Quirk, TapeContents};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::door::{House, PATIENCE};
use crate::support::{EKM, wait_for};
use host::{POLICY, Proxy, Unit, arguments, holds, host_file, job, refused, reports};

#[tokio::test(flavor = "multi_thread")]
async fn tape_is_written_in_one_drive_and_read_in_another() {
    for kind in ["3592", "lto"] {
        let house = House::new("", POLICY);
        let (one, two) = (Unit::start(&house, 1, kind), Unit::start(&house, 2, kind));
        let serving = house.serve().await;
        host_file(&house, &[&serving], &[&one, &two], "");
        one.load(&house, "VOL001");
        let proxy = Proxy::start(&house);
        proxy.says("drive held", 2);
        assert!(!one.writes(b"without a job"));

        let running = job(&house, &one, "VOL001", "new");
        let said = std::fs::read_to_string(&running.in_it).unwrap();
        assert!(said.starts_with("VOL001 unix:"), "{said}");
        assert!(one.writes(b"payroll"));
        one.filemark();
        let key = one.data_key().unwrap();
        let serial = one.serial.to_string();
        assert!(
            holds(proxy.child.id(), serial.as_bytes()),
            "nothing is found"
        );
        assert!(
            !holds(proxy.child.id(), &key),
            "a data key was in the proxy"
        );
        let output = running.end();
        assert!(output.status.success(), "{output:?}");
        let (opened, closed) = reports(&output);
        assert_eq!(opened["key"]["key_format"], "02h");
        assert_eq!(closed["alarms"], Value::Array(Vec::new()));
        assert!(!one.writes(b"after the job"));
        let contents = TapeContents::read(&house.at("VOL001")).unwrap();
        assert_eq!((contents.clear, contents.encrypted), (0, 1));

        one.port.drive().unload();
        assert!(one.data_key().is_none(), "CKOD");
        two.load(&house, "VOL001");
        let running = job(&house, &two, "VOL001", "old");
        assert_eq!(two.reads().unwrap(), b"payroll");
        assert!(!two.writes(b"a reader"));
        let output = running.end();
        assert!(output.status.success(), "{output:?}");
        let (read, _) = reports(&output);
        assert_eq!(read["key"]["dki"], opened["key"]["dki"]);
        assert_eq!(read["warnings"], Value::Array(Vec::new()));

        // What the server knows of it.
        let history = house.done(&["volume", "show", "VOL001"]);
        assert!(history.contains("confirmed"), "{history}");
        let history = house.done(&["--json", "volume", "show", "VOL001"]);
        let history: Value = serde_json::from_str(&history).unwrap();
        // The command of the job, and the node of the server.
        assert_eq!(history[0]["job"], "sh");
        assert_eq!(history[0]["server"], "house");
    }
}

/// Longer than a client that has nothing open may be silent.
#[tokio::test(flavor = "multi_thread")]
async fn job_that_takes_more_than_a_minute_keeps_its_tape() {
    let house = House::new("", POLICY);
    let one = Unit::start(&house, 1, "lto");
    let serving = house.serve().await;
    host_file(&house, &[&serving], &[&one], "");
    one.load(&house, "VOL001");
    let proxy = Proxy::start(&house);
    proxy.says("drive held", 1);
    let running = job(&house, &one, "VOL001", "new");
    assert!(one.writes(b"the first minute"));
    tokio::time::sleep(Duration::from_secs(63)).await;
    assert!(one.writes(b"the second minute"), "{}", proxy.log());
    one.filemark();
    let output = running.end();
    assert!(output.status.success(), "{output:?}");
    let contents = TapeContents::read(&house.at("VOL001")).unwrap();
    assert_eq!((contents.clear, contents.encrypted), (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn drive_that_takes_keys_in_clear_is_served_with_permission_alone() {
    let house = House::bare("", &format!("[policy]\n{POLICY}"));
    house.done(&[
        "kek",
        "generate",
        "HOST1",
        "--bits",
        "2048",
        "--custody",
        "host",
    ]);
    house.done(&["kek", "default", "--kek1", "HOST1"]);
    let unit = Unit::start(&house, 1, "lto-plain");
    let serving = house.serve().await;
    unit.load(&house, "VOL001");
    host_file(&house, &[&serving], &[&unit], "");
    let proxy = Proxy::start(&house);
    proxy.says("no job gets this drive", 1);
    let told = refused(&house, &unit, "VOL001", "new");
    assert!(told.contains("plain_key = true"), "{told}");
    proxy.kill();

    host_file(&house, &[&serving], &[&unit], "plain_key = true");
    let _proxy = Proxy::start(&house);
    let running = job(&house, &unit, "VOL001", "new");
    assert!(unit.writes(b"payroll"));
    unit.filemark();
    let output = running.end();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(reports(&output).0["key"]["key_format"], "00h");
    assert_eq!(TapeContents::read(&house.at("VOL001")).unwrap().clear, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_server_no_write_and_a_server_that_is_back_serves_again() {
    let house = House::new("", POLICY);
    let unit = Unit::start(&house, 1, "lto");
    let serving = house.serve().await;
    host_file(&house, &[&serving], &[&unit], "");
    unit.load(&house, "VOL001");
    let proxy = Proxy::start(&house);
    proxy.says("drive held", 1);
    let address = serving.address.clone();
    serving.stop();
    let told = refused(&house, &unit, "VOL001", "new");
    assert!(told.contains("no key server answer"), "{told}");
    assert_eq!(TapeContents::read(&house.at("VOL001")).unwrap().blocks, 0);
    // The same address again.
    let port = address.rsplit_once(':').unwrap().1;
    let text = std::fs::read_to_string(house.at("ekm.toml")).unwrap();
    std::fs::write(
        house.at("ekm.toml"),
        text.replace("127.0.0.1:0", &format!("127.0.0.1:{port}")),
    )
    .unwrap();
    let _serving = house.serve().await;
    let running = job(&house, &unit, "VOL001", "new");
    assert!(unit.writes(b"payroll"));
    assert!(running.end().status.success());
    assert_eq!(TapeContents::read(&house.at("VOL001")).unwrap().clear, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_dies_ends_its_job_and_its_writing() {
    let house = House::new("", POLICY);
    let unit = Unit::start(&house, 1, "lto");
    let serving = house.serve().await;
    host_file(&house, &[&serving], &[&unit], "");
    unit.load(&house, "VOL001");
    let proxy = Proxy::start(&house);
    let running = job(&house, &unit, "VOL001", "new");
    assert!(unit.writes(b"one"));
    running.kill();
    proxy.says("a job's client has gone", 1);
    proxy.says("drive held", 2);
    assert!(!unit.writes(b"two"));
    let contents = TapeContents::read(&house.at("VOL001")).unwrap();
    assert_eq!((contents.clear, contents.encrypted), (0, 1));
    // And the next job has the drive.
    let running = job(&house, &unit, "VOL001", "mod");
    assert!(unit.writes(b"three"));
    assert!(running.end().status.success());
    assert_eq!(
        TapeContents::read(&house.at("VOL001")).unwrap().encrypted,
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_dies_while_it_waits_for_a_server_gets_no_key() {
    let house = House::new("", POLICY);
    let unit = Unit::start(&house, 1, "lto");
    let serving = house.serve().await;
    host_file(&house, &[&serving], &[&unit], "");
    unit.load(&house, "VOL001");
    let proxy = Proxy::start(&house);
    proxy.says("drive held", 1);
    serving.stop();
    let mut wanted = arguments(&unit, "VOL001", "new");
    wanted.extend(["--", "true"]);
    let mut client = house
        .command(&wanted)
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("a job that waits", PATIENCE, || {
        let shown = house.done(&["--config", "host.toml", "proxy", "display"]);
        shown.contains("busy")
    });
    client.kill().unwrap();
    client.wait().unwrap();
    proxy.says("client has gone, so it gets no key", 1);
    assert!(unit.data_key().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_that_is_killed_leaves_no_block_in_clear_and_adopts_what_it_finds() {
    let house = House::new("", POLICY);
    let unit = Unit::start(&house, 1, "lto");
    let serving = house.serve().await;
    host_file(&house, &[&serving], &[&unit], "");
    unit.load(&house, "VOL001");
    // Before a job.
    let proxy = Proxy::start(&house);
    proxy.says("drive held", 1);
    proxy.kill();
    assert!(!unit.writes(b"before"));
    // In a job: it goes on encrypted, and its client says that nobody looked.
    let proxy = Proxy::start(&house);
    let running = job(&house, &unit, "VOL001", "new");
    assert!(unit.writes(b"one"));
    proxy.kill();
    assert!(unit.writes(b"two"));
    let output = running.end();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("nobody has looked"), "{told}");
    // A reset while nobody watches.
    unit.port.drive().reset();
    assert!(!unit.writes(b"three"));
    let proxy = Proxy::start(&house);
    proxy.says("drive held", 3);
    let contents = TapeContents::read(&house.at("VOL001")).unwrap();
    assert_eq!((contents.clear, contents.encrypted), (0, 2));
    assert!(
        !proxy.log().contains("has a key already"),
        "a reset took it"
    );
    let running = job(&house, &unit, "VOL001", "mod");
    assert!(unit.writes(b"four"));
    assert!(running.end().status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_that_is_stopped_leaves_a_job_its_tape() {
    let house = House::new("", POLICY);
    let unit = Unit::start(&house, 1, "lto");
    let serving = house.serve().await;
    host_file(&house, &[&serving], &[&unit], "");
    unit.load(&house, "VOL001");
    let mut proxy = Proxy::start(&house);
    let running = job(&house, &unit, "VOL001", "new");
    assert!(unit.writes(b"one"));
    let pid = Pid::from_raw(i32::try_from(proxy.child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let status = proxy.child.wait().unwrap();
    assert!(status.success(), "{status}");
    assert!(unit.writes(b"two"));
    let output = running.end();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let contents = TapeContents::read(&house.at("VOL001")).unwrap();
    assert_eq!((contents.clear, contents.encrypted), (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_killed_while_a_job_gets_its_key_leaves_no_block_in_clear() {
    let house = House::new("", POLICY);
    let unit = Unit::start(&house, 1, "lto");
    let serving = house.serve().await;
    host_file(&house, &[&serving], &[&unit], "");
    unit.load(&house, "VOL001");
    // A drive that no proxy ever held is as it was bought.
    let proxy = Proxy::start(&house);
    proxy.says("drive held", 1);
    proxy.kill();
    // At many moments between the command and its tape.
    for pause in (0..400).step_by(40) {
        let proxy = Proxy::start(&house);
        let mut wanted = arguments(&unit, "VOL001", "new");
        wanted.extend(["--", "true"]);
        let mut client = house
            .command(&wanted)
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        proxy.kill();
        client.wait().unwrap();
        // Either it may not be written, or what is written is encrypted.
        unit.writes(b"whatever");
        let contents = TapeContents::read(&house.at("VOL001")).unwrap();
        assert_eq!(contents.clear, 0, "after {pause} ms");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drive_that_lies_is_named_and_one_that_hangs_harms_no_other() {
    let house = House::new("", POLICY);
    let (one, two) = (Unit::start(&house, 1, "lto"), Unit::start(&house, 2, "lto"));
    let serving = house.serve().await;
    host_file(&house, &[&serving], &[&one, &two], "");
    one.load(&house, "VOL001");
    two.load(&house, "VOL002");
    let proxy = Proxy::start(&house);
    proxy.says("drive held", 2);
    one.port.drive().misbehave(Quirk::IgnoresKey);
    let told = refused(&house, &one, "VOL001", "new");
    assert!(told.contains("does not tell the truth"), "{told}");
    assert!(told.contains("000000000001"), "{told}");
    one.port.drive().behave();
    one.port.drive().misbehave(Quirk::Hang(0xb5));
    let mut wanted = arguments(&one, "VOL001", "new");
    wanted.extend(["--", "true"]);
    let mut hanging = house
        .command(&wanted)
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let running = job(&house, &two, "VOL002", "new");
    assert!(two.writes(b"payroll"));
    assert!(running.end().status.success());
    let shown = house.done(&["--config", "host.toml", "proxy", "display"]);
    assert!(shown.contains("busy"), "{shown}");
    let pid = Pid::from_raw(i32::try_from(hanging.id()).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    hanging.wait().unwrap();
    one.port.drive().behave();
}

#[tokio::test(flavor = "multi_thread")]
async fn program_that_keeps_a_drive_opens_and_closes_it() {
    let house = House::new("", POLICY);
    let unit = Unit::start(&house, 1, "lto");
    let serving = house.serve().await;
    host_file(&house, &[&serving], &[&unit], "");
    unit.load(&house, "VOL001");
    let _proxy = Proxy::start(&house);
    let serial = unit.serial.as_str();
    let open = |more: &[&str]| -> Command {
        let mut arguments = vec!["--config", "host.toml", "tape"];
        arguments.extend(more);
        house.command(&arguments)
    };
    let opened = open(&[
        "open",
        "--drive",
        serial,
        "--volser",
        "VOL001",
        "--disp",
        "new",
        "--data-class",
        "SECURE",
    ])
    .output()
    .unwrap();
    assert!(opened.status.success(), "{opened:?}");
    let tape = String::from_utf8(opened.stdout).unwrap();
    assert_eq!(tape.trim(), format!("unix:{}", unit.socket.display()));
    assert!(unit.writes(b"one"));
    let shown = house.done(&["--config", "host.toml", "proxy", "display"]);
    assert!(shown.contains("writes VOL001"), "{shown}");
    let closed = open(&["close", "--drive", serial, "--unload"])
        .output()
        .unwrap();
    assert!(closed.status.success(), "{closed:?}");
    assert!(String::from_utf8_lossy(&closed.stderr).contains("no block in clear"));
    assert!(unit.port.drive().loaded().is_none());
    let again = open(&["close", "--drive", serial]).output().unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&again.stderr).contains("has no job"),
        "{again:?}"
    );
    // What would be written over is never assumed.
    let unsaid = open(&["open", "--drive", serial, "--volser", "VOL001"])
        .output()
        .unwrap();
    assert_eq!(unsaid.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&unsaid.stderr).contains("--disp"),
        "{unsaid:?}"
    );
}

#[test]
fn demo_shows_what_a_host_does_for_its_jobs() {
    let output = Command::new(EKM)
        .args(["demo", "--in-band"])
        .env_remove("EKM_CONFIG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for said in [
        "write protect",
        "VOL001: no block in clear",
        " 0 in clear",
        "compared byte by byte",
        "confirmed",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
}
