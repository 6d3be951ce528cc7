//! A Linux kernel and Debian's tape programs use the software tape drive as they use a real one,
//! and its image says what became of every block.

mod served;

use std::time::Duration;

use ekm::softdrive::{DriveKind, TapeContents};

use crate::uml::{Guest, possible};

/// Longest run of a guest; each takes a few seconds where nothing else runs.
const LIMIT: Duration = Duration::from_secs(180);

/// A drive with a tape in it, before every script here.
const ONE_DRIVE: &str = "
drive 0
tell 0 load VOL001
# st has to see the unit attentions of power on and of the cartridge: it takes them for a new tape.
mt-st -f /dev/nst0 rewind
";

fn guest(kind: DriveKind) -> Option<Guest> {
    if !possible() {
        return None;
    }
    let guest = Guest::new();
    guest.drive(0, kind);
    guest.tape("VOL001", 64);
    Some(guest)
}

/// Files that compress badly, and none of the records of which is like another.
const DATA: &str = "
mkdir -p /run/data && cd /run/data
head -c 3000000 /dev/urandom >random
seq 1 200000 >numbers
cd /mnt
";

#[test]
fn tar_reads_back_what_it_wrote_and_mt_finds_its_way() {
    let Some(guest) = guest(DriveKind::Lto) else {
        return;
    };
    let notes = guest.run(
        &format!(
            "{ONE_DRIVE}{DATA}
note inquiry sg_inq /dev/sg0
note vpd sg_vpd --page=di /dev/sg0
note first tar -b 128 -cf /dev/nst0 -C /run/data random
note tell-1 mt-st -f /dev/nst0 tell
note second tar -b 128 -cf /dev/nst0 -C /run/data numbers
note status mt-st -f /dev/nst0 status
note rewind mt-st -f /dev/nst0 rewind
mkdir /run/back
note back-1 tar -b 128 -xf /dev/nst0 -C /run/back
note fsf mt-st -f /dev/nst0 fsf 1
note back-2 tar -b 128 -xf /dev/nst0 -C /run/back
note same diff -r /run/data /run/back
note eod mt-st -f /dev/nst0 eod
note tell-end mt-st -f /dev/nst0 tell
note bsf mt-st -f /dev/nst0 bsf 2
note seek mt-st -f /dev/nst0 seek 3
note tell-3 mt-st -f /dev/nst0 tell
note offline mt-st -f /dev/nst0 offline
note gone sg_turs /dev/sg0
note load mt-st -f /dev/nst0 load
note there sg_turs /dev/sg0
"
        ),
        LIMIT,
    );
    assert!(notes.good("inquiry").contains("SOFTDRIVE LTO"));
    assert!(notes.good("vpd").contains("0x5005076300c0ffe0"));
    for name in [
        "first", "second", "rewind", "back-1", "fsf", "back-2", "same", "eod", "bsf",
    ] {
        notes.good(name);
    }
    // 46 records of 64 KiB and a filemark.
    assert_eq!(notes.good("tell-1").trim(), "At block 47.");
    assert!(notes.good("status").contains("File number=2"));
    assert_eq!(notes.good("tell-end").trim(), "At block 68.");
    assert_eq!(notes.good("tell-3").trim(), "At block 3.");
    notes.good("offline");
    notes.bad("gone");
    notes.good("load");
    let contents = guest.contents("VOL001");
    assert_eq!(contents.files.len(), 2);
    assert_eq!((contents.files[0].blocks, contents.clear), (46, 66));
}

