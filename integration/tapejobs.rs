//! Jobs on tape drives that a Linux kernel takes for real: key server, proxy and `tar` in one guest,
//! with `stenc` as a witness.

use std::process::Command;
use std::time::Duration;

use ekm::softdrive::DriveKind;

use crate::door::House;
use crate::uml::{Guest, possible};

const LIMIT: Duration = Duration::from_secs(300);

const POLICY: &str =
    "[[policy.peers]]\npeer = \"proxy:host1\"\ndrives = [\"*\"]\ncreate_keks = [\"*\"]";

/// A site in the guest's directory, with its drives enrolled.
fn guest(drives: &[(u8, DriveKind)]) -> Option<Guest> {
    if !possible() {
        return None;
    }
    let guest = Guest::new();
    let plain = drives.iter().any(|(_, kind)| *kind == DriveKind::LtoPlain);
    let house = if plain {
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
        house
    } else {
        House::new("", POLICY)
    };
    house.identity("proxy", "host1");
    let mut rows = String::new();
    for (n, kind) in drives {
        let soft = guest.drive(*n, *kind);
        let serial = soft.serial().to_string();
        let wwn = soft.wwn().to_string();
        if *kind == DriveKind::LtoPlain {
            house.done(&[
                "drive",
                "add",
                &serial,
                "--wwn",
                &wwn,
                "--form",
                "t10-00h",
                "--custody",
                "host",
            ]);
        } else {
            let directory = guest.share().join(format!("drive{n}"));
            let key = house.done(&["softdrive", "key", directory.to_str().unwrap()]);
            std::fs::write(house.at("key.pem"), key).unwrap();
            house.done(&["drive", "add", &serial, "--wwn", &wwn, "--key", "key.pem"]);
        }
        let plain = *kind == DriveKind::LtoPlain;
        rows += &format!("\n[[drives]]\nserial = \"{serial}\"\nplain_key = {plain}\n");
    }
    let server = std::fs::read_to_string(house.at("ekm.toml")).unwrap();
    std::fs::write(
        house.at("ekm.toml"),
        server.replace("127.0.0.1:0", "127.0.0.1:3801"),
    )
    .unwrap();
    std::fs::write(
        house.at("host.toml"),
        format!(
            r#"path = "in-band"
socket = "/run/proxy.sock"

[tls]
ca = "tls/ca.crt"
certificate = "tls/issued/proxy-host1.crt"
key = "tls/issued/proxy-host1.key"

[key_servers]
primary = "127.0.0.1:3801"
connect_seconds = 5
answer_seconds = 15
total_seconds = 30
probe_seconds = 1

[in_band]
history = "/run/history.jsonl"

[[data_classes]]
name = "SECURE"
format = "EEFMT4"
{rows}"#
        ),
    )
    .unwrap();
    let copied = Command::new("cp")
        .arg("-a")
        .arg(house.at("."))
        .arg(guest.share().join("house"))
        .status()
        .unwrap();
    assert!(copied.success());
    Some(guest)
}

/// What every script begins with: the drives, the server, the proxy. The house is in memory, since
/// SQLite wants locks that hostfs does not have.
const SITE: &str = r#"
cp -a house /run/house
: >/run/serve.out
server() {
    (cd /run/house && exec "$EKM" serve >>/run/serve.out 2>>/mnt/notes/serve.log) &
    server=$!
    wait_for "the server" grep -q listening /run/serve.out
}
proxy() {
    : >/run/proxy.out
    (cd /run/house && exec "$EKM" --config host.toml proxy run >/run/proxy.out 2>>/mnt/notes/proxy.log) &
    proxy=$!
    wait_for "the proxy" grep -q listening /run/proxy.out
}
held() { [[ $(grep -c "drive held" notes/proxy.log) -ge $1 ]]; }
job() { # VOLSER DISP DRIVE COMMAND…
    local volser=$1 disp=$2 drive=$3
    shift 3
    (cd /run/house && exec "$EKM" --config host.toml tape run --drive "00000780000$drive" --volser "$volser" \
        --disp "$disp" --data-class SECURE -- "$@")
}
mkdir -p /run/data
head -c 3000000 /dev/urandom >/run/data/random
seq 1 200000 >/run/data/numbers
"#;

