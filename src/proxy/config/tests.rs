//! The host's file: what is read, and every fault of it.

use super::*;

fn parse(text: &str) -> Result<HostConfig, HostConfigError> {
    HostConfig::parse(Path::new("host.toml"), text)
}

/// All of these, each with its line.
fn faults(text: &str) -> Vec<String> {
    match parse(text).unwrap_err() {
        HostConfigError::Faults { faults, .. } => faults,
        other => panic!("{other}"),
    }
}

#[test]
fn the_example_is_good() {
    let host = parse(HOST_EXAMPLE).unwrap();
    assert_eq!(host.data_classes.len(), 3);
    let secure = &host.data_classes[1];
    let line = |at: usize| HOST_EXAMPLE.lines().nth(at - 1).unwrap();
    assert!(line(secure.format.at).starts_with("format = \"EEFMT4\""));
    let labels = secure.labels.as_ref().unwrap();
    assert!(line(labels.kek1.at).starts_with("keylabl1 = "));
    let servers = host.key_servers.unwrap();
    assert_eq!((servers.maxconn, servers.maxpconn), (255, 8));
}

#[test]
fn a_server_s_file_is_told_from_that_of_a_host() {
    let told = parse(crate::config::EXAMPLE).unwrap_err().to_string();
    assert!(told.contains("is it a server's file?"), "{told}");
    let told = parse("stats = 1\n").unwrap_err().to_string();
    assert!(!told.contains("server's file"), "{told}");
    // The list is what the server's file has and this one has not.
    for key in SERVER_KEYS {
        let text = format!("{key} = 1\n");
        let told = parse(&text).unwrap_err().to_string();
        assert!(told.contains("is it a server's file?"), "{told}");
        let server = crate::config::Config::parse(&text, Path::new("ekm.toml")).unwrap_err();
        assert!(!server.to_string().contains("unknown field"), "{server}");
    }
}

#[test]
fn every_fault_is_named_at_once_with_its_line() {
    let text = r#"path = "sideways"
[key_servers]
secondary = "ekm2"
maxconn = 0
maxpconn = 9
[[data_classes]]
name = "9LIVES"
format = "EEFMT1"
keyencd1 = "H"
keylabl2 = "B"
keyencd2 = "X"
[[data_classes]]
name = "TWICE"
format = "EFMT1"
keylabl1 = " "
[[data_classes]]
name = "twice"
format = "eefmt2"
[[volume_ranges]]
first = "VOL200"
last = "VOL100"
keylabl1 = "A"
[[volume_ranges]]
first = "A"
last = "ABC"
[[drives]]
serial = "1"
[[drives]]
serial = "1234567890"
path = "in-band"
[[drives]]
serial = "001234567890"
"#;
    let faults = faults(text);
    for wanted in [
        "line 1: path: expected out-of-band or in-band, got \"sideways\"",
        "line 3: key_servers.secondary: there is no primary",
        "line 4: key_servers.maxconn: 0 is not 1 to 255",
        "line 7: data_classes.name: expected the name of a data class",
        "line 8: data_classes.format: expected EFMT1",
        "line 9: data_classes: KEYENCD1 without KEYLABL1",
        "line 10: data_classes: KEYLABL2 without KEYLABL1",
        "line 11: data_classes.keyencd2: expected encoding",
        "line 15: data_classes.keylabl1: a key label must not be empty",
        "line 17: data_classes.name: TWICE is given twice, first in line 13",
        "line 20: volume_ranges: VOL200 comes after VOL100",
        "line 24: volume_ranges: A and ABC are not of one length",
        "line 24: volume_ranges: it names no label",
        "line 27: drives.serial: expected a drive serial",
        "line 32: drives.serial: 001234567890 is given twice, first in line 29",
    ] {
        assert!(
            faults.iter().any(|fault| fault.starts_with(wanted)),
            "no {wanted:?} in\n{}",
            faults.join("\n")
        );
    }
    assert_eq!(faults.len(), 15, "{}", faults.join("\n"));
}

