//! Writing, reading, adding; and what a job leaves behind.

use super::*;

#[test]
fn new_cartridge_is_written_encrypted_and_read_back() {
    let mut house = House::new();
    house.load("VOL001");
    house.held.take_over().unwrap();
    let opened = house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
    assert!(opened.writes);
    let key = opened.key.unwrap();
    assert!(key.created);
    assert_eq!(key.eedks, Home::Memory);
    assert_eq!(key.key_format, "00h");
    assert!(house.writes(b"payroll"));
    house.filemark();
    let closed = house.close();
    assert_eq!(closed.alarms, []);
    assert_eq!(closed.clear_blocks, ClearBlocks::None);
    let contents = house.contents("VOL001");
    assert_eq!((contents.clear, contents.encrypted), (0, 1));
    assert_eq!(contents.files[0].data_keys[0].dki, key.dki.to_string());
    assert_eq!(house.keys.server().confirmed, [(key.dki, true)]);

    // Another mount, by the EEDKs of its memory.
    house.load("VOL001");
    let opened = house.open("VOL001", "", "DISP=OLD").unwrap();
    assert!(!opened.writes);
    assert_eq!(opened.key.as_ref().unwrap().dki, key.dki);
    assert_eq!(opened.warnings, [""; 0]);
    let asked = house.keys.server().resolved.clone().unwrap();
    assert_eq!((asked.eedks.len(), asked.dki), (2, Some(key.dki)));
    assert_eq!(read(&mut house.port).unwrap(), b"payroll");
    // A reader writes nothing.
    assert!(!house.writes(b"oops"));
    assert_eq!(house.close().alarms, []);
}

#[test]
fn what_nobody_opened_is_not_written() {
    let mut house = House::new();
    house.load("VOL001");
    house.held.take_over().unwrap();
    assert!(!house.writes(b"tar"));
    // Nor after a reset, nor by a drive whose proxy has gone.
    house.port.drive().reset();
    assert!(!house.writes(b"tar"));
    house.port.drive().power_cycle().unwrap();
    assert!(!house.writes(b"tar"));
    assert_eq!(house.contents("VOL001").blocks, 0);
}

#[test]
fn reset_in_a_job_ends_its_writing() {
    let mut house = House::new();
    house.load("VOL001");
    house.held.take_over().unwrap();
    house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
    assert!(house.writes(b"one"));
    house.port.drive().reset();
    assert!(!house.writes(b"two"));
    house.port.drive().power_cycle().unwrap();
    assert!(!house.writes(b"three"));
    let closed = house.close();
    assert!(
        matches!(closed.alarms[..], [Alarm::KeyChanged { .. }]),
        "{closed:?}"
    );
    let contents = house.contents("VOL001");
    assert_eq!((contents.clear, contents.encrypted), (0, 1));
}

#[test]
fn scratch_cartridge_gets_a_new_key_and_its_old_eedks_go_to_the_history() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    let first = house.written("VOL001");
    let old = house.keys.server().keys[&first].1.clone();
    house.load("VOL001");
    let opened = house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
    let second = opened.key.unwrap().dki;
    assert_ne!(first, second);
    let history = std::fs::read_to_string(house.directory.path().join("history.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(history.lines().last().unwrap()).unwrap();
    let kept: Base64 = serde_json::from_value(line["memory"].clone()).unwrap();
    assert_eq!(kept.0, [old[0].encode(), old[1].encode()].concat());
    assert_eq!(line["named"], hex::encode_upper(first.as_bytes()));
    assert!(house.writes(b"anew"));
    house.filemark();
    assert_eq!(house.close().alarms, []);
    let memory = house.memory();
    assert!(
        memory
            .iter()
            .all(|eedk| eedk.as_ref().unwrap().dki() == second)
    );
    assert_eq!(house.contents("VOL001").clear, 0);
}

#[test]
fn job_that_writes_nothing_leaves_the_cartridge_as_it_was() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    let first = house.written("VOL001");
    house.load("VOL001");
    let opened = house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
    let second = opened.key.unwrap().dki;
    let mut keys = house.keys.clone();
    house.held.tell_unused(&mut keys).unwrap();
    assert_eq!(keys.server().confirmed.last(), Some(&(second, true)));
    let closed = house.close();
    assert_eq!(closed.alarms, []);
    assert!(closed.warnings[0].contains("wrote nothing"), "{closed:?}");
    // The server hears of it, once: what the cartridge held before counts there again.
    for _ in 0..2 {
        house.held.tell_unused(&mut keys).unwrap();
    }
    let confirmed = keys.server().confirmed.clone();
    assert_eq!(confirmed[1..], [(second, true), (second, false)]);
    let memory = house.memory();
    assert!(
        memory
            .iter()
            .all(|eedk| eedk.as_ref().unwrap().dki() == first)
    );
    house.open("VOL001", "", "DISP=OLD").unwrap();
    assert_eq!(read(&mut house.port).unwrap(), b"the first block");
}

