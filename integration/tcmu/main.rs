//! Serves the software tape drive to a Linux kernel, by target_core_user (TCMU).
//!
//! ```text
//! tcmu serve /dev/uioN DRIVE SOCKET [library] [unprotected]   a drive's directory; until it is killed
//! tcmu tell SOCKET WORDS…                                     to the drive that is served there
//! ```
//!
//! Words: `load IMAGE`, `unload`, `reset`, `power-cycle`, `quirk …` (see [`Quirk`]), `behave`. The
//! answer is `ok`, or what is wrong, with exit code 1.
//!
//! Before it: `core/user_N/NAME` in configfs, enabled, with `attrib/tmr_notification` 1; the
//! kernel makes the SCSI device once this serves and a port is linked to it.
//!
//! Source: Linux, `Documentation/target/tcmu-design.rst` and `include/uapi/linux/target_core_user.h`.

mod ring;

use std::error::Error;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use ekm::softdrive::{Quirk, SoftDrive, TapeDrive, TapePort};

use ring::Ring;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tcmu: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", device, drive, socket, traits @ ..] => serve(
            Path::new(device),
            Path::new(drive),
            Path::new(socket),
            traits,
        ),
        ["tell", socket, words @ ..] => tell(Path::new(socket), &words.join(" ")),
        _ => Err(
            "tcmu serve /dev/uioN DRIVE SOCKET [library] [unprotected] | tcmu tell SOCKET WORDS"
                .into(),
        ),
    }
}

fn serve(device: &Path, drive: &Path, socket: &Path, traits: &[&str]) -> Outcome<()> {
    let mut drive = TapeDrive::new(SoftDrive::open(drive)?);
    for word in traits {
        drive = match *word {
            "library" => drive.library_managed(),
            "unprotected" => drive.without_write_protection(),
            other => return Err(format!("no drive is {other:?}").into()),
        };
    }
    let port = TapePort::new(drive);
    let mut ring = Ring::open(device)?;
    let listener = UnixListener::bind(socket)?;
    let told = port.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Err(error) = hear(&told, stream) {
                eprintln!("tcmu: {error}");
            }
        }
    });
    loop {
        ring.wait()?;
        while let Some(entry) = ring.next() {
            match entry {
                ring::Entry::Command(command) => {
                    // A drive that hangs answers nothing else either, until somebody gives up.
                    while port.drive().hangs(command.cdb()) && !ring.gives_up(&command) {
                        thread::sleep(Duration::from_millis(50));
                    }
                    let mut drive = port.drive();
                    if drive.hangs(command.cdb()) {
                        command.abort();
                    } else {
                        command.answer(&mut drive);
                    }
                }
                // The kernel itself raises the unit attention.
                ring::Entry::Reset => port.drive().reset_untold(),
            }
        }
        ring.done()?;
    }
}

/// One order, and its answer.
fn hear(port: &TapePort, mut stream: UnixStream) -> Outcome<()> {
    let mut order = String::new();
    BufReader::new(&stream).read_line(&mut order)?;
    let answer = match obey(port, order.trim()) {
        Ok(()) => "ok".to_owned(),
        Err(error) => error.to_string(),
    };
    writeln!(stream, "{answer}")?;
    Ok(())
}

fn obey(port: &TapePort, order: &str) -> Outcome<()> {
    let mut drive = port.drive();
    match order.split_once(' ').unwrap_or((order, "")) {
        ("load", image) => drive.load(&PathBuf::from(image))?,
        ("unload", "") => {
            drive.unload().ok_or("there is no cartridge in the drive")?;
        }
        ("reset", "") => drive.reset(),
        ("power-cycle", "") => drive.power_cycle()?,
        ("behave", "") => drive.behave(),
        ("quirk", quirk) => drive.misbehave(quirk.parse::<Quirk>()?),
        _ => return Err(format!("{order:?} is no order").into()),
    }
    Ok(())
}

fn tell(socket: &Path, order: &str) -> Outcome<()> {
    let mut stream = UnixStream::connect(socket)?;
    writeln!(stream, "{order}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.trim() {
        "ok" => Ok(()),
        other => Err(other.into()),
    }
}
