//! What runs in the machine whose power is cut: a key server, and clients of
//! it that make keys as fast as they can and tell of each answer at once.
//!
//! ```text
//! writer EKM ROUND CONNECTIONS      in a directory with ekm.toml, tls/ and drive/
//! ```
//!
//! Of each answer it prints a line, when the answer is there and not before:
//!
//! ```text
//! ANSWER REQUEST DKI SHA256 [SHA256]       a data key, and the digests of its EEDKs
//! CONFIRMED REQUEST DKI                    the server knows that the cartridge has them
//! ```
//!
//! The same lines go to a file, `unsynced-ROUND`, that is synced after its
//! first line and never again: what the cut leaves of it tells whether it was one.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ekm::api::{Base64, ConfirmRequest, CreateAnswer, CreateRequest, DriveInRequest};
use ekm::client::KeyClient;
use ekm::key::Eedk;
use ekm::softdrive::SoftDrive;
use tokio::task::JoinSet;
use uuid::Uuid;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Times that the server is asked whether its token is ready, a tenth of a second apart.
const PATIENCE: usize = 600;

#[tokio::main]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [ekm, round, connections] = arguments.as_slice() else {
        return Err("writer EKM ROUND CONNECTIONS".into());
    };
    let mut server = Command::new(ekm)
        .arg("serve")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let out = server
        .stdout
        .take()
        .ok_or("the server has no standard output")?;
    BufReader::new(out).read_line(&mut line)?;
    let address = line
        .trim()
        .strip_prefix("listening on https://")
        .ok_or("the server did not start")?;

    let mut unsynced = File::create(format!("unsynced-{round}"))?;
    unsynced.write_all(b"SYNCED\n")?;
    unsynced.sync_all()?;
    let drive = SoftDrive::open(Path::new("drive"))?;
    let writer = Arc::new(Writer {
        drive: DriveInRequest {
            serial: drive.serial().clone(),
            stores_eedks: true,
            public_key: Some(Base64(drive.public_key_spki().to_vec())),
            session_key: None,
        },
        round: round.parse()?,
        made: AtomicU32::new(0),
        unsynced,
    });
    ready(&mut writer.client(address)?).await?;
    let mut clients = JoinSet::new();
    for _ in 0..connections.parse()? {
        let client = writer.client(address)?;
        clients.spawn(Arc::clone(&writer).write(client));
    }
    // None ends before the machine does, unless it is refused.
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(())
}

async fn ready(client: &mut KeyClient) -> Outcome<()> {
    for _ in 0..PATIENCE {
        if client.get("/readyz").await?.0 == 200 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err("the token does not become ready".into())
}

struct Writer {
    drive: DriveInRequest,
    round: u32,
    made: AtomicU32,
    unsynced: File,
}

impl Writer {
    fn client(&self, address: &str) -> Outcome<KeyClient> {
        let issued = |end: &str| format!("tls/issued/drive-{}.{end}", self.drive.serial);
        Ok(KeyClient::new(
            address,
            Path::new("tls/ca.crt"),
            Path::new(&issued("crt")),
            Path::new(&issued("key")),
        )?)
    }

    /// Makes keys, and confirms every other one.
    async fn write(self: Arc<Self>, mut client: KeyClient) -> Outcome<()> {
        loop {
            let number = self.made.fetch_add(1, Ordering::Relaxed);
            let request = CreateRequest {
                job: None,
                request_id: Uuid::new_v4(),
                drive: self.drive.clone(),
                volser: format!("{:02}{:04}", self.round % 100, number % 10_000).parse()?,
                kek1: None,
                kek2: None,
            };
            let answer = client.create(&request).await?;
            self.tell(&answered(&answer)?)?;
            if number.is_multiple_of(2) {
                continue;
            }
            let confirm = ConfirmRequest {
                request_id: answer.request_id,
                serial: self.drive.serial.clone(),
                dki: answer.dki,
                stored: true,
            };
            client.confirm(&confirm).await?;
            self.tell(&format!("CONFIRMED {} {}", confirm.request_id, confirm.dki))?;
        }
    }

    /// One write each, so that lines of several connections do not mix.
    fn tell(&self, line: &str) -> Outcome<()> {
        let line = format!("{line}\n");
        (&self.unsynced).write_all(line.as_bytes())?;
        std::io::stdout().lock().write_all(line.as_bytes())?;
        Ok(())
    }
}

fn answered(answer: &CreateAnswer) -> Outcome<String> {
    let mut line = format!("ANSWER {} {}", answer.request_id, answer.dki);
    for eedk in &answer.eedks {
        line.push(' ');
        line.push_str(&hex::encode(Eedk::decode(&eedk.eedk.0)?.digest()));
    }
    Ok(line)
}
