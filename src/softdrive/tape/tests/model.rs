//! Any sequence of commands does to a tape what it does to a list.

use proptest::{collection::vec, prelude::*};

use super::{
    keys::{disable, set},
    *,
};

#[derive(Clone, Debug)]
enum Action {
    Write(u16),
    Filemarks(u8),
    Read,
    SpaceBlocks(i8),
    SpaceFilemarks(i8),
    Locate(u8),
    End,
    Rewind,
    Erase,
    /// A key by its number, 0 being none.
    Key(u8),
    Reload,
}

fn actions() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => (1_u16..2000).prop_map(Action::Write),
        2 => (0_u8..3).prop_map(Action::Filemarks),
        6 => Just(Action::Read),
        2 => (-6_i8..6).prop_map(Action::SpaceBlocks),
        2 => (-3_i8..3).prop_map(Action::SpaceFilemarks),
        2 => (0_u8..20).prop_map(Action::Locate),
        1 => Just(Action::End),
        1 => Just(Action::Rewind),
        1 => Just(Action::Erase),
        2 => (0_u8..3).prop_map(Action::Key),
        1 => Just(Action::Reload),
    ]
}

/// A tape as a list.
#[derive(Debug, Default)]
struct Model {
    /// Block with its key, or a filemark.
    objects: Vec<Option<(Vec<u8>, u8)>>,
    at: usize,
    key: u8,
}

/// How an action ends: with what was read, or with key, code and qualifier of the sense data.
type Ended = Result<Vec<u8>, (u8, u8, u8)>;

const FILEMARK: (u8, u8, u8) = (0, 0, 1);
const BEGINNING: (u8, u8, u8) = (0, 0, 4);
const END: (u8, u8, u8) = (8, 0, 5);

impl Model {
    fn write(&mut self, object: Option<(Vec<u8>, u8)>) {
        self.objects.truncate(self.at);
        self.objects.push(object);
        self.at += 1;
    }

    fn step(&mut self, forward: bool) -> Result<bool, (u8, u8, u8)> {
        if forward {
            let object = self.objects.get(self.at).ok_or(END)?;
            self.at += 1;
            Ok(object.is_none())
        } else {
            self.at = self.at.checked_sub(1).ok_or(BEGINNING)?;
            Ok(self.objects[self.at].is_none())
        }
    }

    fn does(&mut self, action: &Action, block: &[u8]) -> Ended {
        match *action {
            Action::Write(_) => self.write(Some((block.to_vec(), self.key))),
            Action::Filemarks(count) => (0..count).for_each(|_| self.write(None)),
            Action::Read => match self.objects.get(self.at) {
                None => return Err(END),
                Some(None) => {
                    self.at += 1;
                    return Err(FILEMARK);
                }
                Some(Some((block, key))) => {
                    if *key != 0 && *key != self.key {
                        let other = if self.key == 0 { 1 } else { 3 };
                        return Err((7, 0x74, other));
                    }
                    self.at += 1;
                    return Ok(block.clone());
                }
            },
            Action::SpaceBlocks(count) => {
                for _ in 0..count.unsigned_abs() {
                    if self.step(count > 0)? {
                        return Err(FILEMARK);
                    }
                }
            }
            Action::SpaceFilemarks(count) => {
                for _ in 0..count.unsigned_abs() {
                    while !self.step(count > 0)? {}
                }
            }
            Action::Locate(object) => {
                self.at = self.objects.len().min(object.into());
                if self.at < object.into() {
                    return Err(END);
                }
            }
            Action::End => self.at = self.objects.len(),
            Action::Rewind => self.at = 0,
            Action::Erase => self.objects.truncate(self.at),
            Action::Key(key) => self.key = key,
            Action::Reload => (self.at, self.key) = (0, 0),
        }
        Ok(Vec::new())
    }
}

fn really(host: &mut Host, action: &Action, block: &[u8]) -> Ended {
    let space = |code, count: i8| {
        let [_, a, b, c] = i32::from(count).to_be_bytes();
        vec![0x11, code, a, b, c, 0]
    };
    let cdb = match *action {
        Action::Write(_) => {
            host.write_block(block);
            return Ok(Vec::new());
        }
        Action::Read => {
            let mut cdb = variable(0x08, 4000);
            cdb[1] = 2;
            let mut buffer = vec![0; 4000];
            let completion = host.execute(&cdb, Data::In(&mut buffer));
            if completion.status != GOOD {
                return Err(Told::from(&completion).code);
            }
            buffer.truncate(completion.transferred);
            return Ok(buffer);
        }
        Action::Key(0) => {
            disable(host);
            return Ok(Vec::new());
        }
        Action::Key(key) => {
            set(host, key);
            return Ok(Vec::new());
        }
        Action::Reload => {
            let image = host.drive.unload().unwrap();
            host.drive.load(&image).unwrap();
            host.settle();
            return Ok(Vec::new());
        }
        Action::Filemarks(count) => vec![0x10, 0, 0, 0, count, 0],
        Action::SpaceBlocks(count) => space(0, count),
        Action::SpaceFilemarks(count) => space(1, count),
        Action::Locate(object) => vec![0x2b, 0, 0, 0, 0, 0, object, 0, 0, 0],
        Action::End => space(3, 0),
        Action::Rewind => vec![0x01, 0, 0, 0, 0, 0],
        Action::Erase => vec![0x19, 1, 0, 0, 0, 0],
    };
    let completion = host.execute(&cdb, Data::None);
    if completion.status == GOOD {
        Ok(Vec::new())
    } else {
        Err(Told::from(&completion).code)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn tape_does_what_a_list_does(actions in vec(actions(), 1..60)) {
        let mut host = Host::new(DriveKind::LtoPlain);
        let mut model = Model::default();
        for (n, action) in actions.iter().enumerate() {
            let block = match action {
                Action::Write(length) => vec![u8::try_from(n).unwrap(); usize::from(*length)],
                _ => Vec::new(),
            };
            let expected = model.does(action, &block);
            prop_assert_eq!(really(&mut host, action, &block), expected, "{} {:?}", n, action);
            prop_assert_eq!(usize::try_from(host.position()).unwrap(), model.at);
        }
        let contents = host.contents();
        let blocks = |encrypted: bool| {
            model.objects.iter().flatten().filter(|(_, key)| (*key != 0) == encrypted).count()
        };
        prop_assert_eq!(usize::try_from(contents.clear).unwrap(), blocks(false));
        prop_assert_eq!(usize::try_from(contents.encrypted).unwrap(), blocks(true));
        prop_assert!(!contents.damaged);
        let filemarks = model.objects.iter().filter(|object| object.is_none()).count();
        let ended = contents.files.iter().filter(|file| file.ended).count();
        prop_assert_eq!(ended, filemarks);
    }
}
