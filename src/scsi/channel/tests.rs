use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::scsi::Drive;
use crate::scsi::scripted::{Scripted, check, good};
use crate::t10::Sense;

const SECOND: Duration = Duration::from_secs(1);

/// A unit behind a socket, until it is dropped.
struct Served {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
    _directory: tempfile::TempDir,
}

impl Served {
    fn new(mut unit: Scripted) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("drive.scsi");
        let listener = listen(&path).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = spawn(move || serve(&listener, &mut unit, &seen));
        Self {
            path,
            stop,
            thread: Some(thread),
            _directory: directory,
        }
    }

    fn channel(&self) -> Channel {
        Channel::open(&self.path).unwrap()
    }

    /// Stops it, and waits until it listens no longer.
    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.end();
    }
}

/// A unit that gives back what was last sent to it, and refuses what it does not know.
fn echo() -> Scripted {
    let mut kept = Vec::new();
    Scripted::new(move |cdb, data| match (cdb[0], data) {
        (0x0a, Data::Out(bytes)) => {
            kept = bytes.to_vec();
            Ok(good(Data::Out(bytes), &[]))
        }
        (0x08, data) => Ok(good(data, &kept)),
        (0x00, data) => Ok(good(data, &[])),
        (0x01, _) => {
            sleep(SECOND * 60);
            Ok(check(Sense::INVALID_COMMAND))
        }
        (0x02, _) => Err(TransportError::Ended {
            device: "/dev/sg3".to_owned(),
            reason: "DID_RESET\x1b".to_owned(),
        }),
        (0x03, _) => Err(TransportError::TimedOut {
            device: "/dev/sg3".to_owned(),
            seconds: 1,
        }),
        _ => Ok(check(Sense::INVALID_COMMAND)),
    })
}

#[test]
fn commands_and_data_pass_both_ways() {
    let served = Served::new(echo());
    let mut channel = served.channel();
    let data: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let sent = channel
        .execute(&[0x0a; 6], Data::Out(&data), SECOND)
        .unwrap();
    assert_eq!((sent.status, sent.transferred), (0, data.len()));
    let mut back = vec![0; data.len() + 7];
    let got = channel
        .execute(&[0x08; 6], Data::In(&mut back), SECOND)
        .unwrap();
    assert_eq!(got.transferred, data.len());
    assert_eq!(back[..data.len()], data);
    let mut short = [0; 3];
    let got = channel
        .execute(&[0x08; 6], Data::In(&mut short), SECOND)
        .unwrap();
    assert_eq!((got.transferred, short), (3, [0, 1, 2]));
    let refused = channel.execute(&[0xff; 16], Data::None, SECOND).unwrap();
    assert_eq!(Sense::decode(&refused.sense), Ok(Sense::INVALID_COMMAND));
}

#[test]
fn a_drive_is_the_same_over_the_channel() {
    let page = include_bytes!("../../../integration/golden/t10/spin-0031.bin");
    let served = Served::new(Scripted::saying(page));
    let mut drive = Drive::new(served.channel());
    assert_eq!(drive.wrapping_key().unwrap().encode(), page);
    assert_eq!(drive.name(), served.path.display().to_string());
}

#[test]
fn a_command_without_known_end_is_told_so() {
    let served = Served::new(echo());
    let mut channel = served.channel();
    let error = channel.execute(&[0x02; 6], Data::None, SECOND).unwrap_err();
    assert!(error.to_string().contains("DID_RESET?"), "{error:?}");
    let error = channel.execute(&[0x03; 6], Data::None, SECOND).unwrap_err();
    assert!(matches!(error, TransportError::TimedOut { .. }));
    // The connection goes on.
    channel.execute(&[0x00; 6], Data::None, SECOND).unwrap();
}

#[test]
fn frames_that_cannot_be_carried_are_not_sent() {
    let served = Served::new(echo());
    let mut channel = served.channel();
    for cdb in [&[][..], &[0; 17]] {
        assert!(channel.execute(cdb, Data::None, SECOND).is_err());
    }
    let much = vec![0; frame::MAX_DATA + 1];
    assert!(
        channel
            .execute(&[0x0a; 6], Data::Out(&much), SECOND)
            .is_err()
    );
    channel.execute(&[0x00; 6], Data::None, SECOND).unwrap();
}

