//! The load generator: connections that ask one thing after another, with as
//! little work of their own as HTTP over TLS can be had for.
//!
//! It shares the machine with the server, so what it costs is measured too. A
//! request is made once and sent again and again under new ids; of an answer
//! only the status is looked at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::process::Cpu;
use crate::sample::{Window, float};
use crate::site::Site;

/// A request, ready to be sent; its id is made anew each time.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    bytes: Vec<u8>,
    id: usize,
}

/// What stands before the id.
const ID: &[u8] = b"\"request_id\":\"";

/// Length of an id (RFC 9562), bytes.
const ID_LENGTH: usize = 36;

impl Template {
    /// A `POST` of that request.
    pub(crate) fn new(server: &str, path: &str, request: &impl Serialize) -> anyhow::Result<Self> {
        let body = serde_json::to_vec(request)?;
        let mut bytes = format!(
            "POST {path} HTTP/1.1\r\nhost: {server}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        bytes.extend_from_slice(&body);
        let id = bytes
            .windows(ID.len())
            .position(|window| window == ID)
            .context("the request has no id")?
            + ID.len();
        Ok(Self { bytes, id })
    }

    /// Puts another id into it.
    fn renew(&mut self) {
        // Ids need to be new, not hard to guess.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{:08x}-0000-4000-8000-{next:012x}", std::process::id());
        if let Some(place) = self.bytes.get_mut(self.id..self.id + ID_LENGTH) {
            place.copy_from_slice(id.as_bytes());
        }
    }
}

/// A connection to the server.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects with the certificate that the configuration holds.
    pub(crate) async fn open(address: &str, tls: Arc<ClientConfig>) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let name = ServerName::try_from(host.to_owned())?;
        Ok(Self {
            stream: TlsConnector::from(tls).connect(name, stream).await?,
            buffer: vec![0; 16 * 1024],
        })
    }

    /// Asks once; how long the answer took.
    ///
    /// # Errors
    /// The server refuses, or goes away.
    pub(crate) async fn ask(&mut self, request: &mut Template) -> anyhow::Result<Duration> {
        request.renew();
        let start = Instant::now();
        self.stream.write_all(&request.bytes).await?;
        let mut have = 0;
        loop {
            let room = self.buffer.get_mut(have..).unwrap_or_default();
            let got = self.stream.read(room).await?;
            if got == 0 {
                bail!("the server closed the connection, or its answer is too long");
            }
            have += got;
            let answer = self.buffer.get(..have).unwrap_or_default();
            if let Some(length) = whole(answer)?
                && have >= length
            {
                if !answer.starts_with(b"HTTP/1.1 200 ") {
                    bail!("the server refused: {}", String::from_utf8_lossy(answer));
                }
                return Ok(start.elapsed());
            }
        }
    }
}

/// Length of head and body together, once the head is there.
fn whole(answer: &[u8]) -> anyhow::Result<Option<usize>> {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(answer.get(..end).unwrap_or_default())?;
    let length = head
        .lines()
        .find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<usize>())
        })
        .context("an answer without content-length")??;
    Ok(Some(end + 4 + length))
}

/// Opens that many connections of the proxy. The server closes those that are
/// silent for some seconds, so each window has its own.
async fn open(site: &Site, count: usize) -> anyhow::Result<Vec<Connection>> {
    let tls = site.proxy()?;
    let mut open = Vec::with_capacity(count);
    for _ in 0..count {
        open.push(Connection::open(&site.address, Arc::clone(&tls)).await?);
    }
    Ok(open)
}

/// So many connections ask, each for itself, until the time is over. Each
/// begins at a place of its own, evenly spread, and goes on to the next.
pub(crate) async fn window(
    site: &Site,
    connections: usize,
    requests: &[Template],
    length: Duration,
) -> anyhow::Result<Window> {
    let all_of_them = connections.max(1);
    let mut connections = open(site, connections).await?;
    let over = AtomicBool::new(false);
    let before = Cpu::now(Some(site.pid()));
    let start = Instant::now();
    let asking = connections
        .iter_mut()
        .enumerate()
        .map(|(number, connection)| {
            let over = &over;
            let mut requests: Vec<Template> = requests.to_vec();
            async move {
                let mut took = Vec::new();
                let count = requests.len().max(1);
                let mut next = number * count / all_of_them % count;
                while !over.load(Ordering::Relaxed) {
                    let request = requests.get_mut(next).context("no request to send")?;
                    took.push(connection.ask(request).await?);
                    next = (next + 1) % count;
                }
                Ok::<_, anyhow::Error>(took)
            }
        });
    let timer = async {
        tokio::time::sleep(length).await;
        over.store(true, Ordering::Relaxed);
        Ok(())
    };
    let (took, ()) =
        futures_util::future::try_join(futures_util::future::try_join_all(asking), timer).await?;
    let all = start.elapsed();
    let took: Vec<Duration> = took.into_iter().flatten().collect();
    let count = float(took.len());
    let mut seen = Window::of(took, all);
    seen.cpu = Cpu::now(Some(site.pid())).since(before, count);
    Ok(seen)
}
