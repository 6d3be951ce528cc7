//! What a request is judged by: the drive's row, the KEKs, the cartridge's
//! EEDKs, and what a drive shows of its key.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::{Service, unrecorded, unstored};
use crate::api::{self, DriveInRequest};
use crate::audit::{Event, Kind, Outcome};
use crate::bridge::message::Provenance;
use crate::deadline;
use crate::drive::DriveSerial;
use crate::key::{Eedk, KekRef, SedkForm};
use crate::keystore::{Custody, Directory, KekError};
use crate::policy::{
    AcceptUnknown, DriveClaim, GrantedKek, KeyClaim, Known, Presented, Refusal, SessionKeyClaim,
    certified, may_write,
};
use crate::problem::{EkmCode, Problem};
use crate::store::{
    Defaults, Discovered, Drive, DriveKey, DriveState, KekStates, Origin, RegisteredKek,
    StoreError, Waiting,
};
use crate::tls::{PeerId, Role};
use time::OffsetDateTime;

/// Shortest time between two searches of the tokens for a label that is not known.
const SEARCH: Duration = Duration::from_secs(1);

/// How long a request waits for tokens that are starting; a drive waits for minutes.
pub(crate) const STARTING: Duration = Duration::from_secs(15);

/// Most drives that wait for an operator, and most of one peer.
const WAITING: Waiting = Waiting {
    total: 256,
    per_peer: 64,
};

/// Where the drive CA and the revocation list are. Read when a session key
/// asks, so that a revocation counts at once.
#[derive(Debug)]
pub(super) struct DriveCa {
    pub(super) roots: Option<PathBuf>,
    pub(super) crl: Option<PathBuf>,
}

impl DriveCa {
    /// The CA's certificates and the revocation list, PEM.
    async fn read(&self) -> Result<Option<Vec<u8>>, Problem> {
        let Some(roots) = &self.roots else {
            return Ok(None);
        };
        let mut pem = Vec::new();
        for path in [Some(roots), self.crl.as_ref()].into_iter().flatten() {
            let text = tokio::fs::read(path).await.map_err(|error| {
                tracing::error!(path = %path.display(), %error, "the drive CA cannot be read");
                Problem::unavailable(
                    "the drive CA or its revocation list cannot be read; the server's log says why",
                )
            })?;
            pem.extend_from_slice(&text);
            pem.push(b'\n');
        }
        Ok(Some(pem))
    }
}

/// What is looked up for one request.
pub(super) struct Looked {
    drive_ca: Option<Vec<u8>>,
    drive: Option<Drive>,
    // Before the directory was read.
    all_serve: bool,
    directory: Arc<Directory>,
    defaults: Defaults,
    sealed: Arc<HashSet<[u8; 32]>>,
    states: Arc<KekStates>,
    now: OffsetDateTime,
}

impl Looked {
    /// Whether the directory is the whole one: every token was up as it was read. One that has
    /// come up since is not in it.
    fn whole(&self) -> bool {
        self.all_serve && self.directory.unseen().is_empty()
    }
}

/// The answer to a refusal; `whole` where no token was missing in what it was judged by.
fn refused(refusal: &Refusal, whole: bool) -> Problem {
    match refusal {
        // The key may be on a token that is not ready: that is not the request's fault.
        Refusal::Kek(KekError::Unknown { .. }) | Refusal::Unreadable(_) if !whole => {
            Problem::unavailable(format!(
                "not every token is ready (ekm token status); {refusal}"
            ))
        }
        // It was, for this very request, and then all seals were to be verified again.
        Refusal::Unverified { .. } => Problem::unavailable(format!(
            "{refusal} yet; it is verified when the request is repeated"
        )),
        refusal => Problem::from(refusal),
    }
}

/// EEDKs, and where they come from.
pub(super) struct Traced {
    pub(super) presented: Vec<Presented>,
    /// Whether that could not be looked up for all of them: the database is out of reach.
    pub(super) untraced: bool,
}

impl Service {
    pub(super) async fn presented(&self, eedks: &[api::Base64]) -> Result<Traced, Problem> {
        let decoded =
            api::eedks(eedks, 1).map_err(|reason| Problem::new(EkmCode::EE23, 400, reason))?;
        self.traced(decoded).await
    }