#[test]
fn job_whose_client_goes_while_it_waits_changes_nothing() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    let first = house.written("VOL001");
    house.load("VOL001");
    house.keys.server().client_goes = true;
    let refused = house.refused("VOL001", "SECURE", "DISP=NEW");
    assert!(refused.contains("client has gone"), "{refused}");
    let told = house.keys.server().confirmed.clone();
    assert!(matches!(told[1..], [(_, false)]), "{told:?}");
    // Nor is a server asked any more.
    let refused = house.refused("VOL001", "SECURE", "DISP=NEW");
    assert!(refused.contains("client has gone"), "{refused}");
    assert_eq!(house.keys.server().confirmed, told);
    assert!(house.port.drive().target().data_key().is_none());
    let memory = house.memory();
    assert!(
        memory
            .iter()
            .all(|eedk| eedk.as_ref().unwrap().dki() == first)
    );
}

#[test]
fn block_in_clear_from_before_stays_an_alarm_where_the_job_wrote_nothing() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    house.clear_tape("VOL001");
    house.load("VOL001");
    house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
    let closed = house.close();
    assert!(
        matches!(closed.alarms[..], [Alarm::ClearBlock { block: 0, .. }]),
        "{closed:?}"
    );
    assert!(
        closed.warnings[0].contains("began in clear before"),
        "{closed:?}"
    );
}

#[test]
fn append_goes_on_under_the_cartridges_key_at_its_end() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    let dki = house.written("VOL001");
    house.load("VOL001");
    let opened = house.open("VOL001", "", "DISP=MOD").unwrap();
    assert_eq!(opened.key.unwrap().dki, dki);
    assert!(house.writes(b"more"));
    house.filemark();
    assert_eq!(house.close().alarms, []);
    let contents = house.contents("VOL001");
    assert_eq!((contents.clear, contents.encrypted), (0, 2));
    assert_eq!(contents.files[1].data_keys[0].dki, dki.to_string());
    assert!(house.keys.server().resolved.as_ref().unwrap().append);
}

#[test]
fn second_file_is_written_behind_the_first() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    house.written("VOL001");
    house.load("VOL001");
    house
        .open("VOL001", "SECURE", "DISP=NEW,FILESEQ=2")
        .unwrap();
    assert!(house.writes(b"second"));
    house.filemark();
    house.close();
    assert_eq!(house.contents("VOL001").files.len(), 2);
    house.load("VOL001");
    let refused = house.refused("VOL001", "SECURE", "DISP=NEW,FILESEQ=9");
    assert!(refused.contains("SPACE"), "{refused}");
}

#[test]
fn append_under_a_key_of_somebody_elses_is_refused() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    house.written("VOL001");
    house.keys.server().foreign = true;
    house.load("VOL001");
    let refused = house.refused("VOL001", "", "DISP=MOD");
    assert!(refused.contains("was not made here"), "{refused}");
    house.open("VOL001", "", "DISP=OLD").unwrap();
}

#[test]
fn wrong_key_under_the_right_name_adds_nothing() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    house.written("VOL001");
    let before = house.contents("VOL001");
    house.keys.server().gives_wrong_key = true;
    house.load("VOL001");
    for disp in ["DISP=MOD", "DISP=OLD"] {
        let refused = house.refused("VOL001", "", disp);
        assert!(refused.contains("it is another key"), "{refused}");
    }
    // A drive that goes by the key's name is asked for the block itself.
    let by_name = Box::new(ByName(house.port.clone()));
    house.held.unit = crate::scsi::Drive::new(by_name);
    let refused = house.refused("VOL001", "", "DISP=MOD");
    assert!(
        refused.contains("does not open under data key"),
        "{refused}"
    );
    assert!(house.port.drive().target().data_key().is_none());
    assert_eq!(house.contents("VOL001"), before);
}

/// A drive that takes any key for the one of the next block.
struct ByName(TapePort);

impl Transport for ByName {
    fn execute(
        &mut self,
        cdb: &[u8],
        mut data: Data<'_>,
        limit: Duration,
    ) -> Result<Completion, crate::scsi::TransportError> {
        let done = self.0.execute(cdb, data.reborrow(), limit);
        if cdb.starts_with(&[0xa2, 0x20, 0, 0x21])
            && let Data::In(page) = data
            && let Some(status) = page.get_mut(12)
        {
            *status = 5;
        }
        done
    }

