//! `ekm softdrive tape`

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Context, output, runtime};
use crate::scsi::{Channel, Drive, channel};
use crate::softdrive::{FileOnTape, SoftDrive, TapeContents, TapeDrive, new_tape};
use crate::volser::Volser;

/// Bytes of a block that is put.
const BLOCK: usize = 64 * 1024;

#[derive(Debug, clap::Subcommand)]
pub(in crate::cli) enum Tape {
    /// Makes the image of a new tape.
    New {
        /// The file; it must not be there yet.
        image: PathBuf,
        /// The cartridge's volume serial, at most 6 characters.
        #[arg(long)]
        volser: Volser,
        /// How much fits on it, in MiB. The file grows with what is written.
        #[arg(long, value_name = "MIB", default_value = "10240", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
        capacity: u64,
    },
    /// Serves the drive on a Unix socket, until it is ended: for `ekm drive status SOCKET` and the
    /// in-band proxy, where there is no tape drive at hand. What it writes to standard output when
    /// it listens is the socket.
    Serve {
        /// The socket that takes SCSI commands.
        socket: PathBuf,
        /// The drive's directory.
        #[arg(
            long,
            env = "EKM_SOFTDRIVE",
            value_name = "DIR",
            default_value = "drive"
        )]
        drive: PathBuf,
        /// The image of the tape that is in it.
        #[arg(long, value_name = "FILE")]
        tape: Option<PathBuf>,
        /// Leaves keys to the library, so that a host can set none.
        #[arg(long)]
        library_managed: bool,
    },
    /// Writes standard input to the tape of a drive that is served on a socket: blocks of 64 KiB, and
    /// a filemark. As a job's command: ekm tape run … -- ekm softdrive tape put
    Put {
        /// The socket.
        #[arg(env = "EKM_TAPE", value_name = "SOCKET")]
        tape: String,
    },
    /// Reads from there to standard output, up to the next filemark.
    Get {
        /// The socket.
        #[arg(env = "EKM_TAPE", value_name = "SOCKET")]
        tape: String,
    },
    /// Lists what is on a tape image, file by file: blocks, encrypted or in clear, and the data
    /// keys that they name. Needs no key; the image may be in a drive.
    List {
        /// The file.
        image: PathBuf,
    },
}

impl Tape {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::New {
                image,
                volser,
                capacity,
            } => new_tape(&image, &volser, capacity << 20)
                .with_context(|| format!("cannot make the tape image {}", image.display())),
            Self::Serve {
                socket,
                drive,
                tape,
                library_managed,
            } => serve(&socket, &drive, tape.as_deref(), library_managed),
            Self::Put { tape } => put(&tape),
            Self::Get { tape } => get(&tape),
            Self::List { image } => list(context, &image),
        }
    }
}

/// The drive on that socket; a job is told it as `unix:SOCKET`.
fn reach(tape: &str) -> anyhow::Result<Drive<Channel>> {
    let path = tape.strip_prefix("unix:").unwrap_or(tape);
    Ok(Drive::new(Channel::open(Path::new(path))?))
}

fn put(tape: &str) -> anyhow::Result<()> {
    let mut drive = reach(tape)?;
    let mut input = std::io::stdin().lock();
    let mut block = vec![0; BLOCK];
    loop {
        let mut filled = 0;
        // A pipe brings less at a time than a block.
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match input.read(rest)? {
                0 => break,
                got => filled += got,
            }
        }
        match block.get(..filled) {
            Some(block) if !block.is_empty() => drive.write_block(block)?,
            _ => break,
        }
    }
    Ok(drive.write_filemark()?)
}

fn get(tape: &str) -> anyhow::Result<()> {
    let mut drive = reach(tape)?;
    let mut output = std::io::stdout().lock();
    let mut block = vec![0; 1 << 20];
    while let Some(got) = drive.read_block(&mut block)? {
        output.write_all(block.get(..got).unwrap_or_default())?;
    }
    Ok(output.flush()?)
}

fn serve(
    socket: &Path,
    directory: &Path,
    tape: Option<&Path>,
    library_managed: bool,
) -> anyhow::Result<()> {
    let mut drive = TapeDrive::new(SoftDrive::open(directory)?);
    if library_managed {
        drive = drive.library_managed();
    }
    if let Some(tape) = tape {
        drive
            .load(tape)
            .with_context(|| format!("cannot load the tape image {}", tape.display()))?;
    }
    let listener = channel::listen(socket)
        .with_context(|| format!("cannot listen at {}", socket.display()))?;
    let runtime = runtime()?;
    let stop = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&stop);
    let _guard = runtime.enter();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    runtime.spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        ended.store(true, Ordering::Relaxed);
    });
    output::say(&socket.display().to_string())?;
    channel::serve(&listener, &mut drive, &stop)
        .with_context(|| format!("cannot serve at {}", socket.display()))?;
    std::fs::remove_file(socket).with_context(|| format!("cannot remove {}", socket.display()))
}

fn list(context: &Context, image: &Path) -> anyhow::Result<()> {
    let contents = TapeContents::read(image)
        .with_context(|| format!("cannot list the tape image {}", image.display()))?;
    if context.json {
        return output::json(&contents);
    }
    output::fields(&[
        ("volser", contents.volser.to_string()),
        ("medium serial", contents.medium_serial.clone()),
        (
            "blocks",
            format!(
                "{}: {} encrypted, {} in clear",
                contents.blocks, contents.encrypted, contents.clear
            ),
        ),
    ])?;
    for (dki, count) in &contents.eedks {
        output::fields(&[("EEDKs", format!("{count} of {dki}"))])?;
    }
    if contents.damaged {
        output::say("damaged behind the last block shown here")?;
    }
    if contents.files.is_empty() {
        return Ok(());
    }
    output::table(
        &["file", "blocks", "bytes", "clear", "encrypted", "data key"],
        contents.files.iter().flat_map(rows),
    )
}

/// A row for the file, and one for each further data key in it.
fn rows(file: &FileOnTape) -> Vec<Vec<String>> {
    let mut keys = file.data_keys.iter().map(|used| match &used.name {
        Some(name) => format!("{} {name:?}", used.dki),
        None => used.dki.clone(),
    });
    let mut rows = vec![vec![
        file.number.to_string(),
        file.blocks.to_string(),
        file.bytes.to_string(),
        file.clear.to_string(),
        file.encrypted.to_string(),
        keys.next().unwrap_or_else(|| "-".to_owned()),
    ]];
    rows.extend(keys.map(|key| {
        let mut row = vec![String::new(); 5];
        row.push(key);
        row
    }));
    rows
}