    /// Looks up where EEDKs come from. Where nobody can say, they count as not issued here.
    pub(super) async fn traced(
        &self,
        decoded: Vec<Result<Eedk, String>>,
    ) -> Result<Traced, Problem> {
        let mut untraced = false;
        let mut presented = Vec::with_capacity(decoded.len());
        for eedk in decoded {
            let origin = match &eedk {
                Ok(eedk) => match self.store.issued(&eedk.digest()).await {
                    Ok(origin) => origin,
                    Err(StoreError::Outage { .. }) => {
                        untraced = true;
                        None
                    }
                    Err(error) => return Err(unstored(&error)),
                },
                Err(_) => None,
            };
            presented.push(Presented { eedk, origin });
        }
        Ok(Traced {
            presented,
            untraced,
        })
    }

    /// Where the data key that the EEDKs name comes from, if it is known here.
    pub(super) async fn origin(&self, presented: &[Presented]) -> Result<Option<Origin>, Problem> {
        for eedk in presented.iter().filter_map(|one| one.eedk.as_ref().ok()) {
            let known = self
                .store
                .origin(&eedk.dki())
                .await
                .map_err(|error| unstored(&error))?;
            if known.is_some() {
                return Ok(known);
            }
        }
        Ok(None)
    }

    /// Pins the label of a KEK that is written under for the first time.
    pub(super) async fn register(&self, granted: &[GrantedKek]) -> Result<(), Problem> {
        if granted.iter().all(|granted| granted.registered) {
            return Ok(());
        }
        let directory = self.directory().await?;
        for granted in granted.iter().filter(|granted| !granted.registered) {
            let known = directory
                .by_label(&granted.kek.label)
                .map_err(|error| Problem::from(&Refusal::Kek(error)))?;
            self.store
                .register_kek(&RegisteredKek {
                    label: known.label.clone(),
                    hash: known.hash,
                    spki: known.spki.clone(),
                    bits: known.bits,
                    token: known.tokens.first().cloned().unwrap_or_default(),
                    custody: known.custody.unwrap_or(Custody::Token),
                    provenance: known.provenance.unwrap_or(Provenance::Imported),
                })
                .await
                .map_err(|error| unstored(&error))?;
        }
        Ok(())
    }

    pub(super) fn claim(&self, drive: &DriveInRequest) -> Result<DriveClaim, Problem> {
        let session = match &drive.session_key {
            None => None,
            Some(session) => {
                if !self.challenges.take(&session.challenge.0) {
                    return Err(Problem::new(
                        EkmCode::EE2B,
                        403,
                        "the session key's challenge was not given by this server, was used already or is older than 60 s; ask for a new one",
                    ));
                }
                Some(SessionKeyClaim {
                    spki: session.public_key.0.clone(),
                    signature: session.signature.0.clone(),
                    certificate: session.certificate.0.clone(),
                    challenge: session.challenge.0.clone(),
                })
            }
        };
        Ok(DriveClaim {
            serial: drive.serial.clone(),
            key: KeyClaim {
                wrapping: drive.public_key.as_ref().map(|key| key.0.clone()),
                session,
            },
        })
    }