#[test]
fn tar_through_a_job_is_encrypted_and_reads_back_in_another_drive() {
    for kind in [DriveKind::Lto, DriveKind::LtoPlain] {
        let Some(guest) = guest(&[(0, kind), (1, kind)]) else {
            return;
        };
        guest.tape("VOL001", 64);
        let notes = guest.run(
            &format!(
                "{SITE}
drive 0
drive 1
tell 0 load VOL001
server
proxy
wait_for 'both drives' held 2
note direct tar -b 128 -cf /dev/nst0 -C /run/data random
note write job VOL001 new 0 sh -c 'tar -b 128 -cf \"$EKM_TAPE\" -C /run/data random numbers'
note after tar -b 128 -cf /dev/nst0 -C /run/data random
# A witness: the key is still set, and the first block encrypted.
note witness stenc -f /dev/sg0 --detail
tell 0 unload
tell 1 load VOL001
mkdir /run/back
note read job VOL001 old 1 sh -c 'tar -b 128 -xf \"$EKM_TAPE\" -C /run/back'
note same diff -r /run/data /run/back
note append job VOL001 mod 1 sh -c 'tar -b 128 -cf \"$EKM_TAPE\" -C /run/data numbers'
note reader job VOL001 old 1 sh -c 'tar -b 128 -cf \"$EKM_TAPE\" -C /run/data random'
"
            ),
            LIMIT,
        );
        told(&guest);
        assert!(
            notes.bad("direct").contains("busy"),
            "{}",
            notes.bad("direct")
        );
        notes.good("write");
        assert!(notes.bad("after").contains("busy"));
        let witness = notes.good("witness");
        for said in [
            "Encrypting",
            "Encrypted and able to decrypt",
            "Protecting from raw read",
        ] {
            assert!(witness.contains(said), "{witness}");
        }
        for name in ["read", "same", "append"] {
            notes.good(name);
        }
        assert!(
            notes.bad("reader").contains("Read-only"),
            "{}",
            notes.bad("reader")
        );
        let contents = guest.contents("VOL001");
        assert_eq!((contents.clear, contents.files.len()), (0, 2));
        assert!(contents.encrypted > 40, "{contents:?}");
    }
}

#[test]
fn not_one_block_in_clear_whatever_dies() {
    let Some(guest) = guest(&[(0, DriveKind::Lto)]) else {
        return;
    };
    guest.tape("VOL001", 64);
    guest.tape("VOL002", 64);
    let notes = guest.run(
        &format!(
            "{SITE}
drive 0
server
proxy
wait_for 'the drive' held 1
# A tar that is started with the load, without a job.
tell 0 load VOL001 &
loading=$!
note at-load tar -b 128 -cf /dev/nst0 -C /run/data random
wait $loading
# The proxy dies: the drive itself refuses.
kill -KILL $proxy
wait $proxy || true
note no-proxy tar -b 128 -cf /dev/nst0 -C /run/data random
proxy
wait_for 'the drive' held 2
# All servers down.
kill -KILL $server
wait $server || true
note no-server job VOL001 new 0 sh -c 'tar -b 128 -cf \"$EKM_TAPE\" -C /run/data random'
: >/run/serve.out
server
sleep 2
# The drive is reset while tar writes.
tell 0 quirk reset-at-write 20
note reset job VOL001 new 0 sh -c 'tar -b 128 -cf \"$EKM_TAPE\" -C /run/data random numbers
tar -b 128 -cf \"$EKM_TAPE\" -C /run/data numbers'
tell 0 unload
tell 0 load VOL002
# The proxy dies before tar writes: it goes on, encrypted.
note orphan job VOL002 new 0 sh -c \"kill -KILL $proxy; tar -b 128 -cf \\$EKM_TAPE -C /run/data random\"
proxy
wait_for 'the drive' held 4
note late tar -b 128 -cf /dev/nst0 -C /run/data random
kill -KILL $proxy
wait $proxy || true
note last tar -b 128 -cf /dev/nst0 -C /run/data random
"
        ),
        LIMIT,
    );
    told(&guest);
    let said = |name: &str, words: &str| {
        let text = notes.bad(name);
        assert!(text.contains(words), "{name}: {text}");
    };
    said("at-load", "busy");
    said("no-proxy", "Read-only");
    said("no-server", "no key server answers");
    said("reset", "ALARM: the drive's key changed");
    said("orphan", "nobody has looked at VOL002");
    said("late", "busy");
    said("last", "Read-only");
    let (one, two) = (guest.contents("VOL001"), guest.contents("VOL002"));
    assert_eq!((one.clear, two.clear), (0, 0), "{one:?} {two:?}");
    assert!(one.encrypted > 0 && two.encrypted > 40, "{one:?} {two:?}");
}

/// What the programs logged, for where a test fails.
fn told(guest: &Guest) {
    for name in ["proxy", "serve"] {
        let log = guest.share().join(format!("notes/{name}.log"));
        let log = std::fs::read_to_string(log).unwrap_or_default();
        println!("{name}:\n{log}");
    }
}