#[test]
fn two_initiators_take_turns() {
    let served = Served::new(echo());
    let threads: Vec<_> = (0..4u8)
        .map(|number| {
            let mut channel = served.channel();
            spawn(move || {
                for _ in 0..50 {
                    channel
                        .execute(&[0x0a; 6], Data::Out(&[number; 64]), SECOND)
                        .unwrap();
                    let mut back = [9; 64];
                    channel
                        .execute(&[0x08; 6], Data::In(&mut back), SECOND)
                        .unwrap();
                    // Of one initiator, and whole.
                    assert_eq!(back, [back[0]; 64]);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn the_socket_is_its_owners_and_takes_the_place_of_a_stale_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drive.scsi");
    drop(UnixListener::bind(&path).unwrap());
    assert!(
        Channel::open(&path)
            .unwrap_err()
            .to_string()
            .contains("no drive answers")
    );
    let _listener = listen(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn hostile_frames_end_their_connection_and_no_other() {
    let served = Served::new(echo());
    let mut channel = served.channel();
    let request = |direction, cdb: &[u8], len| {
        Request::new(7, direction, cdb, len, SECOND)
            .unwrap()
            .encode()
    };
    let valid = request(Direction::None, &[0; 6], 0);
    let mut frames = vec![
        b"GET / HTTP/1.1\r\nHost: drive\r\n\r\n".to_vec(),
        vec![0; 64],
        vec![0xff; 64],
    ];
    // Version, direction, CDB length of 0 and 17, reserved byte, data without a direction, 4 GiB.
    for (at, value) in [(4, 2), (5, 3), (6, 0), (6, 17), (7, 1), (15, 1), (12, 0xff)] {
        let mut frame = valid.clone();
        frame[at] = value;
        frames.push(frame);
    }
    let mut large = request(Direction::In, &[0x08; 6], 0);
    large[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
    frames.push(large);
    for frame in frames {
        let mut stream = UnixStream::connect(&served.path).unwrap();
        stream.write_all(&frame).unwrap();
        stream.set_read_timeout(Some(SECOND * 5)).unwrap();
        let mut answer = Vec::new();
        // Closed, with what was not read thrown away or not.
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, b"", "{}", hex::encode(&frame));
        channel.execute(&[0x00; 6], Data::None, SECOND).unwrap();
    }
}

#[test]
fn half_a_frame_holds_nobody_up() {
    let served = Served::new(echo());
    let mut slow = UnixStream::connect(&served.path).unwrap();
    slow.write_all(b"EKM").unwrap();
    let begun = Instant::now();
    served
        .channel()
        .execute(&[0x00; 6], Data::None, SECOND)
        .unwrap();
    assert!(begun.elapsed() < SECOND * 5);
    // One byte a second does not keep the connection either.
    let begun = Instant::now();
    for byte in b"Q\x01\0\x06\0\0\0\0\x01\0\0\0\0\0\0\x03\xe8" {
        sleep(SECOND);
        if slow.write_all(&[*byte]).is_err() {
            break;
        }
    }
    assert!(begun.elapsed() < frame::TRANSFER_TIME + SECOND * 5);
}

#[test]
fn too_many_connections_are_closed() {
    let served = Served::new(echo());
    let mut kept: Vec<_> = (0..server::MAX_CONNECTIONS)
        .map(|_| served.channel())
        .collect();
    for channel in &mut kept {
        channel.execute(&[0x00; 6], Data::None, SECOND).unwrap();
    }
    assert!(
        served
            .channel()
            .execute(&[0x00; 6], Data::None, SECOND)
            .is_err()
    );
    kept.clear();
    // It sees their ends a moment later.
    let begun = Instant::now();
    while let Err(error) = served.channel().execute(&[0x00; 6], Data::None, SECOND) {
        assert!(begun.elapsed() < SECOND * 30, "{error}");
        sleep(SECOND / 20);
    }
}

#[test]
fn initiator_goes_on_with_a_server_that_was_started_anew() {
    let mut first = Served::new(echo());
    let mut channel = first.channel();
    channel.execute(&[0x00; 6], Data::None, SECOND).unwrap();
    first.end();
    let listener = listen(&first.path).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| serve(&listener, &mut echo(), &stop).unwrap());
        channel.execute(&[0x00; 6], Data::None, SECOND).unwrap();
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn test_unit_ready_is_as_the_documentation_has_it() {
    let document = include_str!("../../../docs/scsi-channel.md");
    let frame = Request::new(1, Direction::None, &[0; 6], 0, SECOND * 60).unwrap();
    let bytes: Vec<String> = frame
        .encode()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    assert!(document.contains(&format!("`{}`", bytes.join(" "))));
}

/// One that answers every request with these bytes.
fn answering(answer: Vec<u8>) -> (Channel, tempfile::TempDir, JoinHandle<()>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drive.scsi");
    let listener = listen(&path).unwrap();
    let thread = spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; Request::HEADER_LEN + 6];
        stream.read_exact(&mut request).unwrap();
        let _ = stream.write_all(&answer);
    });
    let channel = Channel::open(&path).unwrap();
    (channel, directory, thread)
}

#[test]
fn hostile_answers_are_found() {
    let ended = |sense: usize, transferred| {
        Answer::Ended(Completion {
            status: 0,
            transferred,
            sense: vec![0x70; sense],
        })
    };
    let whole = [&ended(0, 4).encode(1)[..], b"data"].concat();
    let with = |at: usize, value: u8| {
        let mut frame = whole.clone();
        frame[at] = value;
        frame
    };
    for (answer, fault) in [
        (Vec::new(), "end of file"),
        (whole[..18].to_vec(), "end of file"),
        (ended(0, 9).encode(1), "length"),
        (ended(0, 0).encode(2), "another request"),
        (with(0, b'X'), "does not speak"),
        (with(4, 9), "version 9"),
        (with(5, 3), "unknown code"),
        (with(7, 253), "length"),
    ] {
        let (mut channel, _directory, thread) = answering(answer);
        let mut buffer = [0; 8];
        let error = channel
            .execute(&[0x08; 6], Data::In(&mut buffer), SECOND)
            .unwrap_err();
        assert!(error.to_string().contains(fault), "{fault}: {error}");
        thread.join().unwrap();
    }
    let (mut channel, _directory, thread) = answering(whole);
    let mut buffer = [0; 8];
    let completion = channel
        .execute(&[0x08; 6], Data::In(&mut buffer), SECOND)
        .unwrap();
    assert_eq!((completion.transferred, &buffer[..4]), (4, &b"data"[..]));
    thread.join().unwrap();
}

#[test]
fn server_that_says_nothing_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drive.scsi");
    let _listener = listen(&path).unwrap();
    let mut channel = Channel::open(&path).unwrap();
    let begun = Instant::now();
    let limit = Duration::from_millis(200);
    let error = channel.execute(&[0x00; 6], Data::None, limit).unwrap_err();
    assert!(matches!(error, TransportError::TimedOut { .. }), "{error}");
    assert!(begun.elapsed() < limit + frame::TRANSFER_TIME + SECOND * 3);
}

proptest! {
    #[test]
    fn request_headers_round_trip(bytes in vec(any::<u8>(), Request::HEADER_LEN), valid: bool) {
        let mut header: [u8; Request::HEADER_LEN] = bytes.try_into().unwrap();
        if valid {
            header[..5].copy_from_slice(b"EKMQ\x01");
            header[5] %= 3;
            header[6] = header[6] % 16 + 1;
            header[7] = 0;
            header[12] = 0;
            header[13] &= 0x3f;
        }
        if let Ok(request) = Request::decode(&header) {
            let again = request.encode();
            prop_assert_eq!(&again[..16], &header[..16]);
            prop_assert!(request.data_len <= frame::MAX_DATA);
            prop_assert!(request.limit <= frame::MAX_LIMIT);
        }
    }

    #[test]
    fn answer_headers_do_no_harm(bytes in vec(any::<u8>(), AnswerHeader::LEN), valid: bool) {
        let mut header: [u8; AnswerHeader::LEN] = bytes.try_into().unwrap();
        if valid {
            header[..5].copy_from_slice(b"EKMA\x01");
            header[8..12].copy_from_slice(&[0, 0, 0, 7]);
        }
        if let Ok(read) = AnswerHeader::decode(&header, 7, 100) {
            prop_assert!(read.transferred() <= 100);
            read.with_text(vec![0xff; 9]);
        }
    }
}