/// A SPOUT page 0010h with key format 00h and an A-KAD, for sg_raw.
const SET_KEY: &str = "
set_key() { # BYTE DKI: a key of 32 such bytes
    local key
    key=$(printf \"\\\\x$1%.0s\" {1..32})
    printf '\\x00\\x10\\x00\\x40\\x40\\x00\\x02\\x03\\x01\\x00\\x00\\0\\0\\0\\0\\0\\0\\0\\x00\\x20'\"$key\"'\\x01\\x00\\x00\\x0c'\"$2\" >/run/page
    sg_raw -s 68 -i /run/page /dev/sg0 b5 20 00 10 00 00 00 00 00 44 00 00
}
";

#[test]
fn stenc_and_sg_raw_set_keys_and_the_image_has_no_clear_block() {
    let Some(guest) = guest(DriveKind::LtoPlain) else {
        return;
    };
    let notes = guest.run(
        &format!(
            "{ONE_DRIVE}{DATA}{SET_KEY}
printf '%064d\\nnightly\\n' 7 >/run/key
printf '%064d\\nother\\n' 8 >/run/other
note before stenc -f /dev/sg0 --detail
note on stenc -f /dev/sg0 -e on -k /run/key -a 1 --ckod
note after stenc -f /dev/sg0 --detail
note write tar -b 128 -cf /dev/nst0 -C /run/data random
mt-st -f /dev/nst0 rewind
note on-block stenc -f /dev/sg0 --detail
note off stenc -f /dev/sg0 -e off -a 1
note no-key dd if=/dev/nst0 of=/dev/null bs=64k count=1
note still-before mt-st -f /dev/nst0 tell
note wrong stenc -f /dev/sg0 -e on -k /run/other -a 1
note wrong-key dd if=/dev/nst0 of=/dev/null bs=64k count=1
note right stenc -f /dev/sg0 -e on -k /run/key -a 1
mkdir /run/back
note back tar -b 128 -xf /dev/nst0 -C /run/back
note same cmp /run/data/random /run/back/random
mt-st -f /dev/nst0 eod
note raw set_key 5a 'EKM123456789'
note raw-status sg_raw -r 512 -o /run/status /dev/sg0 a2 20 00 20 00 00 00 00 02 00 00 00
note raw-hex od -An -tx1 /run/status
note write-2 tar -b 128 -cf /dev/nst0 -C /run/data numbers
note list \"$EKM\" softdrive tape list VOL001
note json \"$EKM\" --json softdrive tape list VOL001
# Clear key on demount.
stenc -f /dev/sg0 -e on -k /run/key -a 1 --ckod
note out mt-st -f /dev/nst0 offline
note in mt-st -f /dev/nst0 load
sg_turs /dev/sg0 >/dev/null 2>&1 || true
note demounted stenc -f /dev/sg0 --detail
"
        ),
        LIMIT,
    );
    for (note, says) in [
        ("before", "Drive Encryption:        off"),
        ("on", "Success!"),
        ("after", "Drive Encryption:        on"),
        ("after", "Drive Key Desc.(uKAD):   nightly"),
        ("on-block", "Encrypted and able to decrypt"),
        ("list", "66: 66 encrypted, 0 in clear"),
        ("list", "EKM313233343536373839"),
        ("demounted", "Drive Encryption:        off"),
        ("demounted", "Encrypted, but unable to decrypt"),
    ] {
        let said = notes.good(note);
        assert!(said.contains(says), "{note}: {said}");
    }
    notes.good("write");
    for name in ["no-key", "wrong-key"] {
        assert!(notes.bad(name).contains("error"), "{}", notes.bad(name));
    }
    assert_eq!(notes.good("still-before").trim(), "At block 0.");
    for name in ["right", "back", "same", "raw", "write-2", "out"] {
        notes.good(name);
    }
    let status = notes.good("raw-hex");
    let status: Vec<&str> = status.split_whitespace().collect();
    // ENCRYPT and MIXED, with the A-KAD that was given.
    assert_eq!(status[5..8], ["02", "03", "01"]);
    assert_eq!(status[24..28], ["01", "00", "00", "0c"]);
    let listed: TapeContents = serde_json::from_str(&notes.good("json")).unwrap();
    let contents = guest.contents("VOL001");
    assert_eq!(listed, contents);
    assert_eq!((contents.clear, contents.encrypted), (0, 66));
    let names: Vec<_> = contents
        .files
        .iter()
        .map(|file| {
            (
                file.data_keys[0].dki.as_str(),
                file.data_keys[0].name.as_deref(),
            )
        })
        .collect();
    assert_eq!(names[0], (&*"00".repeat(12), Some("nightly")));
    assert_eq!(names[1], ("EKM313233343536373839", None));
}

#[test]
fn residuals_filemarks_and_ends_reach_programs() {
    let Some(guest) = guest(DriveKind::Lto) else {
        return;
    };
    guest.tape("SMALL1", 1);
    let notes = guest.run(
        &format!(
            "{ONE_DRIVE}
head -c 1000 /dev/urandom >/run/short
head -c 300000 /dev/urandom >/run/long
dd if=/run/short of=/dev/nst0 bs=1000 status=none
dd if=/run/long of=/dev/nst0 bs=300000 status=none
mt-st -f /dev/nst0 rewind
# A record shorter than what is asked for, and the filemark after it.
dd if=/dev/nst0 of=/run/short.back bs=64k 2>/run/said
note short cmp /run/short /run/short.back
note said cat /run/said
# A record longer than that.
note oversize dd if=/dev/nst0 of=/dev/null bs=64k
mt-st -f /dev/nst0 rewind
mt-st -f /dev/nst0 fsf 1
note long dd if=/dev/nst0 of=/run/long.back bs=1M count=1
note same cmp /run/long /run/long.back
# The filemark, the end of the data, and then an error.
note nothing dd if=/dev/nst0 of=/run/nothing bs=64k
note end dd if=/dev/nst0 of=/run/end bs=64k
note beyond dd if=/dev/nst0 of=/run/beyond bs=64k
note sizes stat -c %s /run/nothing /run/end
# Blocks of fixed length.
mt-st -f /dev/nst0 rewind
note setblk mt-st -f /dev/nst0 setblk 512
note fixed dd if=/run/long of=/dev/nst0 bs=5120 count=10
mt-st -f /dev/nst0 rewind
note fixed-back dd if=/dev/nst0 of=/run/fixed bs=10240
note fixed-same cmp -n 51200 /run/long /run/fixed
mt-st -f /dev/nst0 setblk 0
mt-st -f /dev/nst0 offline
tell 0 unload
tell 0 load SMALL1
mt-st -f /dev/nst0 rewind
note full dd if=/dev/zero of=/dev/nst0 bs=64k count=100
"
        ),
        LIMIT,
    );
    notes.good("short");
    assert!(notes.good("said").contains("0+1 records in"));
    assert!(notes.bad("oversize").contains("Cannot allocate memory"));
    notes.good("long");
    notes.good("same");
    notes.good("nothing");
    assert_eq!(notes.good("sizes").split_whitespace().next(), Some("0"));
    notes.good("end");
    assert!(notes.bad("beyond").contains("Input/output error"));
    for name in ["setblk", "fixed", "fixed-back", "fixed-same"] {
        notes.good(name);
    }
    assert!(notes.bad("full").contains("No space left on device"));
    assert_eq!(guest.contents("VOL001").files[0].blocks, 100);
    assert_eq!(guest.contents("SMALL1").files[0].blocks, 15);
}

#[test]
fn cartridge_memory_is_read_and_written_by_debian_tools() {
    let Some(guest) = guest(DriveKind::Lto) else {
        return;
    };
    let notes = guest.run(
        &format!(
            "{ONE_DRIVE}
note all sg_read_attr /dev/sg0
printf '\\0\\0\\0\\x0d\\x14\\x80\\x00\\x00\\x08EKM EEDK' >/run/list
note write sg_raw -s 17 -i /run/list /dev/sg0 8d 01 00 00 00 00 00 00 00 00 00 00 00 11 00 00
note read sg_raw -r 64 -o /run/read /dev/sg0 8c 00 00 00 00 00 00 00 14 80 00 00 00 40 00 00
note text cat /run/read
note after sg_read_attr -F 0x4 /dev/sg0
note none sg_raw -r 64 /dev/sg0 8c 00 00 00 00 00 00 00 14 81 00 00 00 40 00 00
"
        ),
        LIMIT,
    );
    let all = notes.good("all");
    assert!(all.contains("MAM space remaining [B]: 1014"), "{all}");
    assert!(all.contains("VOL001") && all.contains("EKM"), "{all}");
    notes.good("write");
    assert!(notes.good("text").contains("EKM EEDK"));
    assert!(notes.good("after").contains(": 1001"));
    assert!(notes.bad("none").contains("Illegal Request"));
}

#[test]
fn unit_attentions_reach_the_kernel_and_a_reset_takes_the_key() {
    let Some(guest) = guest(DriveKind::Lto) else {
        return;
    };
    let notes = guest.run(
        &format!(
            "{ONE_DRIVE}{SET_KEY}
head -c 2000000 /dev/urandom >/run/data
on_nst0() {{ # on the tape that is open
    bash -c 'dd if=/run/data bs=64k count=4 >&9'
}}
# key, write, reset by the command, write, write
job() {{
    local name=$1
    shift
    mt-st -f /dev/nst0 rewind
    set_key 11 'EKM123456789' 2>/dev/null
    exec 9>/dev/nst0
    note $name-1 on_nst0
    note $name-reset \"$@\"
    note $name-2 on_nst0
    note $name-3 on_nst0
    exec 9>&- || true
    cp VOL001 $name
}}
# MODE SELECT of the device configuration page: byte 1 of the command, SWP
protect() {{
    printf '\\0\\0\\0\\0\\x10\\x0e\\0\\0\\0\\0\\0\\0\\x40\\0\\x'$2'\\0\\0\\0\\0\\x10' >/run/mode
    sg_raw -s 20 -i /run/mode /dev/sg0 15 $1 00 00 14 00
}}
# By this host: st has heard of it.
job host sg_reset -d /dev/sg0
note status sg_raw -r 512 -o /run/status /dev/sg0 a2 20 00 20 00 00 00 00 02 00 00 00
note hex od -An -tx1 /run/status
# By somebody else: all that st hears is a unit attention.
job drive tell 0 reset
# The same, with write protection saved for after a reset.
note protect protect 11 04
note open protect 10 00
job saved tell 0 reset
note read-only bash -c 'exec 9>/dev/nst0'
note unprotect protect 11 00

# A cartridge that was changed between two opens.
mt-st -f /dev/nst0 rewind
note write dd if=/run/data bs=64k count=2 of=/dev/nst0
tell 0 unload
tell 0 load VOL001
note changed mt-st -f /dev/nst0 status
"
        ),
        LIMIT,
    );
    for job in ["host", "drive", "saved"] {
        notes.good(&format!("{job}-1"));
        notes.good(&format!("{job}-reset"));
        let error = notes.bad(&format!("{job}-2"));
        assert!(error.contains("Input/output error"), "{error}");
        let contents = guest.contents(job);
        assert_eq!(contents.encrypted, 4, "{job}");
        // Whoever goes on after one error writes in clear, unless the drive stops him.
        assert_eq!(contents.clear, if job == "drive" { 4 } else { 0 }, "{job}");
    }
    notes.bad("host-3");
    notes.good("drive-3");
    notes.bad("saved-3");
    // No mode, no key, and a key instance that is not the one that was set.
    let status = notes.good("hex");
    let status: Vec<&str> = status.split_whitespace().collect();
    assert_eq!(
        status[4..12],
        ["00", "00", "00", "00", "00", "00", "00", "02"]
    );
    assert!(notes.bad("read-only").contains("Read-only file system"));
    notes.good("write");
    assert!(
        notes
            .good("changed")
            .contains("File number=0, block number=0")
    );
}

#[test]
fn tape_moves_from_one_drive_to_another() {
    let Some(guest) = guest(DriveKind::Lto) else {
        return;
    };
    guest.drive(1, DriveKind::LtoPlain);
    let notes = guest.run(
        &format!(
            "{ONE_DRIVE}{DATA}
drive 1
note write tar -b 128 -cf /dev/nst0 -C /run/data numbers
note busy tell 1 load VOL001
tell 0 unload
note moved tell 1 load VOL001
mt-st -f /dev/nst1 rewind
note read tar -b 128 -tf /dev/nst1
tell 1 quirk sense-flood
note bad sg_turs /dev/sg1
tell 1 behave
note good sg_turs /dev/sg1
note no-order tell 1 jump
# A drive that hangs: the kernel gives up, and finds it well again afterwards.
tell 1 quirk hang a2
note hanging timeout 60 sg_raw -t 2 -r 512 /dev/sg1 a2 20 00 20 00 00 00 00 02 00 00 00
tell 1 behave
note well sg_raw -r 512 /dev/sg1 a2 20 00 20 00 00 00 00 02 00 00 00
mt-st -f /dev/nst1 rewind
note still tar -b 128 -tf /dev/nst1
"
        ),
        LIMIT,
    );
    notes.good("write");
    assert!(notes.bad("busy").contains("in use by another drive"));
    notes.good("moved");
    assert_eq!(notes.good("read").trim(), "numbers");
    notes.bad("bad");
    notes.good("good");
    assert!(notes.bad("no-order").contains("no order"));
    notes.bad("hanging");
    notes.good("well");
    notes.good("still");
}

#[test]
fn what_a_filemark_closed_outlives_a_power_cut() {
    let Some(guest) = guest(DriveKind::Lto) else {
        return;
    };
    guest.cut(
        &format!(
            "{ONE_DRIVE}{SET_KEY}
head -c 2000000 /dev/urandom >/run/data
set_key 11 'EKM123456789'
for n in 1 2 3 4; do
    dd if=/run/data of=/dev/nst0 bs=64k status=none
    echo \"closed $n\"
done
while :; do cat /run/data; done | dd of=/dev/nst0 bs=64k iflag=fullblock status=none &
sleep 0.5
echo \"cut now\"
wait
"
        ),
        "cut now",
        LIMIT,
    );
    let contents = guest.contents("VOL001");
    let whole = contents
        .files
        .iter()
        .filter(|file| file.ended && file.blocks == 31 && file.bytes == 2_000_000);
    assert_eq!(whole.count(), 4, "{contents:?}");
    assert_eq!(contents.clear, 0);

    // The tape goes on behind what is whole.
    let notes = guest.run(
        &format!(
            "{ONE_DRIVE}
note eod mt-st -f /dev/nst0 fsf 4
note tell mt-st -f /dev/nst0 tell
note more dd if=/etc/passwd of=/dev/nst0 bs=64k
"
        ),
        LIMIT,
    );
    notes.good("eod");
    assert_eq!(notes.good("tell").trim(), "At block 128.");
    notes.good("more");
    let contents = guest.contents("VOL001");
    assert_eq!((contents.files.len(), contents.damaged), (5, false));
}
