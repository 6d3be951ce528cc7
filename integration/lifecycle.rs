//! A KEK's years: in use, rotated, retired, its volumes rekeyed, revoked, destroyed.

mod asked;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ekm::admin::{
    Command, Impact, RekeyAct, RekeySeen, RekeyWanted, Reply, RotateWanted, ScheduleAct,
    VolumeFilter,
};
use ekm::api::{
    Base64, ConfirmRequest, CreateAnswer, CreateRequest, DriveInRequest, ResolveAnswer,
    ResolveRequest,
};
use ekm::client::{ClientError, KeyClient};
use ekm::key::{DataKeyId, KeyLabel};
use ekm::keystore::Custody;
use ekm::problem::{EkmCode, Problem};
use ekm::server::{OperatorError, ask};
use ekm::store::{
    Defaults, EedkState, Every, KekState, MoveState, OnMedium, RekeyState, VolumesFound,
};
use secrecy::ExposeSecret as _;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::site::Site;
use crate::support::{Hsm, Kind, TestDrive, drive};

/// A cartridge: what is on it, and the data key that it is under.
struct Tape {
    volser: String,
    dki: DataKeyId,
    eedks: Vec<Base64>,
    key: [u8; 32],
}

/// A site with an embedded token, KEKs and a drive.
struct Stage {
    site: Site,
    drive: TestDrive,
    client: KeyClient,
    _hsm: Hsm,
}

fn label(text: &str) -> KeyLabel {
    text.parse().unwrap()
}

impl Stage {
    async fn new(keks: &[&str]) -> Self {
        let hsm = Hsm::new(Kind::Embedded, "lifecycle").await;
        let policy = "[[policy.peers]]\npeer = \"drive:*\"\ncreate_keks = [\"*\"]\n";
        let site = Site::start(&[&hsm], policy).await;
        for kek in keks {
            site.generate(kek).await;
        }
        let drive = drive(site.directory.path(), 1, Kind::Embedded.form());
        site.enrol(&drive).await;
        let client = site.client(&drive.peer);
        Self {
            site,
            drive,
            client,
            _hsm: hsm,
        }
    }

    /// What the server says to an operator, or why not.
    async fn ask(&self, command: Command) -> Result<Reply, Problem> {
        let socket = self.site.directory.path().join("state/ekm.sock");
        match ask(&socket, &command).await {
            Ok(reply) => Ok(reply),
            Err(OperatorError::Refused(problem)) => Err(problem),
            Err(error) => panic!("{error}"),
        }
    }

    async fn turn(&self, kek: &str, to: KekState) -> Result<Reply, Problem> {
        let turn = Command::KekTurn {
            label: label(kek),
            to,
            reason: Some("a test".to_owned()),
        };
        self.ask(turn).await
    }

    async fn delete(&self, kek: &str) -> Result<Reply, Problem> {
        let delete = Command::KekDelete {
            label: label(kek),
            tapes_elsewhere: false,
        };
        self.ask(delete).await
    }

    async fn impact(&self, kek: &str) -> Impact {
        let impact = Command::KekImpact {
            label: label(kek),
            limit: 5,
        };
        match self.ask(impact).await.unwrap() {
            Reply::Impact(impact) => *impact,
            other => panic!("{other:?}"),
        }
    }

    async fn find(&self, filter: VolumeFilter) -> VolumesFound {
        let limit = 10_000;
        match self
            .ask(Command::VolumeFind { filter, limit })
            .await
            .unwrap()
        {
            Reply::Found(found) => found,
            other => panic!("{other:?}"),
        }
    }

    async fn rekey(&self, act: RekeyAct) -> RekeySeen {
        match self.ask(Command::VolumeRekey(act)).await.unwrap() {
            Reply::Rekeys(mut jobs) => jobs.remove(0),
            other => panic!("{other:?}"),
        }
    }

    fn shown(&self) -> DriveInRequest {
        DriveInRequest {
            serial: self.drive.row.serial.clone(),
            public_key: Some(Base64(self.drive.soft.public_key_spki().to_vec())),
            stores_eedks: false,
            session_key: None,
        }
    }

