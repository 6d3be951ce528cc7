//! `ekm slot doctor`: holds a token against its profile.
//!
//! ```text
//! command line                                   child: ekm bridge
//! examine --- one exam after another, socket --> examiner -> pkcs11 -> module
//!   findings -> fitting -> verdicts,               throw-away keys only
//!   a profile that fits, differences
//! ```
//!
//! The bridge is one of its own, so a server that uses the token goes on. An
//! exam that crashes or hangs the module costs that one exam: it is noted,
//! and the next one runs in a fresh bridge. Everything is tried with
//! throw-away keys; the KEKs are only looked at, and each opens one EEDK that
//! was made for the purpose.

mod attacks;
mod data_key;
mod examiner;
pub mod findings;
pub mod fitting;
mod keks;
mod latency;
pub(super) mod pairs;
pub(super) mod stand_in;
mod surface;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::faults::Fault;
use super::message::{Errand, Hello, Reply, Task};
use super::pin::Pin;
use super::pkcs11::Module;
use super::profile::HsmProfile;
use super::supervisor::{Attended, Program};
use super::token::{Logins, Token};
use super::uri::TokenUri;
use super::which::Which;
use examiner::Examiner;
use findings::{
    Attack, AttackName, DataKeys, Examination, Keks, Latency, Outcome, PairKind, PairMade,
    Sessions, Surface, Trusted,
};

/// Longest time for one exam; a key pair on a smart card takes minutes.
const PATIENCE: Duration = Duration::from_secs(300);

/// Bridges that one examination may cost. A module that dies more often than
/// this shows nothing new.
const BRIDGES: usize = 8;

/// One part of an examination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exam {
    /// Module, slots, token, mechanisms: no login.
    Surface,
    /// The login, and what an earlier examination left.
    Login,
    /// Sessions at the same time, at most that many.
    Sessions(usize),
    /// A throw-away pair of that kind.
    Pair(PairKind),
    /// Data keys.
    DataKeys,
    /// One attack.
    Attack(AttackName, Option<PairKind>),
    /// Wrap with trusted.
    Trusted,
    /// KEKs.
    Keks,
    /// Latency of calls.
    Latency,
    /// Throw-away keys are destroyed.
    Leave,
}

impl std::fmt::Display for Exam {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Surface => f.write_str("module and token"),
            Self::Login => f.write_str("login"),
            Self::Sessions(_) => f.write_str("sessions"),
            Self::Pair(kind) => write!(f, "making a {kind}"),
            Self::DataKeys => f.write_str("data keys: templates and OAEP"),
            Self::Attack(name, _) => write!(f, "attack: {name}"),
            Self::Trusted => f.write_str("wrap with trusted"),
            Self::Keks => f.write_str("KEKs"),
            Self::Latency => f.write_str("latency"),
            Self::Leave => f.write_str("destroying the throw-away keys"),
        }
    }
}

/// What came of an exam.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finding {
    /// [`Exam::Surface`]
    Surface(Box<Surface>),
    /// [`Exam::Login`]: logged in, and how many leftovers were destroyed.
    Login(usize),
    /// [`Exam::Sessions`]
    Sessions(Sessions),
    /// [`Exam::Pair`]
    Pair(PairMade),
    /// [`Exam::DataKeys`]
    DataKeys(Box<DataKeys>),
    /// [`Exam::Attack`]
    Attack(Attack),
    /// [`Exam::Trusted`]
    Trusted(Trusted),
    /// [`Exam::Keks`]
    Keks(Keks),
    /// [`Exam::Latency`]
    Latency(Vec<Latency>),
    /// [`Exam::Leave`]
    Left,
}

/// Which token, and how to reach it.
#[derive(Clone, Debug)]
pub struct Appointment {
    /// The token's configured name, for messages.
    pub name: String,
    /// The profile, paths settled.
    pub profile: HsmProfile,
    /// The token; none for the only one that the module shows.
    pub token: Option<TokenUri>,
    /// The serials that it may have; none where the URI alone says which it is.
    pub serials: Vec<String>,
    /// Its user PIN; without it only the surface is looked at.
    pub pin: Option<Pin>,
    /// The directory of the files that guard the PIN counters.
    pub ledgers: PathBuf,
    /// Sessions to try at the same time.
    pub sessions: usize,
}

