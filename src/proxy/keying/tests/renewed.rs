//! EEDKs of a rekey come to the cartridge when it is mounted.

use super::*;

/// EEDKs of a rekey of that data key, as the server has them in its catalog.
fn rekeyed(house: &House, dki: DataKeyId) -> Vec<Eedk> {
    let fresh: Vec<Eedk> = (8..10).map(|number| eedk(dki, number, 384)).collect();
    let mut server = house.keys.server();
    server.keys.get_mut(&dki).unwrap().1.extend(fresh.clone());
    server.newer = Some(NewerEedks {
        request_id: uuid::Uuid::new_v4(),
        eedks: in_answer(&fresh),
    });
    server.confirmed.clear();
    fresh
}

#[test]
fn a_mount_stores_them_reads_them_back_and_confirms() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    let dki = house.written("VOL001");
    let fresh = rekeyed(&house, dki);
    house.load("VOL001");
    let opened = house.open("VOL001", "", "DISP=OLD").unwrap();
    assert_eq!(opened.warnings, Vec::<String>::new());
    assert_eq!(opened.key.unwrap().dki, dki);
    assert_eq!(read(&mut house.port).unwrap(), b"the first block");
    house.close();
    assert_eq!(house.keys.server().confirmed, [(dki, true)]);
    let there: Vec<Eedk> = house.memory().into_iter().map(Result::unwrap).collect();
    assert_eq!(there, fresh);
    let history = std::fs::read_to_string(house.directory.path().join("history.jsonl")).unwrap();
    assert!(history.contains("VOL001"), "{history}");
}

#[test]
fn a_confirm_that_was_lost_is_made_up_for_at_the_next_mount() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    let dki = house.written("VOL001");
    let fresh = rekeyed(&house, dki);
    house.keys.server().confirm_fails = true;
    house.load("VOL001");
    let opened = house.open("VOL001", "", "DISP=OLD").unwrap();
    let told = opened.warnings.join("; ");
    assert!(told.contains("could not be told"), "{told}");
    assert_eq!(read(&mut house.port).unwrap(), b"the first block");
    house.close();
    assert_eq!(house.keys.server().confirmed, []);
    house.keys.server().confirm_fails = false;
    house.load("VOL001");
    let opened = house.open("VOL001", "", "DISP=OLD").unwrap();
    assert_eq!(opened.warnings, Vec::<String>::new());
    house.close();
    assert_eq!(house.keys.server().confirmed, [(dki, true)]);
    let there: Vec<Eedk> = house.memory().into_iter().map(Result::unwrap).collect();
    assert_eq!(there, fresh);
}

#[test]
fn a_memory_without_room_keeps_the_old_ones_and_the_job_goes_on() {
    let mut house = House::new();
    house.held.take_over().unwrap();
    let dki = house.written("VOL001");
    let old = house.keys.server().keys[&dki].1.clone();
    // Longer than the memory has room for.
    let large: Vec<Eedk> = (8..10).map(|number| eedk(dki, number, 512)).collect();
    rekeyed(&house, dki);
    if let Some(newer) = &mut house.keys.server().newer {
        newer.eedks = in_answer(&large);
    }
    house.load("VOL001");
    let opened = house.open("VOL001", "", "DISP=OLD").unwrap();
    let told = opened.warnings.join("; ");
    assert!(told.contains("next mount"), "{told}");
    assert_eq!(read(&mut house.port).unwrap(), b"the first block");
    house.close();
    assert_eq!(house.keys.server().confirmed, []);
    let there: Vec<Eedk> = house.memory().into_iter().map(Result::unwrap).collect();
    assert_eq!(there, old);
}