    async fn try_create(&mut self, volser: &str, kek: &str) -> Result<CreateAnswer, ClientError> {
        let request = CreateRequest {
            job: None,
            request_id: Uuid::new_v4(),
            drive: self.shown(),
            volser: volser.parse().unwrap(),
            kek1: (!kek.is_empty()).then(|| kek.parse().unwrap()),
            kek2: None,
        };
        let answer = self.client.create(&request).await?;
        self.confirm(request.request_id, answer.dki).await;
        Ok(answer)
    }

    async fn create(&mut self, volser: &str, kek: &str) -> Tape {
        let answer = self.try_create(volser, kek).await.unwrap();
        Tape {
            volser: volser.to_owned(),
            dki: answer.dki,
            eedks: answer.eedks.into_iter().map(|eedk| eedk.eedk).collect(),
            key: *self
                .drive
                .soft
                .unwrap_sedk(&answer.sedk)
                .unwrap()
                .expose_secret(),
        }
    }

    async fn confirm(&mut self, request_id: Uuid, dki: DataKeyId) {
        let confirm = ConfirmRequest {
            request_id,
            serial: self.drive.row.serial.clone(),
            dki,
            stored: true,
        };
        let answer = self.client.confirm(&confirm).await.unwrap();
        assert_eq!(answer.state, EedkState::Confirmed);
    }

    async fn try_resolve(&mut self, tape: &Tape) -> Result<ResolveAnswer, ClientError> {
        let request = ResolveRequest {
            request_id: Uuid::new_v4(),
            drive: self.shown(),
            volser: Some(tape.volser.parse().unwrap()),
            eedks: tape.eedks.clone(),
            dki: None,
            append: false,
        };
        self.client.resolve(&request).await
    }

    /// The key of a cartridge, by what is on it; it must be the one it was written under.
    async fn resolve(&mut self, tape: &Tape) -> ResolveAnswer {
        let answer = self.try_resolve(tape).await.unwrap();
        let key = self.drive.soft.unwrap_sedk(&answer.sedk).unwrap();
        assert!(
            *key.expose_secret() == tape.key,
            "{} has another key",
            tape.volser
        );
        answer
    }

    /// Mounts a cartridge: what is newer is stored on it and confirmed.
    async fn mount(&mut self, tape: &mut Tape) {
        let answer = self.resolve(tape).await;
        if let Some(newer) = answer.newer {
            tape.eedks = newer.eedks.into_iter().map(|eedk| eedk.eedk).collect();
            self.confirm(newer.request_id, tape.dki).await;
        }
    }
}

fn refused(outcome: Result<impl std::fmt::Debug, ClientError>) -> Problem {
    match outcome {
        Err(ClientError::Refused(problem)) => problem,
        other => panic!("not refused: {other:?}"),
    }
}

fn from(kek: &str, to: &str) -> RekeyWanted {
    RekeyWanted {
        volsers: Vec::new(),
        filter: VolumeFilter {
            kek: Some(label(kek)),
            ..VolumeFilter::default()
        },
        all_of: true,
        kek1: to.parse().unwrap(),
        kek2: None,
        rate: None,
    }
}