impl Appointment {
    pub(super) fn hello(&self, avoid: &[PairKind]) -> Hello {
        Hello {
            name: self.name.clone(),
            profile: self.profile.clone(),
            task: Task::Attend {
                token: self.token.clone(),
                serials: self.serials.clone(),
                pin: self.pin.clone(),
                ledgers: self.ledgers.clone(),
                avoid: avoid.to_vec(),
            },
        }
    }
}

/// Examines a token, telling each part as it begins with how many there are.
///
/// # Errors
/// The module cannot be loaded, or shows nothing at all. Whatever goes wrong
/// later is a finding.
pub async fn examine(
    program: &Program,
    appointment: &Appointment,
    begins: &dyn Fn(Exam, usize),
) -> Result<Examination, Fault> {
    let mut visit = Visit {
        program,
        appointment,
        begins,
        parts: 2,
        bridges: 1,
        avoid: Vec::new(),
        found: Examination::default(),
        bridge: Attended::start(program, &appointment.hello(&[])).await?,
    };
    visit.go().await?;
    Ok(visit.found)
}

struct Visit<'a> {
    program: &'a Program,
    appointment: &'a Appointment,
    begins: &'a dyn Fn(Exam, usize),
    parts: usize,
    bridges: usize,
    avoid: Vec<PairKind>,
    found: Examination,
    bridge: Attended,
}

