//! More than can be served: floods of requests, of connections, of silence.

use std::time::{Duration, Instant};

use ekm::api::{ConfirmRequest, CreateAnswer};
use ekm::audit::{Event, Outcome};
use ekm::problem::EkmCode;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;
use uuid::Uuid;

use crate::door::{
    GET_HEALTH, House, HouseDrive, PATIENCE, Serving, closed, hear, open, post, say,
};
use crate::metrics::{DOOR, address, scrape};

/// Exchanges under way at once at the embedded token: four for each of its four workers.
const PLACES: usize = 16;

/// How soon "at once" is where the machine is loaded; who is not told at once waits for a minute.
const AT_ONCE: Duration = Duration::from_secs(15);

/// The bridge's process of the only token.
fn bridge(house: &House) -> Pid {
    let status: serde_json::Value =
        serde_json::from_str(&house.done(&["--json", "token", "status"])).unwrap();
    let pid = status[0]["bridges"][0].as_i64().unwrap();
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

/// A token that does nothing until this is dropped: its process is stopped.
struct Stopped(Pid);

impl Stopped {
    fn new(house: &House) -> Self {
        let pid = bridge(house);
        kill_process(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

fn create(drive: &HouseDrive) -> Vec<u8> {
    post(
        "/v1/keys/create",
        &serde_json::to_vec(&drive.create()).unwrap(),
    )
}

/// Sends a create on a connection of its own.
async fn ask(serving: &Serving, drive: &HouseDrive) -> TlsStream<TcpStream> {
    let mut stream = open(&serving.address, &drive.identity).await.unwrap();
    stream.write_all(&create(drive)).await.unwrap();
    stream
}

/// Asks in vain, and is told so at once.
async fn assert_refused(serving: &Serving, drive: &HouseDrive) {
    let mut stream = ask(serving, drive).await;
    let heard = tokio::time::timeout(AT_ONCE, hear(&mut stream)).await;
    let heard = heard.expect("it waits instead of being refused");
    let heard = heard.expect("the server closed instead of answering");
    assert_eq!(heard.status, 503);
    assert!(heard.head.contains("retry-after: "), "{}", heard.head);
    let problem = heard.problem();
    assert_eq!(problem.code, EkmCode::EE0F);
    assert!(problem.detail.contains("is busy"), "{problem}");
}

/// Waits until so many requests are under way at the only token, and so many wait.
async fn gate_has(metrics: &str, under_way: usize, waiting: usize) {
    let wanted = [under_way, waiting].map(|count| Some(count.to_string()));
    let start = Instant::now();
    loop {
        let page = scrape(metrics).await;
        let level = |name: &str| page.get(name).map(ToString::to_string);
        let levels = [
            level(r#"ekm_admission_under_way{gate="main"}"#),
            level(r#"ekm_admission_waiting{gate="main"}"#),
        ];
        if levels == wanted {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{levels:?}, not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until so many connections are open at the drives' door.
async fn connections_are(metrics: &str, wanted: f64) {
    let start = Instant::now();
    loop {
        let open = scrape(metrics).await["ekm_connections"];
        if open.total_cmp(&wanted).is_eq() {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{open} are open, not {wanted}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_bound_the_answer_is_busy_at_once_and_nothing_taken_is_lost() {
    const WAITING: usize = 6;
    let house = House::new(
        &format!("max_waiting = {WAITING}\nmax_waiting_per_peer = {WAITING}"),
        DOOR,
    );
    let drive = house.drive(1);
    let serving = house.serve().await;
    let metrics = address(&serving);
    // Something to confirm later, without a token.
    let mut client = house.client_of(&serving, &drive.identity);
    let before = drive.create();
    let answer = client.create(&before).await.unwrap();

    let stopped = Stopped::new(&house);
    let mut taken = Vec::new();
    // One after the other, so that the last ones are those that wait.
    for count in 1..=PLACES + WAITING {
        taken.push(ask(&serving, &drive).await);
        gate_has(&metrics, count.min(PLACES), count.saturating_sub(PLACES)).await;
    }
    for _ in 0..3 {
        assert_refused(&serving, &drive).await;
    }

    // What needs no token is not held up.
    let confirm = ConfirmRequest {
        request_id: before.request_id,
        dki: answer.dki,
        serial: drive.serial.clone(),
        stored: true,
    };
    let asked = Instant::now();
    client.confirm(&confirm).await.unwrap();
    client.challenge().await.unwrap();
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());

    // A client that goes leaves its room to another.
    drop(taken.pop());
    gate_has(&metrics, PLACES, WAITING - 1).await;
    taken.push(ask(&serving, &drive).await);
    gate_has(&metrics, PLACES, WAITING).await;

    drop(stopped);
    let mut keys = std::collections::HashSet::new();
    for mut stream in taken {
        let heard = hear(&mut stream).await.expect("a request is answered");
        assert_eq!(heard.status, 200, "{}", heard.head);
        let answer: CreateAnswer = serde_json::from_slice(&heard.body).unwrap();
        keys.insert(answer.dki.to_string());
    }
    assert_eq!(keys.len(), PLACES + WAITING);
    serving.stop();
    house.done(&["audit", "verify"]);
}

/// How a request ended, by the records.
fn ended(house: &House, request: Uuid) -> Event {
    let request = Some(request.to_string());
    let records = ekm::audit::read(&house.at("audit")).unwrap();
    let mut events = records.map(|record| record.unwrap().event);
    events
        .find(|event| event.request == request && event.outcome != Outcome::Intent)
        .expect("a record of the request's end")
}

/// The client was told that the request had taken long, by the door, and the record said that the
/// client had gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_turn_does_not_come_is_told_so_and_has_that_on_record() {
    let house = House::new("request_seconds = 15\nhandshake_seconds = 60", DOOR);
    let drive = house.drive(1);
    let serving = house.serve().await;
    let metrics = address(&serving);
    let mut streams = Vec::new();
    for _ in 0..=PLACES {
        streams.push(open(&serving.address, &drive.identity).await.unwrap());
    }
    let mut late = streams.pop().unwrap();
    let stopped = Stopped::new(&house);

    // Its time begins with its head, so it is over while the others still have their places.
    let request = drive.create();
    let body = serde_json::to_vec(&request).unwrap();
    let head = format!(
        "POST /v1/keys/create HTTP/1.1\r\nhost: ekm\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    late.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(hear(&mut late).await.unwrap().status, 100);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut taken = Vec::new();
    for mut stream in streams {
        let request = drive.create();
        let body = serde_json::to_vec(&request).unwrap();
        let said = post("/v1/keys/create", &body);
        stream.write_all(&said).await.unwrap();
        taken.push((stream, request.request_id));
    }
    gate_has(&metrics, PLACES, 0).await;
    late.write_all(&body).await.unwrap();

    let heard = hear(&mut late).await.expect("an answer");
    assert_eq!(heard.status, 503, "{}", heard.head);
    assert!(heard.head.contains("retry-after: "), "{}", heard.head);
    let problem = heard.problem();
    let said = "the key service is busy: the request's turn at token main did not come";
    assert!(problem.detail.contains(said), "{problem}");
    assert_eq!(problem.request_id, Some(request.request_id.to_string()));
    let record = ended(&house, request.request_id);
    assert_eq!(record.outcome, Outcome::Failure);
    assert_eq!(record.detail, Some(problem.detail));

    // Nor do those that have a place wait for their token longer than their clients do.
    for (mut stream, request) in taken {
        let problem = hear(&mut stream).await.expect("an answer").problem();
        let said = "token main did not answer within ";
        assert!(problem.detail.contains(said), "{problem}");
        let record = ended(&house, request);
        assert_eq!(record.outcome, Outcome::Failure);
        assert_eq!(record.detail, Some(problem.detail));
    }
    drop(stopped);
    serving.stop();
    house.done(&["audit", "verify"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_got_says_so_on_record() {
    let house = House::new("", DOOR);
    let drive = house.drive(1);
    let serving = house.serve().await;
    let metrics = address(&serving);
    // That of whoever looked whether the server is ready.
    connections_are(&metrics, 0.0).await;
    let stopped = Stopped::new(&house);
    let request = drive.create();
    let body = serde_json::to_vec(&request).unwrap();
    let mut stream = open(&serving.address, &drive.identity).await.unwrap();
    let said = post("/v1/keys/create", &body);
    stream.write_all(&said).await.unwrap();
    gate_has(&metrics, 1, 0).await;
    connections_are(&metrics, 1.0).await;
    drop(stream);
    connections_are(&metrics, 0.0).await;
    drop(stopped);
    gate_has(&metrics, 0, 0).await;
    // Its answer is on record by the time that the server has ended.
    serving.stop();
    let record = ended(&house, request.request_id);
    assert_eq!(record.outcome, Outcome::Success, "{record:?}");
    let detail = record.detail.unwrap_or_default();
    assert!(detail.contains("the client had gone"), "{detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_floods_leaves_another_served_soon() {
    const FLOOD: usize = 500;
    // The first of them say nothing until the last one is open.
    let house = House::new("handshake_seconds = 60", "");
    let (flood, single) = (house.drive(1), house.drive(2));
    let serving = house.serve().await;
    let mut open_before = Vec::new();
    for _ in 0..FLOOD {
        open_before.push(open(&serving.address, &flood.identity).await.unwrap());
    }
    let mut client = house.client_of(&serving, &single.identity);
    client.create(&single.create()).await.unwrap();

    let start = Instant::now();
    let mut answers = JoinSet::new();
    for mut stream in open_before {
        let request = create(&flood);
        answers.spawn(async move {
            stream.write_all(&request).await.unwrap();
            hear(&mut stream).await.expect("an answer").status
        });
    }
    let flooding = tokio::spawn(async move {
        let statuses = answers.join_all().await;
        (statuses, start.elapsed())
    });
    let mut single_times = Vec::new();
    while !flooding.is_finished() {
        let asked = Instant::now();
        client.create(&single.create()).await.unwrap();
        single_times.push(asked.elapsed());
    }
    let (statuses, flood_time) = flooding.await.unwrap();
    assert!(
        statuses.iter().all(|status| *status == 200),
        "a flood within the bounds is refused nothing: {statuses:?}"
    );
    single_times.sort();
    let longest = single_times.last().copied().unwrap();
    eprintln!(
        "{FLOOD} requests of one peer took {flood_time:?}; meanwhile {} single ones of another took {:?} at the median and {longest:?} at most",
        single_times.len(),
        single_times[single_times.len() / 2],
    );
    // Behind the flood in one queue the first of them or the second would take all its time. How
    // many there were says so whether the machine is fast or slow.
    assert!(single_times.len() > 5, "{single_times:?} in {flood_time:?}");
    serving.stop();
}

/// From another address than everybody else: before their handshakes all connections of one address
/// give way to each other, and how long a handshake takes is the machine's affair.
async fn connect_from_elsewhere(address: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    socket.connect(address.parse().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_however_renewed_keep_nobody_out() {
    let house = House::new("max_connections = 20\nmax_connections_per_peer = 20", "");
    let drive = house.drive(1);
    let serving = house.serve().await;
    let address = serving.address.clone();
    let silence = tokio::spawn(async move {
        let mut silent = std::collections::VecDeque::new();
        loop {
            silent.push_back(connect_from_elsewhere(&address).await);
            if silent.len() > 100 {
                silent.pop_front();
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    serving.says("too many are open", 1);
    // Each on a new connection, so each has to get through the crowd.
    for _ in 0..20 {
        let heard = say(&serving, &drive.identity, &create(&drive)).await;
        assert_eq!(heard.expect("it was kept out").status, 200);
    }
    silence.abort();
    serving.stop();
}

async fn healthy(stream: &mut TlsStream<TcpStream>) {
    stream.write_all(GET_HEALTH).await.unwrap();
    assert_eq!(hear(stream).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_past_its_connections_loses_the_oldest_idle_one() {
    let house = House::new("max_connections_per_peer = 3", "");
    let (one, other) = (house.drive(1), house.drive(2));
    let serving = house.serve().await;
    let mut others = open(&serving.address, &other.identity).await.unwrap();
    healthy(&mut others).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = open(&serving.address, &one.identity).await.unwrap();
        healthy(&mut stream).await;
        held.push(stream);
    }
    assert!(closed(&mut held.remove(0)).await);
    for stream in &mut held {
        healthy(stream).await;
    }
    healthy(&mut others).await;
    serving.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_waits_for_its_answer_gives_way_to_nobody() {
    let house = House::new("max_connections = 4", "");
    let drive = house.drive(1);
    let serving = house.serve().await;
    let stopped = Stopped::new(&house);
    let mut waiting = Vec::new();
    // The last ones find no room: all others are at work.
    let start = Instant::now();
    let mut refused = 0;
    while refused < 3 {
        assert!(start.elapsed() < PATIENCE, "everybody found room");
        let Ok(mut stream) = open(&serving.address, &drive.identity).await else {
            refused += 1;
            continue;
        };
        let _ = stream.write_all(&create(&drive)).await;
        match tokio::time::timeout(Duration::from_millis(500), hear(&mut stream)).await {
            Ok(heard) => assert!(heard.is_none(), "{heard:?}"),
            Err(_) => waiting.push(stream),
        }
    }
    serving.says("a new one was refused", 1);
    drop(stopped);
    let mut answered = 0;
    for mut stream in waiting {
        if let Some(heard) = hear(&mut stream).await {
            assert_eq!(heard.status, 200, "{}", heard.head);
            answered += 1;
        }
    }
    assert_eq!(answered, 4);
    serving.stop();
    house.done(&["audit", "verify"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_descriptors_is_raised_or_respected() {
    let house = House::new("", "");
    let drive = house.drive(1);
    let limited = |limits: &str| {
        let mut command = std::process::Command::new("sh");
        let serve = format!("ulimit {limits}; exec \"$0\" serve");
        command
            .args(["-c", &serve, crate::support::EKM])
            .current_dir(house.at("."));
        command
    };
    let crowd = async |serving: &Serving| {
        let mut crowd = Vec::new();
        for _ in 0..300 {
            crowd.push(TcpStream::connect(&serving.address).await.unwrap());
        }
        let heard = say(serving, &drive.identity, GET_HEALTH).await;
        assert_eq!(heard.expect("an answer").status, 200);
    };
    // A soft limit is raised: nothing gives way.
    let serving = house.serve_command(limited("-Sn 128")).await;
    crowd(&serving).await;
    assert!(
        !serving.log().contains("too many are open"),
        "{}",
        serving.log()
    );
    assert!(
        !serving.log().contains("cannot accept"),
        "{}",
        serving.log()
    );
    serving.stop();
    // A hard one is kept, and told of.
    let serving = house.serve_command(limited("-n 320")).await;
    serving.says("too few file descriptors", 1);
    crowd(&serving).await;
    assert!(
        !serving.log().contains("cannot accept"),
        "{}",
        serving.log()
    );
    serving.stop();
}