    fn name(&self) -> &str {
        "a drive that goes by names"
    }
}

#[test]
fn nothing_is_in_clear_by_omission() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    house.load("VOL001");
    let refused = house.refused("VOL001", "", "DISP=NEW");
    assert!(refused.contains("names no data class"), "{refused}");
    let opened = house.open("VOL001", "PLAIN", "DISP=NEW").unwrap();
    assert!(opened.warnings[0].contains("in clear"), "{opened:?}");
    assert!(house.writes(b"meant to be in clear"));
    house.filemark();
    let closed = house.close();
    assert_eq!(closed.alarms, []);
    assert_eq!(house.contents("VOL001").clear, 1);
}

#[test]
fn append_in_clear_is_refused_unless_the_host_or_the_class_says_so() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    house.clear_tape("VOL001");
    house.load("VOL001");
    for class in ["SECURE", ""] {
        let refused = house.refused("VOL001", class, "DISP=MOD");
        assert!(refused.contains("append_in_clear"), "{refused}");
    }
    house.open("VOL001", "PLAIN", "DISP=MOD").unwrap();
    house.close();
    let text = format!("{HOST}\n[in_band]\nappend_in_clear = \"allow\"");
    house.host = HostConfig::parse(Path::new("host.toml"), &text).unwrap();
    let opened = house.open("VOL001", "SECURE", "DISP=MOD").unwrap();
    assert!(opened.warnings[0].contains("in clear"), "{opened:?}");
    house.close();
    house.load("VOL002");
    let refused = house.refused("VOL002", "SECURE", "DISP=MOD");
    assert!(refused.contains("is blank"), "{refused}");
}

#[test]
fn block_in_clear_on_an_encrypted_cartridge_raises_the_alarm() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    house.load("VOL001");
    house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
    assert!(house.writes(b"encrypted"));
    // Somebody takes the key away and lets it write.
    let mut rogue: seams::Unit = crate::scsi::Drive::new(Box::new(house.port.clone()));
    create::take_away(&mut rogue, AlgorithmIndex(1)).unwrap();
    rogue.set_write_protection(false, false).unwrap();
    assert!(house.writes(b"clear"));
    house.filemark();
    let closed = house.close();
    let clear = Alarm::ClearBlock {
        volser: "VOL001".parse().unwrap(),
        block: 1,
    };
    assert!(closed.alarms.contains(&clear), "{closed:?}");
    let changed = |alarm: &Alarm| matches!(alarm, Alarm::KeyChanged { .. });
    assert!(closed.alarms.iter().any(changed), "{closed:?}");
    assert!(!house.writes(b"after"));
}

#[test]
fn tape_that_a_job_keeps_open_is_protected_all_the_same() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    house.load("VOL001");
    house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
    assert!(house.writes(b"one"));
    house.seat.others.store(true, Ordering::SeqCst);
    let closed = house.close();
    assert!(
        matches!(closed.alarms[..], [Alarm::StillOpen { .. }]),
        "{closed:?}"
    );
    assert!(!house.writes(b"two"));
    let error = house.held.take_over().unwrap_err();
    assert!(matches!(error, TakeOverError::Held(_)), "{error}");
    house.seat.others.store(false, Ordering::SeqCst);
    house.held.take_over().unwrap();
    assert_eq!(house.contents("VOL001").encrypted, 1);
}

#[test]
fn unloaded_cartridge_leaves_no_key_behind() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    house.load("VOL001");
    house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
    assert!(house.writes(b"one"));
    house.filemark();
    assert!(house.port.drive().target().data_key().is_some());
    let closed = house.held.close(true).unwrap();
    assert!(closed.unloaded && closed.alarms.is_empty(), "{closed:?}");
    assert!(house.port.drive().target().data_key().is_none());
    assert!(house.port.drive().loaded().is_none());
}

#[test]
fn one_job_at_a_time() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    house.load("VOL001");
    house.open("VOL001", "SECURE", "DISP=NEW").unwrap();
    let request = JobRequest {
        name: None,
        volser: "VOL002".parse().unwrap(),
        data_class: None,
        dd: Dd::default(),
    };
    let refused = house.held.open(&mut house.keys, &house.host, &request);
    assert!(matches!(refused, Err(JobRefused::InUse { .. })));
    house.close();
    assert!(matches!(
        house.held.close(false),
        Err(JobRefused::NoJob { .. })
    ));
}