impl Visit<'_> {
    async fn go(&mut self) -> Result<(), Fault> {
        let after_login = [Exam::Sessions(self.appointment.sessions)]
            .into_iter()
            .chain(PairKind::ALL.map(Exam::Pair))
            .chain([Exam::DataKeys, Exam::Keks, Exam::Trusted])
            .chain(
                attacks::ATTACKS
                    .iter()
                    .map(|(name, against)| Exam::Attack(*name, *against)),
            )
            .chain([Exam::Latency, Exam::Leave])
            .collect::<Vec<_>>();
        self.parts += after_login.len();
        let surface = self.ask(Exam::Surface).await?;
        self.take(surface);
        let seen = self.found.surface.as_ref();
        if seen.is_none_or(|surface| surface.token.is_none()) {
            self.found.login = Some(Outcome::untried("there is no token"));
            return Ok(());
        }
        if self.appointment.pin.is_none() {
            self.found.login = Some(Outcome::untried("no PIN was given"));
            return Ok(());
        }
        if !self.log_in().await {
            return Ok(());
        }
        for exam in after_login {
            match self.ask(exam).await {
                Ok(finding) => self.take(finding),
                Err(fault) => {
                    if !self.interrupted(exam, &fault).await {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    async fn ask(&mut self, exam: Exam) -> Result<Finding, Fault> {
        (self.begins)(exam, self.parts);
        match self.bridge.ask(&Errand::Examine(exam), PATIENCE).await? {
            Reply::Found(finding) => Ok(*finding),
            other => Err(Fault::Down {
                token: self.appointment.name.clone(),
                reason: format!("the bridge gave an answer of another kind ({other:?})"),
            }),
        }
    }

    /// Whether it is logged in now.
    async fn log_in(&mut self) -> bool {
        match self.ask(Exam::Login).await {
            Ok(finding) => {
                self.take(finding);
                true
            }
            Err(fault) => {
                self.found.login = Some(Outcome::Wrong(fault.to_string()));
                false
            }
        }
    }

    /// Notes an exam that did not end, and goes on in a fresh bridge where
    /// the old one has gone. Whether there is anything to go on with.
    async fn interrupted(&mut self, exam: Exam, fault: &Fault) -> bool {
        self.found
            .interrupted
            .push((exam.to_string(), fault.to_string()));
        if !self.bridge.gone() {
            return true;
        }
        if let Exam::Pair(kind) = exam {
            self.avoid.push(kind);
        }
        if self.bridges == BRIDGES {
            return false;
        }
        self.bridges += 1;
        match Attended::start(self.program, &self.appointment.hello(&self.avoid)).await {
            Ok(bridge) => {
                self.bridge = bridge;
                self.log_in().await
            }
            Err(fault) => {
                let again = "starting the module again".to_owned();
                self.found.interrupted.push((again, fault.to_string()));
                false
            }
        }
    }

    fn take(&mut self, finding: Finding) {
        let found = &mut self.found;
        match finding {
            Finding::Surface(surface) => found.surface = Some(*surface),
            Finding::Login(leftovers) => {
                found.login = Some(Outcome::Works);
                // What a bridge that crashed left is this examination's own.
                if self.bridges == 1 {
                    found.leftovers = leftovers;
                }
            }
            Finding::Sessions(sessions) => found.sessions = Some(sessions),
            Finding::Pair(pair) => found.pairs.push(pair),
            Finding::DataKeys(data_keys) => found.data_keys = Some(*data_keys),
            Finding::Attack(attack) => found.attacks.push(attack),
            Finding::Trusted(trusted) => found.trusted = Some(trusted),
            Finding::Keks(keks) => found.keks = Some(keks),
            Finding::Latency(latency) => found.latency = latency,
            Finding::Left => {}
        }
    }
}

/// The bridge's side: the module, and the token once it is logged in to.
pub(super) struct Doctor {
    name: String,
    profile: HsmProfile,
    which: Option<Which>,
    // None where nobody is to log in.
    logins: Option<Logins>,
    avoid: Vec<PairKind>,
    module: Option<Module>,
    examiner: Option<Examiner>,
}

impl Doctor {
    pub(super) fn new(
        name: String,
        module: Module,
        profile: HsmProfile,
        which: Option<Which>,
        logins: Option<Logins>,
        avoid: Vec<PairKind>,
    ) -> Self {
        Self {
            name,
            profile,
            which,
            logins,
            avoid,
            module: Some(module),
            examiner: None,
        }
    }

    /// Does one exam.
    pub(super) fn examine(&mut self, exam: Exam) -> Result<Finding, Fault> {
        match (exam, &mut self.examiner) {
            (Exam::Surface, None) => self.surface(),
            (Exam::Login, None) => self.log_in(),
            (exam, Some(examiner)) => examine_with(examiner, exam),
            (_, None) => Err(self.not_logged_in()),
        }
    }

    /// The token, logged in to, for whoever measures on it.
    pub(super) fn logged_in(&mut self) -> Result<Token, Fault> {
        let logins = self.logins.clone();
        let (Some(module), Some(logins)) = (&self.module, logins) else {
            return Err(self.not_logged_in());
        };
        let (_, info) = surface::choose(&self.name, module, self.which.as_ref())?;
        let which = self.which.clone().unwrap_or_else(|| Which {
            uri: TokenUri::of(&info),
            serials: Vec::new(),
        });
        let Some(module) = self.module.take() else {
            return Err(self.not_logged_in());
        };
        Token::logged_in(
            self.name.clone(),
            module,
            self.profile.clone(),
            which,
            logins,
        )
    }

    fn surface(&self) -> Result<Finding, Fault> {
        let Some(module) = &self.module else {
            return Err(self.not_logged_in());
        };
        let library = &self.profile.module.library;
        let surface = surface::look(&self.name, library, module, self.which.as_ref())?;
        Ok(Finding::Surface(Box::new(surface)))
    }

    fn log_in(&mut self) -> Result<Finding, Fault> {
        let token = self.logged_in()?;
        let examiner = Examiner::new(token, std::mem::take(&mut self.avoid))?;
        let leftovers = examiner.sweep()?;
        self.examiner = Some(examiner);
        Ok(Finding::Login(leftovers))
    }

    pub(super) fn not_logged_in(&self) -> Fault {
        Fault::Down {
            token: self.name.clone(),
            reason: "nobody is logged in to it".to_owned(),
        }
    }
}

fn examine_with(examiner: &mut Examiner, exam: Exam) -> Result<Finding, Fault> {
    Ok(match exam {
        Exam::Surface | Exam::Login => Finding::Left,
        Exam::Sessions(bound) => Finding::Sessions(surface::sessions(&examiner.token, bound)),
        Exam::Pair(kind) => Finding::Pair(examiner.make(kind)),
        Exam::DataKeys => Finding::DataKeys(Box::new(examiner.data_keys())),
        Exam::Attack(name, against) => Finding::Attack(attacks::attack(examiner, name, against)),
        Exam::Trusted => Finding::Trusted(attacks::trusted(examiner)),
        Exam::Keks => Finding::Keks(keks::examine(examiner)?),
        Exam::Latency => Finding::Latency(latency::measure(examiner)),
        Exam::Leave => {
            examiner.leave();
            Finding::Left
        }
    })
}