    /// Looks up what the policy needs and has it judge; looks at the tokens
    /// again where a label is not known, and at the drive where it is not.
    pub(super) async fn judge<T>(
        &self,
        peer: &PeerId,
        claim: &DriveClaim,
        judge: impl Fn(Known<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Problem> {
        self.tokens.started(deadline::left(STARTING)).await;
        let signed = claim.key.session.is_some();
        let mut looked = self.look(&claim.serial, signed).await?;
        let mut verdict = judge(self.known(&looked));
        // One that is discovered now is noted by that.
        let in_table = looked.drive.is_some();
        let unknown_drive = matches!(verdict, Err(Refusal::UnknownDrive { .. }));
        let unknown_kek = matches!(
            verdict,
            Err(Refusal::Kek(KekError::Unknown { .. }) | Refusal::Unreadable(_))
        );
        let again = if unknown_drive {
            self.take_in(peer, claim).await?
        } else if unknown_kek && self.may_search() {
            self.tokens.look_again().await;
            true
        } else {
            false
        };
        // A verdict and the look that it is by are never parted: what is said of the verdict must
        // have been true as it was made.
        if again {
            looked = self.look(&claim.serial, signed).await?;
            verdict = judge(self.known(&looked));
        }
        // Each of two KEKs may be a partner's.
        for _ in 0..2 {
            let Err(Refusal::Unverified { label }) = &verdict else {
                break;
            };
            self.require_seal(label).await?;
            looked = self.look(&claim.serial, signed).await?;
            verdict = judge(self.known(&looked));
        }
        let row = looked.drive.as_ref().filter(|_| in_table);
        if let (Err(refusal), Some(row)) = (&verdict, row) {
            self.note_refused(peer, claim, row, refusal).await;
        }
        verdict.map_err(|refusal| self.unless_away(refused(&refusal, looked.whole())))
    }

    /// Whether these KEKs may be written under as things are; for a drive of that custody, or of
    /// any where none is given.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn may_write(
        &self,
        labels: [Option<&KekRef>; 2],
        custody: Option<Custody>,
    ) -> Result<(), Problem> {
        let custody = custody.unwrap_or(Custody::Host);
        for _ in 0..3 {
            let fail = |error: StoreError| unstored(&error);
            let looked = Looked {
                drive_ca: None,
                drive: None,
                all_serve: self.tokens.all_serve(),
                directory: self.directory().await?,
                defaults: self.store.defaults().await.map_err(fail)?,
                sealed: self.seals.good(),
                states: self.store.kek_states().await.map_err(fail)?,
                now: OffsetDateTime::now_utc(),
            };
            match may_write(self.known(&looked), labels, custody) {
                Err(Refusal::Unverified { label }) => self.require_seal(&label).await?,
                verdict => return verdict.map_err(|refusal| Problem::from(&refusal)),
            }
        }
        Err(Problem::unavailable(
            "the seals of partners' KEKs are being verified again; ask once more",
        ))
    }

    fn may_search(&self) -> bool {
        let mut searched = self.searched.lock().unwrap_or_else(PoisonError::into_inner);
        let due = searched.is_none_or(|last| last.elapsed() >= SEARCH);
        if due {
            *searched = Some(Instant::now());
        }
        due
    }

    /// Gives an unknown drive a row where the rules say so; true where it is worth asking again.
    async fn take_in(&self, peer: &PeerId, claim: &DriveClaim) -> Result<bool, Problem> {
        let itself = peer.role() == Role::Drive && peer.name() == claim.serial.as_str();
        if self.policy.accept_unknown_drives == AcceptUnknown::Reject
            || !(itself || self.policy.speaks_for(peer, &claim.serial))
        {
            return Ok(false);
        }
        let drive_ca = self.drive_ca.read().await?;
        let signed = claim.key.session.is_some();
        let vouched = signed && certified(claim, drive_ca.as_deref()).is_ok();
        let (key, state) = match self.policy.accept_unknown_drives {
            AcceptUnknown::Reject => return Ok(false),
            AcceptUnknown::Accept if vouched => (DriveKey::Certified, DriveState::Active),
            AcceptUnknown::Accept => return Ok(false),
            AcceptUnknown::Pending if vouched => (DriveKey::Certified, DriveState::Pending),
            AcceptUnknown::Pending if signed => return Ok(false),
            AcceptUnknown::Pending => {
                let key = match &claim.key.wrapping {
                    Some(spki) => DriveKey::Pinned(spki.clone()),
                    None => DriveKey::None,
                };
                (key, DriveState::Pending)
            }
        };
        let drive = Drive {
            serial: claim.serial.clone(),
            wwn: None,
            kek1: None,
            kek2: None,
            key,
            form: SedkForm::RsaOaepSha1,
            custody: Custody::Token,
            speakers: Vec::new(),
            state,
        };
        // One that an operator deleted stays deleted.
        let sighting = self.sighting(peer, claim, 1);
        let discovered = self
            .store
            .discover(&drive, &sighting, WAITING)
            .await
            .map_err(|error| unstored(&error))?;
        if discovered == Discovered::Full {
            tracing::warn!(drive = %claim.serial, %peer, "an unknown drive was not noted: too many wait already (ekm drive pending)");
        }
        let added = discovered == Discovered::Added;
        if added {
            let mut event = Event::new(
                Kind::ResourceManagement,
                "drive-discovered",
                Outcome::Success,
            );
            event.peer = Some(peer.to_string());
            event.drive = Some(claim.serial.to_string());
            event.drive_key = sighting.key.map(|key| key.to_string());
            event.detail = Some(format!(
                "{}, from {}",
                format!("{state:?}").to_lowercase(),
                sighting.address
            ));
            self.audit
                .record(event)
                .await
                .map_err(|error| unrecorded(&error))?;
        }
        Ok(added)
    }

    pub(super) async fn look(&self, serial: &DriveSerial, signed: bool) -> Result<Looked, Problem> {
        let fail = |error: StoreError| unstored(&error);
        Ok(Looked {
            drive_ca: if signed {
                self.drive_ca.read().await?
            } else {
                None
            },
            drive: self.store.drive(serial).await.map_err(fail)?,
            all_serve: self.tokens.all_serve(),
            directory: self.directory().await?,
            defaults: self.store.defaults().await.map_err(fail)?,
            sealed: self.seals.good(),
            states: self.store.kek_states().await.map_err(fail)?,
            now: OffsetDateTime::now_utc(),
        })
    }

    /// All KEKs that are known now.
    ///
    /// # Errors
    /// The state cannot be read.
    pub async fn directory(&self) -> Result<Arc<Directory>, Problem> {
        let fail = |error: StoreError| unstored(&error);
        let registry = self.store.keks().await.map_err(fail)?;
        let certificates = self.store.certificates().await.map_err(fail)?;
        let copies = self.store.kek_copies().await.map_err(fail)?;
        Ok(self.tokens.directory(registry, certificates, copies))
    }

    pub(super) fn known<'a>(&'a self, looked: &'a Looked) -> Known<'a> {
        Known {
            config: &self.policy,
            drive: looked.drive.as_ref(),
            directory: &looked.directory,
            defaults: &looked.defaults,
            sealed: &looked.sealed,
            states: &looked.states,
            now: looked.now,
            drive_ca: looked.drive_ca.as_deref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(all_serve: bool, unseen: &[&str]) -> Looked {
        Looked {
            drive_ca: None,
            drive: None,
            all_serve,
            directory: Arc::new(Directory::default().with_registry(unseen, &[])),
            defaults: Defaults::default(),
            sealed: Arc::default(),
            states: Arc::default(),
            now: OffsetDateTime::now_utc(),
        }
    }

    /// The token with the KEK comes up after the directory was read: that it serves by the time of
    /// the answer made a definite "unknown" of what was not known.
    #[test]
    fn a_refusal_is_definite_only_where_no_token_was_missing_as_it_was_judged() {
        let unknown = Refusal::Kek(KekError::Unknown {
            label: "KEK1".to_owned(),
        });
        let unreadable = Refusal::Unreadable("no token has the KEK".to_owned());
        for looked in [
            looked(false, &[]),
            looked(true, &["b"]),
            looked(false, &["b"]),
        ] {
            assert!(!looked.whole());
            for refusal in [&unknown, &unreadable] {
                let problem = refused(refusal, looked.whole());
                assert_eq!((problem.status, problem.code), (503, EkmCode::EE0F));
            }
        }
        let whole = looked(true, &[]).whole();
        assert!(whole);
        assert_eq!(refused(&unknown, whole).code, EkmCode::EE31);
        assert_eq!(refused(&unreadable, whole).code, EkmCode::EE32);
    }

    #[test]
    fn a_seal_that_was_forgotten_between_two_looks_is_no_lasting_refusal() {
        let refusal = Refusal::Unverified {
            label: "PARTNER".parse().unwrap(),
        };
        for whole in [true, false] {
            let problem = refused(&refusal, whole);
            assert_eq!((problem.status, problem.code), (503, EkmCode::EE0F));
            assert!(problem.retry_after.is_some());
        }
    }
}
