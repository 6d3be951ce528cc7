//! A way to a server that a test can block: it keeps its address while what is behind it comes and
//! goes, hangs, or loses an answer.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What becomes of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// They go through.
    Open,
    /// They are closed at once, those that are open too.
    Closed,
    /// They are accepted, and nothing that is said on them arrives.
    Silent,
}

#[derive(Debug)]
struct Shared {
    way: watch::Sender<Way>,
    server: Mutex<String>,
    /// How many answers still get lost, and what the way is after the last of them.
    lose: Mutex<(usize, Way)>,
    open: AtomicUsize,
    most: AtomicUsize,
    accepted: AtomicUsize,
}

/// The relay; it ends with the test's runtime.
#[derive(Clone, Debug)]
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

impl Relay {
    /// A way to that address and port.
    pub(crate) async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            way: watch::channel(Way::Open).0,
            server: Mutex::new(server.to_owned()),
            lose: Mutex::new((0, Way::Open)),
            open: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            accepted: AtomicUsize::new(0),
        });
        let all = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, Arc::clone(&all)));
            }
        });
        Self { address, shared }
    }

    /// From now on it leads there: the server was started anew.
    pub(crate) fn leads_to(&self, server: &str) {
        server.clone_into(&mut self.shared.server.lock().unwrap());
    }

    pub(crate) fn set(&self, way: Way) {
        self.shared.way.send_replace(way);
    }

    /// Loses the next answer, its connection with it; afterwards the way is that one.
    pub(crate) fn lose_one_answer(&self, then: Way) {
        *self.shared.lose.lock().unwrap() = (1, then);
    }

    /// Answers that are still to be lost.
    pub(crate) fn to_lose(&self) -> usize {
        self.shared.lose.lock().unwrap().0
    }

    /// Most connections that were open at once.
    pub(crate) fn most(&self) -> usize {
        self.shared.most.load(Ordering::SeqCst)
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Connections that there were.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

/// A connection, counted.
struct Counted(Arc<Shared>);

impl Counted {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        let open = shared.open.fetch_add(1, Ordering::SeqCst) + 1;
        shared.most.fetch_max(open, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn carry(client: TcpStream, shared: Arc<Shared>) {
    let _counted = Counted::new(&shared);
    let way = shared.way.subscribe();
    let now = || *way.borrow();
    let mut closing = shared.way.subscribe();
    let (mut from_client, mut to_client) = client.into_split();
    let mut told = vec![0_u8; 16 * 1024];
    let server = match now() {
        Way::Closed => return,
        Way::Silent => {
            // Until the client gives up.
            let give_up =
                async { while from_client.read(&mut told).await.is_ok_and(|got| got > 0) {} };
            tokio::select! {
                () = give_up => {}
                _ = closing.wait_for(|way| *way == Way::Closed) => {}
            }
            return;
        }
        Way::Open => shared.server.lock().unwrap().clone(),
    };
    let Ok(server) = TcpStream::connect(&server).await else {
        return;
    };
    let (mut from_server, mut to_server) = server.into_split();
    // How often the client took the word: first its hello, then the end of the handshake with the
    // first request, then one request after another. What the server says from the second time on
    // is an answer.
    let words = AtomicUsize::new(0);
    let clients_turn = AtomicUsize::new(0);
    let up = async {
        while let Ok(got) = from_client.read(&mut told).await
            && got > 0
        {
            if clients_turn.swap(1, Ordering::SeqCst) == 0 {
                words.fetch_add(1, Ordering::SeqCst);
            }
            if now() == Way::Open && to_server.write_all(&told[..got]).await.is_err() {
                break;
            }
        }
    };
    let down = async {
        let mut heard = vec![0_u8; 16 * 1024];
        while let Ok(got) = from_server.read(&mut heard).await
            && got > 0
        {
            clients_turn.store(0, Ordering::SeqCst);
            if words.load(Ordering::SeqCst) >= 2 && loses(&shared) {
                break;
            }
            if now() == Way::Open && to_client.write_all(&heard[..got]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
        _ = closing.wait_for(|way| *way == Way::Closed) => {}
    }
}

fn loses(shared: &Shared) -> bool {
    let mut lose = shared.lose.lock().unwrap();
    let (left, then) = *lose;
    if left == 0 {
        return false;
    }
    lose.0 = left - 1;
    if left == 1 {
        shared.way.send_replace(then);
    }
    true
}