async fn ended(stage: &Stage, id: Uuid) -> RekeySeen {
    let begin = Instant::now();
    loop {
        let seen = stage.rekey(RekeyAct::Status(Some(id))).await;
        if seen.job.state != RekeyState::Running {
            return seen;
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "{seen:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retired_kek_reads_and_a_revoked_one_does_neither_once_nothing_needs_it() {
    let mut stage = Stage::new(&["OLD", "NEW"]).await;
    let mut tape = stage.create("VOL001", "OLD").await;
    let lost = stage.create("VOL002", "OLD").await;
    let problem = stage.turn("OLD", KekState::Revoked).await.unwrap_err();
    assert!(problem.detail.contains("ekm kek retire OLD"), "{problem}");
    let problem = stage.delete("OLD").await.unwrap_err();
    assert!(problem.detail.contains("ekm kek retire OLD"), "{problem}");

    stage.turn("OLD", KekState::Retired).await.unwrap();
    let problem = refused(stage.try_create("VOL003", "OLD").await);
    assert_eq!(problem.code, EkmCode::EE31);
    assert!(problem.detail.contains("retired for writing"), "{problem}");
    stage.resolve(&tape).await;
    for outcome in [
        stage.turn("OLD", KekState::Revoked).await,
        stage.delete("OLD").await,
    ] {
        let problem = outcome.unwrap_err();
        assert_eq!(problem.code, EkmCode::EE30);
        assert!(problem.detail.contains("2 volumes"), "{problem}");
    }
    let impact = stage.impact("old").await;
    assert_eq!((impact.volumes, impact.only, impact.on_medium), (2, 2, 2));

    // One is rekeyed and mounted, the other given up.
    let job = stage.rekey(RekeyAct::Start(Box::new(RekeyWanted {
        volsers: vec!["VOL001".parse().unwrap()],
        filter: VolumeFilter::default(),
        ..from("OLD", "NEW")
    })));
    let seen = ended(&stage, job.await.job.id).await;
    assert_eq!((seen.job.state, seen.job.count.done), (RekeyState::Done, 1));
    let impact = stage.impact("OLD").await;
    assert_eq!((impact.volumes, impact.only, impact.in_catalog), (2, 1, 1));
    stage.mount(&mut tape).await;
    let answer = stage.resolve(&tape).await;
    assert!(answer.newer.is_none());
    assert_eq!(answer.eedks[0].label, Some(label("NEW")));
    let problem = stage.turn("OLD", KekState::Revoked).await.unwrap_err();
    assert!(problem.detail.contains("VOL002"), "{problem}");
    let given_up = stage.ask(Command::VolumeWriteOff {
        volser: "VOL002".parse().unwrap(),
        reason: "burnt".to_owned(),
    });
    given_up.await.unwrap();

    stage.turn("OLD", KekState::Revoked).await.unwrap();
    let problem = refused(stage.try_resolve(&lost).await);
    assert_eq!(problem.code, EkmCode::EE30);
    assert!(problem.detail.contains("revoked"), "{problem}");
    let problem = refused(stage.try_create("VOL003", "OLD").await);
    assert_eq!(problem.code, EkmCode::EE30);
    stage.turn("OLD", KekState::Retired).await.unwrap();
    stage.resolve(&lost).await;

    stage.delete("OLD").await.unwrap();
    let Reply::Keks(keks) = stage.ask(Command::KekList).await.unwrap() else {
        panic!("no list of KEKs");
    };
    assert!(keks.iter().all(|kek| !kek.label.same_as(&label("OLD"))));
    assert!(stage.try_resolve(&lost).await.is_err());
    stage.resolve(&tape).await;
    // Its label stays taken.
    let again = Command::KekGenerate {
        label: label("OLD"),
        bits: 2048,
        token: None,
        custody: Custody::Token,
        sign: false,
    };
    assert!(stage.ask(again).await.is_err());
    let list = stage.site.ekm(&["kek", "list"]);
    assert!(list.contains("active") && !list.contains("OLD"), "{list}");
    stage.site.stop();
}

/// `kill -9` of the server at random moments of a rekey.
async fn killed(volumes: usize, kills: usize) {
    let mut stage = Stage::new(&["OLD", "OTHER", "NEW"]).await;
    let begin = Instant::now();
    let mut tapes = Vec::new();
    for number in 0..volumes {
        tapes.push(stage.create(&format!("V{number:05}"), "OLD").await);
    }
    let made = begin.elapsed();
    stage.turn("OLD", KekState::Retired).await.unwrap();
    // So that a few volumes are not done before the first kill.
    let wanted = RekeyWanted {
        rate: (volumes < 1000).then_some(25),
        ..from("OLD", "NEW")
    };
    let asked = stage.rekey(RekeyAct::Start(Box::new(wanted)));
    let id = asked.await.job.id;
    let begin = Instant::now();
    let mut random = [0_u8; 64];
    aws_lc_rs::rand::fill(&mut random).unwrap();
    let mut killed = 0;
    for byte in random.iter().take(kills) {
        let pause = 200 + u64::from(*byte) * if volumes < 1000 { 3 } else { 20 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let seen = stage.rekey(RekeyAct::Status(Some(id))).await;
        if seen.job.state != RekeyState::Running {
            break;
        }
        stage.site.kill_and_restart();
        killed += 1;
        // A cartridge with its old set is read in the midst of it.
        stage.client = stage.site.client(&stage.drive.peer);
        let tape = &tapes[usize::from(*byte) % tapes.len()];
        let answer = stage.try_resolve(tape).await.unwrap();
        let key = stage.drive.soft.unwrap_sedk(&answer.sedk).unwrap();
        assert!(*key.expose_secret() == tape.key);
    }
    let seen = ended(&stage, id).await;
    println!(
        "{volumes} volumes made in {made:?}, rekeyed in {:?} with {killed} kills",
        begin.elapsed()
    );
    assert!(
        killed > 0,
        "the rekey was over before a kill; take more volumes"
    );
    assert_eq!(seen.job.state, RekeyState::Done, "{seen:?}");
    let count = seen.job.count;
    let all = u64::try_from(volumes).unwrap();
    assert_eq!((count.done + count.skipped, count.failed), (all, 0));

    // The catalog is under the new KEK, the cartridges under the old one, each once.
    let under = async |kek: &str| {
        let filter = VolumeFilter {
            kek: Some(label(kek)),
            ..VolumeFilter::default()
        };
        let found = stage.find(filter).await.volumes;
        assert_eq!(found.len(), volumes, "under {kek}");
        let each = found.into_iter().map(|set| (set.key.dki, set));
        each.collect::<BTreeMap<_, _>>()
    };
    let (old, new) = (under("OLD").await, under("NEW").await);
    for tape in &tapes {
        let (old, new) = (&old[&tape.dki], &new[&tape.dki]);
        assert_eq!((old.key.generation, new.key.generation), (1, 2));
        assert_eq!((old.medium, old.catalog), (OnMedium::Yes, false));
        assert_eq!((new.medium, new.catalog), (OnMedium::No, true));
        assert_eq!(new.key.eedks.len(), 1);
        assert!(new.key.eedks[0].proved);
        assert!(new.key.eedks[0].kek_label.same_as(&label("NEW")));
    }
    let impact = stage.impact("OLD").await;
    assert_eq!(
        (impact.volumes, impact.in_catalog, impact.only),
        (all, 0, 0)
    );
    let problem = stage.delete("OLD").await.unwrap_err();
    assert_eq!(problem.code, EkmCode::EE30, "{problem}");

    // All are mounted but one, which still needs the old KEK.
    for tape in &mut tapes[1..] {
        stage.mount(tape).await;
    }
    assert_eq!(stage.impact("OLD").await.volumes, 1);
    let problem = stage.delete("OLD").await.unwrap_err();
    assert!(problem.detail.contains("V00000"), "{problem}");
    stage.mount(&mut tapes[0]).await;
    stage.delete("OLD").await.unwrap();
    for tape in tapes.iter().step_by(7) {
        let answer = stage.resolve(tape).await;
        assert!(answer.newer.is_none());
    }
    stage.site.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rekey_that_is_killed_and_goes_on_leaves_no_volume_without_its_key() {
    killed(250, 3).await;
}

/// The same with all that was asked for; minutes.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: cargo test --test integration -- --ignored ten_thousand_volumes"]
async fn ten_thousand_volumes_are_rekeyed_by_a_server_that_is_killed() {
    killed(10_000, 16).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rekey_by_query_replaces_one_eedk_and_says_first_how_many() {
    let mut stage = Stage::new(&["OLD", "OTHER", "NEW"]).await;
    stage
        .site
        .execute(&Command::KekDefault {
            set: Some(Defaults {
                kek1: Some("OTHER:hash".parse().unwrap()),
                kek2: Some("OLD".parse().unwrap()),
            }),
            anyway: false,
        })
        .await;
    let tape = stage.create("VOL001", "").await;
    let only = RekeyWanted {
        all_of: false,
        ..from("OLD", "NEW")
    };
    let would = stage.ask(Command::VolumeRekey(RekeyAct::Start(Box::new(only))));
    assert!(matches!(
        would.await.unwrap(),
        Reply::RekeyWould { rows: 1, all: true }
    ));
    let job = stage.rekey(RekeyAct::Start(Box::new(from("OLD", "NEW"))));
    let seen = ended(&stage, job.await.job.id).await;
    assert_eq!((seen.job.count.done, seen.job.count.failed), (1, 0));
    let found = stage.find(VolumeFilter::default()).await;
    let keks: Vec<String> = found.volumes[0]
        .key
        .eedks
        .iter()
        .map(|stored| format!("{}:{}", stored.kek_label, stored.eedk.kek().encoding()))
        .collect();
    assert_eq!(keks, ["OTHER:hash", "NEW:label"]);
    // Again there is nothing to do.
    let job = stage.rekey(RekeyAct::Start(Box::new(from("OLD", "NEW"))));
    let seen = ended(&stage, job.await.job.id).await;
    assert_eq!((seen.job.count.done, seen.job.count.failed), (0, 0));
    // To a KEK that is not written under there is no rekey.
    stage.turn("NEW", KekState::Retired).await.unwrap();
    let start = RekeyAct::Start(Box::new(from("OTHER", "NEW")));
    let problem = stage.ask(Command::VolumeRekey(start)).await.unwrap_err();
    assert!(problem.detail.contains("retired"), "{problem}");
    let shown = stage.site.ekm(&["volume", "show", &tape.volser]);
    assert!(
        shown.contains("medium") && shown.contains("catalog"),
        "{shown}"
    );
    let found = stage
        .site
        .ekm(&["volume", "find", "--kek", "NEW", "--limit", "1"]);
    assert!(found.contains("VOL001"), "{found}");
    stage.site.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kek_is_rotated_at_once_at_a_time_and_by_the_calendar() {
    let mut stage = Stage::new(&["TAPE1"]).await;
    stage
        .site
        .execute(&Command::KekDefault {
            set: Some(Defaults {
                kek1: Some("TAPE1".parse().unwrap()),
                kek2: None,
            }),
            anyway: false,
        })
        .await;
    let rotate = |label: &str, at: Option<OffsetDateTime>| {
        Command::KekRotate(RotateWanted {
            label: label.parse().unwrap(),
            new_label: None,
            at,
            token: None,
        })
    };
    let Reply::Rotated(done) = stage.ask(rotate("TAPE1", None)).await.unwrap() else {
        panic!("not rotated");
    };
    assert_eq!(done.state, MoveState::Done);
    assert_eq!(done.successor, label("TAPE2"));
    assert!(
        refused(stage.try_create("VOL001", "TAPE1").await)
            .detail
            .contains("retired")
    );
    let answer = stage.try_create("VOL001", "").await.unwrap();
    assert_eq!(answer.eedks[0].label, Some(label("TAPE2")));

    // At a time, over a server's death.
    let at = OffsetDateTime::now_utc() + Duration::from_secs(15);
    let Reply::Rotated(planned) = stage.ask(rotate("TAPE2", Some(at))).await.unwrap() else {
        panic!("not planned");
    };
    assert_eq!(planned.state, MoveState::Planned);
    let answer = stage.try_create("VOL002", "").await.unwrap();
    assert_eq!(answer.eedks[0].label, Some(label("TAPE2")));
    stage.site.kill_and_restart();
    stage.client = stage.site.client(&stage.drive.peer);
    default_becomes(&stage, "TAPE3").await;

    // By the calendar.
    stage
        .ask(Command::KekSchedule(ScheduleAct::Set {
            label: label("TAPE3"),
            every: Every::Month,
            first: Some(OffsetDateTime::now_utc()),
        }))
        .await
        .unwrap();
    default_becomes(&stage, "TAPE4").await;
    let begin = Instant::now();
    loop {
        let list = Command::KekSchedule(ScheduleAct::List);
        let Reply::Rollovers(rollovers) = stage.ask(list).await.unwrap() else {
            panic!("no schedules");
        };
        let [next] = rollovers.schedules.as_slice() else {
            panic!("{rollovers:?}");
        };
        if next.label == label("TAPE4") {
            assert!(next.due > OffsetDateTime::now_utc());
            assert_eq!((next.due.day(), next.due.hour()), (1, 0));
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "{rollovers:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let answer = stage.try_create("VOL003", "").await.unwrap();
    assert_eq!(answer.eedks[0].label, Some(label("TAPE4")));
    let list = stage.site.ekm(&["kek", "schedule", "list"]);
    assert!(
        list.contains("every month") && list.contains("done"),
        "{list}"
    );
    stage.site.ekm(&["kek", "schedule", "remove", "TAPE4"]);

    // A rotation that is planned can be taken back, and TAPE4 stays in use.
    let at = OffsetDateTime::now_utc() + Duration::from_secs(15);
    stage.ask(rotate("TAPE4", Some(at))).await.unwrap();
    stage.site.ekm(&["kek", "schedule", "remove", "TAPE4"]);
    let list = stage.site.ekm(&["kek", "schedule", "list"]);
    assert!(list.contains("taken back"), "{list}");
    let past = at + Duration::from_secs(3) - OffsetDateTime::now_utc();
    tokio::time::sleep(past.try_into().unwrap_or_default()).await;
    let answer = stage.try_create("VOL004", "").await.unwrap();
    assert_eq!(answer.eedks[0].label, Some(label("TAPE4")));
    stage.site.stop();
}

async fn default_becomes(stage: &Stage, kek: &str) {
    let begin = Instant::now();
    loop {
        let show = Command::KekDefault {
            set: None,
            anyway: false,
        };
        let Reply::Defaults(defaults) = stage.ask(show).await.unwrap() else {
            panic!("no defaults");
        };
        if defaults.kek1 == Some(kek.parse().unwrap()) {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "{defaults:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_the_history_is_said_so() {
    let stage = Stage::new(&["OLD", "NEW"]).await;
    assert!(stage.find(VolumeFilter::default()).await.volumes.is_empty());
    let unknown = stage.ask(Command::VolumeWriteOff {
        volser: "VOL009".parse().unwrap(),
        reason: "burnt".to_owned(),
    });
    assert_eq!(unknown.await.unwrap_err().code, EkmCode::EE32);
    let unknown = stage.ask(Command::KekImpact {
        label: label("NOSUCH"),
        limit: 1,
    });
    assert_eq!(unknown.await.unwrap_err().code, EkmCode::EE31);
    stage.site.stop();
}

/// By the proxy's own way to the servers, which knows who gave a create's EEDKs, and a rekey's.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_confirms_what_a_rekey_made() {
    use ekm::proxy::keying::Keys as _;
    use ekm::proxy::{KeyServer, KeyServers, KeyService, ServerAddress, ServiceKeys};
    let mut stage = Stage::new(&["OLD", "NEW"]).await;
    let tape = stage.create("VOL001", "OLD").await;
    let job = stage.rekey(RekeyAct::Start(Box::new(from("OLD", "NEW"))));
    let seen = ended(&stage, job.await.job.id).await;
    assert_eq!((seen.job.state, seen.job.count.done), (RekeyState::Done, 1));

    let tls = stage.site.client_tls(&stage.drive.peer);
    let address: ServerAddress = stage.site.address.parse().unwrap();
    let servers = KeyServers::of(vec![KeyServer::from(address)]).unwrap();
    let service = KeyService::start(servers, tls, crate::pair::times()).await;
    let mut keys = ServiceKeys::new(service, tokio::runtime::Handle::current());
    let resolve = ResolveRequest {
        request_id: Uuid::new_v4(),
        drive: stage.shown(),
        volser: Some(tape.volser.parse().unwrap()),
        eedks: tape.eedks.clone(),
        dki: None,
        append: false,
    };
    let serial = stage.drive.row.serial.clone();
    let told = tokio::task::spawn_blocking(move || {
        let answer = keys.resolve(&resolve).unwrap();
        let newer = answer.newer.unwrap();
        keys.confirm(&ConfirmRequest {
            request_id: newer.request_id,
            serial,
            dki: tape.dki,
            stored: true,
        })
        .map_err(|error| error.to_string())
    });
    assert_eq!(told.await.unwrap().unwrap().state, EedkState::Confirmed);
    // So the old one may go.
    stage.turn("OLD", KekState::Retired).await.unwrap();
    stage.turn("OLD", KekState::Revoked).await.unwrap();
}
