//! The socket: lines in, lines out, each client in a task of its own and under its limits.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Host;
use super::conversation::Conversation;
use crate::local;
use crate::proxy::control::{Command, MAX_COMMAND, Reply};
use crate::proxy::keying::JobClient;

/// Most clients at once. One that is silent is gone after [`IDLE`].
const CLIENTS: usize = 256;

/// How long a line may take once it has begun, and an answer until it is taken.
const LINE: Duration = Duration::from_secs(10);

/// How long a client that has nothing open may be silent.
const IDLE: Duration = Duration::from_secs(60);

/// Accepts until told to stop, then waits for commands under way.
pub(super) async fn accept(
    door: UnixListener,
    host: Arc<Host>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut clients = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = door.accept() => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        while clients.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) if clients.len() < CLIENTS => {
                clients.spawn(serve(stream, Arc::clone(&host), stopped.clone()));
            }
            Ok((stream, _)) => {
                let reason = format!("{CLIENTS} others speak to the proxy; try again later");
                tracing::warn!(clients = CLIENTS, "a client was turned away");
                // It fits the socket's buffer, or is lost with a client that never reads.
                drop(stream.try_write(&line(&Reply::Failed { reason })));
            }
            Err(error) => {
                // Out of descriptors: spinning would not bring any back.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(door);
    while clients.join_next().await.is_some() {}
}

async fn serve(stream: UnixStream, host: Arc<Host>, stopped: watch::Receiver<bool>) {
    let user = match local::owner(&stream) {
        Ok(user) => user,
        Err(stranger) => {
            tracing::warn!("a connection was closed: {stranger}");
            return;
        }
    };
    let (from, to) = stream.into_split();
    let talk = Talk {
        lines: Lines {
            from: BufReader::new(from),
            line: Vec::new(),
        },
        to,
        stopped,
    };
    if let Err(error) = talk.go_on(Conversation::new(host, user)).await {
        tracing::debug!(user, %error, "a client's connection ended");
    }
}

struct Talk {
    lines: Lines,
    to: OwnedWriteHalf,
    stopped: watch::Receiver<bool>,
}

impl Talk {
    async fn go_on(mut self, mut conversation: Conversation) -> io::Result<()> {
        loop {
            let read = tokio::select! {
                read = self.lines.next(conversation.holds()) => read,
                _ = self.stopped.wait_for(|stopped| *stopped) => return Ok(()),
            };
            let text = match read {
                Ok(None) => return Ok(()),
                Ok(Some(text)) => text,
                Err(error) => {
                    // Where the next line begins is not known any more.
                    let reason = error.to_string();
                    return self.say(&Reply::Failed { reason }).await;
                }
            };
            let reply = match serde_json::from_slice::<Command>(&text) {
                Ok(command) => self.execute(&mut conversation, command).await,
                Err(error) => Reply::Failed {
                    reason: format!("this is no command: {error}"),
                },
            };
            self.say(&reply).await?;
        }
    }

    /// Does it to its end, also where the client goes meanwhile: what was opened for it is known then,
    /// and taken back. What waits is told.
    async fn execute(&mut self, conversation: &mut Conversation, command: Command) -> Reply {
        let (here, client) = JobClient::new();
        let mut reply = std::pin::pin!(conversation.execute(command, client));
        tokio::select! {
            reply = &mut reply => reply,
            () = self.lines.ended() => {
                drop(here);
                reply.await
            }
        }
    }

    async fn say(&mut self, reply: &Reply) -> io::Result<()> {
        tokio::time::timeout(LINE, self.to.write_all(&line(reply)))
            .await
            .unwrap_or_else(|_| Err(timed_out("the answer was not taken")))
    }
}

fn line(reply: &Reply) -> Vec<u8> {
    let written = serde_json::to_vec(reply);
    let mut line = written.unwrap_or_else(|error| {
        tracing::error!(%error, "an answer cannot be written; this is a defect");
        br#"{"reply":"failed","reason":"the answer cannot be written; the log says more"}"#.to_vec()
    });
    line.push(b'\n');
    line
}

/// The lines of a client, none longer than [`MAX_COMMAND`].
struct Lines {
    from: BufReader<OwnedReadHalf>,
    line: Vec<u8>,
}

impl Lines {
    /// The next one; none where the client has ended.
    async fn next(&mut self, patient: bool) -> io::Result<Option<Vec<u8>>> {
        // Until its first byte.
        let begun = self.from.fill_buf();
        let first = if patient {
            begun.await?
        } else {
            let begun = tokio::time::timeout(IDLE, begun).await;
            begun.unwrap_or_else(|_| Err(timed_out("nothing was said for a minute")))?
        };
        if first.is_empty() {
            return Ok(None);
        }
        tokio::time::timeout(LINE, self.whole())
            .await
            .unwrap_or_else(|_| Err(timed_out("the line did not come to its end")))
    }

    /// Until the client has ended; never, where it has said more by now.
    async fn ended(&mut self) {
        if self
            .from
            .fill_buf()
            .await
            .is_ok_and(|more| !more.is_empty())
        {
            std::future::pending::<()>().await;
        }
    }

    async fn whole(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let chunk = self.from.fill_buf().await?;
            let (taken, ended) = match chunk.iter().position(|byte| *byte == b'\n') {
                Some(end) => (end + 1, true),
                None => (chunk.len(), chunk.is_empty()),
            };
            self.line
                .extend_from_slice(chunk.get(..taken).unwrap_or_default());
            self.from.consume(taken);
            if self.line.len() > MAX_COMMAND {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("a command has at most {MAX_COMMAND} bytes"),
                ));
            }
            if ended {
                return Ok(Some(std::mem::take(&mut self.line)));
            }
        }
    }
}

fn timed_out(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}