#[test]
fn ranges_that_overlap_are_a_fault_and_neighbours_are_none() {
    let ranges = |list: &[(&str, &str)]| {
        let each = list.iter().map(|(first, last)| {
            format!("[[volume_ranges]]\nfirst = \"{first}\"\nlast = \"{last}\"\nkeylabl1 = \"A\"\n")
        });
        parse(&each.collect::<String>())
    };
    for good in [
        [("VOL000", "VOL099"), ("VOL100", "VOL199")],
        [("VOL500", "VOL599"), ("VOL000", "VOL499")],
        // Another length is another kind of volume serial.
        [("A0", "A9"), ("A00000", "A99999")],
    ] {
        ranges(&good).unwrap();
    }
    for (bad, text) in [
        (
            vec![("VOL000", "VOL100"), ("VOL100", "VOL199")],
            "line 6: volume_ranges: VOL100 to VOL199 overlaps VOL000 to VOL100 of line 2",
        ),
        (
            vec![
                ("VOL300", "VOL300"),
                ("B00000", "B00000"),
                ("AAAAAA", "ZZZZZZ"),
            ],
            "overlaps AAAAAA to ZZZZZZ of line 10",
        ),
        (
            vec![("V00", "V99"), ("V10", "V19"), ("V50", "V59")],
            "line 10: volume_ranges: V50 to V59 overlaps V00 to V99 of line 2",
        ),
    ] {
        let error = ranges(&bad).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn the_list_of_key_servers_is_two_names_or_up_to_sixteen() {
    let listed = |text: &str| parse(&format!("[key_servers]\n{text}"));
    let servers = |text: &str| {
        let servers = listed(text).unwrap().key_servers.unwrap();
        let names: Vec<String> = servers.servers.iter().map(ToString::to_string).collect();
        (names.join(" "), servers.maxconn, servers.maxpconn)
    };
    assert_eq!(servers("primary = \"a\""), ("a:3801".to_owned(), 255, 8));
    assert_eq!(
        servers("primary = \"a\"\nsecondary = \"b:1\"\nmaxconn = 4\nmaxpconn = 0"),
        ("a:3801 b:1".to_owned(), 4, 0)
    );
    // The default of maxpconn gives way.
    assert_eq!(servers("primary = \"a\"\nmaxconn = 4").2, 4);
    let names = |n: usize| {
        let names: Vec<String> = (0..n).map(|n| format!("\"ekm{n}\"")).collect();
        format!("servers = [{}]", names.join(", "))
    };
    assert_eq!(servers(&names(16)).0.split(' ').count(), 16);
    for (bad, text) in [
        (
            names(17),
            "line 2: key_servers.servers: 17 servers, at most 16",
        ),
        (names(0), "names no server"),
        (String::new(), "names no server"),
        (format!("primary = \"x\"\n{}", names(1)), "or the list"),
        (
            "primary = \"a\"\nsecondary = \"A:3801\"".to_owned(),
            "line 3: key_servers: a:3801 is listed twice",
        ),
        (
            "primary = \"http://a\"".to_owned(),
            "line 2: key_servers: expected a key server",
        ),
        (
            "primary = \"a\"\nmaxconn = 3\nmaxpconn = 4".to_owned(),
            "line 4: key_servers.maxpconn: 4 is not 0 to 3",
        ),
        (
            "primary = \"a\"\nmaxconn = 256".to_owned(),
            "is not 1 to 255",
        ),
    ] {
        let error = listed(&bad).unwrap_err().to_string();
        assert!(error.contains(text), "{bad}: {error}");
    }
}

#[test]
fn a_path_is_the_drives_or_the_files_or_out_of_band() {
    let serial = |text: &str| text.parse::<DriveSerial>().unwrap();
    let drives = "[[drives]]\nserial = \"1234567890\"\npath = \"in-band\"\n[[drives]]\nserial = \"1234567891\"\n";
    let host = parse(drives).unwrap();
    assert_eq!(host.path(&serial("1234567890")), (KeyPath::InBand, Some(3)));
    assert_eq!(host.path(&serial("1234567891")), (KeyPath::OutOfBand, None));
    assert_eq!(host.path(&serial("1234567892")), (KeyPath::OutOfBand, None));
    let host = parse(&format!("path = \"in-band\"\n{drives}")).unwrap();
    assert_eq!(host.path(&serial("1234567892")), (KeyPath::InBand, Some(1)));
}

#[test]
fn a_file_of_another_shape_or_size_is_refused() {
    let error =
        parse("[[data_classes]]\nname = \"A\"\nformat = \"EFMT1\"\nlabel = \"x\"").unwrap_err();
    assert!(error.to_string().contains("line 4"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host.toml");
    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    let error = HostConfig::load(&path).unwrap_err().to_string();
    assert!(error.contains("at most 1048576"), "{error}");
    std::fs::write(&path, b"path = \"\xff\"").unwrap();
    assert!(
        HostConfig::load(&path)
            .unwrap_err()
            .to_string()
            .contains("utf-8")
    );
}

/// A megabyte of faults must not take minutes.
#[test]
fn the_largest_file_is_checked_in_time() {
    let range = "[[volume_ranges]]\nfirst=\"A0\"\nlast=\"A1\"\n";
    let text = range.repeat((1 << 20) / range.len());
    let begin = std::time::Instant::now();
    assert!(faults(&text).len() > 20_000);
    assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
}

#[test]
fn what_the_daemon_lives_by_is_read() {
    let host = HostConfig::parse(
        Path::new("/etc/ekm/host.toml"),
        "socket = \"/run/ekm.sock\"\n[tls]\nca = \"ca.pem\"\ncertificate = \"/c.pem\"\nkey = \"k.pem\"\n[key_servers]\nprimary = \"a\"\nanswer_seconds = 10\nretries = 0\ntotal_seconds = 60\n",
    )
    .unwrap();
    let tls = host.tls().unwrap();
    assert_eq!(tls.ca, Path::new("/etc/ekm/ca.pem"));
    assert_eq!(tls.certificate, Path::new("/c.pem"));
    assert_eq!(host.socket(), Path::new("/run/ekm.sock"));
    let times = host.times();
    let seconds =
        [times.connect, times.answer, times.total, times.probe].map(|time| time.as_secs());
    assert_eq!((seconds, times.retries), ([5, 10, 60, 5], 0));
    let plain = HostConfig::parse(Path::new("/etc/ekm/host.toml"), "").unwrap();
    assert_eq!(plain.socket(), Path::new("/etc/ekm/proxy.sock"));
    // What drives grant is far from being used up.
    assert!(plain.times().total.as_secs() < 150);
}

#[test]
fn times_and_sources_of_the_key_servers_are_checked() {
    let text = r#"socket = ""
[key_servers]
primary = "a"
file = "ibmekm.conf"
maxconn = 7
connect_seconds = 0
answer_seconds = 241
retries = 11
total_seconds = 300
probe_seconds = -1
"#;
    let faults = faults(text);
    for wanted in [
        "line 1: socket: it is empty",
        "line 4: key_servers.file: name the servers here, or the file that lists them",
        "line 6: key_servers.connect_seconds: 0 is not 1 to 60",
        "line 7: key_servers.answer_seconds: 241 is not 1 to 240",
        "line 8: key_servers.retries: 11 is not 0 to 10",
        "line 9: key_servers.total_seconds: 300 is not 1 to 240",
        "line 10: key_servers.probe_seconds: -1 is not 1 to 3600",
    ] {
        assert!(
            faults.iter().any(|fault| fault.starts_with(wanted)),
            "no {wanted:?} in\n{}",
            faults.join("\n")
        );
    }
    assert_eq!(faults.len(), 7, "{}", faults.join("\n"));
    assert!(parse("[tls]\nca = \"a\"\ncertificate = \"b\"\n").is_err());
    assert!(parse("[key_servers]\nprimary = \"a\"\nretry = 1\n").is_err());
}

#[test]
fn in_band_drives_are_read_with_what_they_are_permitted() {
    let host = parse(HOST_EXAMPLE).unwrap();
    let drives: Vec<&HostDrive> = host.in_band_drives().collect();
    assert_eq!(drives.len(), 1);
    let device = drives[0]
        .device
        .as_ref()
        .map(|device| device.value.to_string());
    assert_eq!(device.as_deref(), Some("/dev/sg3"));
    assert!(!drives[0].plain_key && !drives[0].unprotected);
    assert_eq!(host.in_band().append_in_clear, AppendInClear::Refuse);
    let text = "path = \"in-band\"\n[in_band]\nappend_in_clear = \"allow\"\n[[drives]]\nserial = \"001013000123\"\ndevice = \"unix:/run/tape.sock\"\nplain_key = true\n[[drives]]\nserial = \"001013000124\"\npath = \"out-of-band\"\n";
    let host = parse(text).unwrap();
    let drives: Vec<&HostDrive> = host.in_band_drives().collect();
    assert_eq!(drives.len(), 1);
    assert!(drives[0].plain_key);
    let device = drives[0].device.as_ref().map(|device| device.value.clone());
    assert_eq!(device, Some(Device::Channel("/run/tape.sock".into())));
    let beside = parse(&text.replace("/run/tape.sock", "tape.sock")).unwrap();
    let device = beside.drives[0].device.as_ref().unwrap();
    assert!(device.value.path().is_absolute(), "{device:?}");
    assert!(device.value.path().ends_with("tape.sock"), "{device:?}");
    assert_eq!(host.in_band().append_in_clear, AppendInClear::Allow);
    assert_eq!(host.in_band().history.to_str(), Some(InBand::HISTORY));
}

#[test]
fn what_an_in_band_drive_cannot_be_is_a_fault() {
    let text = r#"[in_band]
append_in_clear = "perhaps"
history = "here"
[[drives]]
serial = "001013000123"
device = "/dev/nst0"
[[drives]]
serial = "001013000124"
device = "/dev/sg3"
[[drives]]
serial = "001013000125"
device = "/dev/sg3"
"#;
    let faults = faults(text);
    for wanted in [
        "line 2: in_band.append_in_clear: expected refuse or allow",
        "line 3: in_band.history: expected a whole path",
        "line 6: drives.device: expected the SCSI generic device",
        "line 12: drives.device: /dev/sg3 is given twice, first in line 9",
    ] {
        assert!(
            faults.iter().any(|fault| fault.starts_with(wanted)),
            "{wanted}: {faults:?}"
        );
    }
    assert_eq!(faults.len(), 4, "{faults:?}");
}
