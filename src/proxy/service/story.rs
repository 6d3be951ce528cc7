//! The story of a request: server after server, round after round, within its time.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use super::link::Link;
use super::tries::{Call, Miss, written};
use super::{Inner, Issuer, List, Listed, Served, ServerState, ServiceError, Verdict};
use crate::api::{ConfirmAnswer, ConfirmRequest};
use crate::problem::{EkmCode, Problem};

/// Between two tries on one server.
const PAUSE: Duration = Duration::from_millis(500);

/// How often a request for which no server answers looks around, at least.
const AGAIN: Duration = Duration::from_secs(1);

/// Who had no more than this to answer in is not put aside for it.
const SHORT: Duration = Duration::from_secs(5);

/// Why one server brought no answer.
enum Passed {
    /// Another request has found out that it is down.
    Over,
    /// It failed, or cannot answer now.
    Failed(String),
    Elsewhere(Box<Problem>),
    Final(ServiceError),
}

/// What one server gets of a request's time.
struct Share {
    /// The end of the request's time.
    until: Instant,
    /// Between how many servers the time is divided that is left.
    of: u32,
    /// Whether it is tried also while it is put aside.
    anyway: bool,
}

impl Inner {
    /// The story of a request: server after server, round after round, within its time.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        call: &mut Call<'_, '_>,
    ) -> Result<Served<T>, ServiceError> {
        let begun = Instant::now();
        let until = begun + self.times.total;
        let mut unknown: Vec<(Arc<Link>, Box<Problem>)> = Vec::new();
        let mut failed: Vec<(Arc<Link>, String)> = Vec::new();
        loop {
            // Before the servers are looked at, so that none gets better unseen.
            let mut better = self.better.subscribe();
            let list = self.list();
            let asked: Vec<&Listed> = list
                .links
                .iter()
                .filter(|listed| listed.link.usable())
                .filter(|listed| !is_among(&unknown, &listed.link))
                .collect();
            for (place, listed) in asked.iter().enumerate() {
                let share = Share {
                    until,
                    of: u32::try_from(asked.len() - place).unwrap_or(u32::MAX),
                    anyway: false,
                };
                let link = &listed.link;
                match self.server(listed, call, share).await {
                    Ok(answer) => {
                        return Ok(Served {
                            answer,
                            by: Issuer(Arc::clone(link)),
                        });
                    }
                    Err(Passed::Over) => {}
                    Err(Passed::Final(error)) => return Err(error),
                    Err(Passed::Elsewhere(problem)) => {
                        unknown.push((Arc::clone(link), problem));
                    }
                    Err(Passed::Failed(reason)) => {
                        failed.retain(|(of, _)| !Arc::ptr_eq(of, link));
                        failed.push((Arc::clone(link), reason));
                    }
                }
            }
            let list = self.list();
            let all = |listed: &Listed| is_among(&unknown, &listed.link);
            if list.links.iter().all(all)
                && let Some((link, problem)) = unknown.first()
            {
                return Err(refused(link, problem.clone()));
            }
            if !self.times.wait || Instant::now() >= until {
                return Err(gave_up(&list, begun, &unknown, &failed));
            }
            self.nudge.notify_one();
            let pause = until.min(Instant::now() + AGAIN);
            drop(timeout_at(pause, better.changed()).await);
        }
    }

    /// One server with its retries.
    async fn server<T: DeserializeOwned>(
        &self,
        listed: &Listed,
        call: &mut Call<'_, '_>,
        Share { until, of, anyway }: Share,
    ) -> Result<T, Passed> {
        let link = &listed.link;
        let begun = Instant::now();
        let Ok(Some(_turn)) = timeout_at(until, self.pool.turn()).await else {
            return Err(Passed::Final(ServiceError::Full {
                maxconn: self.pool.bounds().0,
                seconds: begun.elapsed().as_secs(),
            }));
        };
        if !anyway && !link.usable() {
            return Err(Passed::Over);
        }
        let now = Instant::now();
        let until = now + until.saturating_duration_since(now) / of.max(1);
        let mut tries = 0;
        let mut resigned = false;
        let mut hurried;
        loop {
            let limit = listed
                .answer
                .min(until.saturating_duration_since(Instant::now()));
            let miss = match self.attempt(link, call, limit).await {
                Ok(answer) => {
                    self.is_well(link);
                    self.notes_last(link);
                    return Ok(answer);
                }
                Err(miss) => miss,
            };
            let reason = match miss {
                Miss::Fatal(error) => return Err(Passed::Final(error)),
                // It was started anew between its challenge and the request.
                Miss::Refused(problem)
                    if problem.code == EkmCode::EE2B && call.session.is_some() && !resigned =>
                {
                    resigned = true;
                    continue;
                }
                Miss::Refused(problem) => return Err(self.refusal(link, problem)),
                miss => {
                    // What makes something is repeated here first: the same request id, the same key.
                    let may_help = call.makes || of == 1 || !matches!(miss, Miss::Late(_));
                    hurried = matches!(miss, Miss::Late(limit) if limit < listed.answer.min(SHORT));
                    let reason = miss.told();
                    tries += 1;
                    if tries <= self.times.retries
                        && may_help
                        && Instant::now() + PAUSE < until
                        && (anyway || link.usable())
                    {
                        tracing::debug!(server = %link.address(), reason, "tried again");
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                    reason
                }
            };
            if hurried {
                link.note(&reason);
                link.suspect();
            } else {
                self.is_ill(link, ServerState::Down, &reason);
            }
            return Err(Passed::Failed(reason));
        }
    }

    fn refusal(&self, link: &Arc<Link>, problem: Box<Problem>) -> Passed {
        match Verdict::of(&problem) {
            Verdict::Final => {
                self.is_well(link);
                self.notes_last(link);
                Passed::Final(refused(link, problem))
            }
            Verdict::Elsewhere => {
                self.is_well(link);
                tracing::info!(server = %link.address(), %problem, "the next key server is asked");
                Passed::Elsewhere(problem)
            }
            Verdict::Unable => {
                let reason = format!("cannot answer now: {problem}");
                tracing::warn!(server = %link.address(), %problem, "the next key server is asked");
                link.note(&reason);
                link.suspect();
                self.nudge.notify_one();
                Passed::Failed(reason)
            }
        }
    }

    pub(super) async fn confirm(
        &self,
        link: &Arc<Link>,
        request: &ConfirmRequest,
    ) -> Result<ConfirmAnswer, ServiceError> {
        let begun = Instant::now();
        let body = |_| written(request);
        let mut call = Call {
            path: "/v1/keys/confirm",
            makes: false,
            session: None,
            body: &body,
        };
        let answer = self.list().find(link).map(|listed| listed.answer);
        let listed = Listed {
            link: Arc::clone(link),
            answer: answer.unwrap_or(self.times.answer),
        };
        let share = Share {
            until: begun + self.times.total,
            of: 1,
            anyway: true,
        };
        let failed = match self.server(&listed, &mut call, share).await {
            Ok(answer) => return Ok(answer),
            Err(Passed::Final(error)) => return Err(error),
            Err(Passed::Elsewhere(problem)) => return Err(refused(link, problem)),
            Err(Passed::Over) => "is down".to_owned(),
            Err(Passed::Failed(reason)) => reason,
        };
        Err(ServiceError::NoServer {
            seconds: begun.elapsed().as_secs(),
            why: vec![(link.address().clone(), failed)],
        })
    }

    /// It answered.
    pub(super) fn is_well(&self, link: &Link) {
        if link.answered() {
            self.better.send_replace(());
        }
    }

    /// It is put aside until a look finds it well.
    pub(super) fn is_ill(&self, link: &Link, state: ServerState, reason: &str) {
        if link.failed(state, reason) {
            self.pool.close(link.address());
            let list = self.list();
            let next = list.links.iter().find(|listed| listed.link.usable());
            let next = next.map_or_else(
                || "no other".to_owned(),
                |listed| listed.link.address().to_string(),
            );
            tracing::warn!(server = %link.address(), %state, reason, next, "key server put aside");
        }
    }

    /// Says when another server is used than before.
    fn notes_last(&self, link: &Link) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() != Some(link.address()) {
            tracing::info!(server = %link.address(), "keys come from this server now");
            *last = Some(link.address().clone());
        }
    }
}

fn refused(link: &Link, problem: Box<Problem>) -> ServiceError {
    ServiceError::Refused {
        server: link.address().clone(),
        problem,
    }
}

fn is_among<T>(links: &[(Arc<Link>, T)], link: &Arc<Link>) -> bool {
    links.iter().any(|(of, _)| Arc::ptr_eq(of, link))
}

/// Of each server of the list, the last that is known.
fn gave_up(
    list: &List,
    begun: Instant,
    unknown: &[(Arc<Link>, Box<Problem>)],
    failed: &[(Arc<Link>, String)],
) -> ServiceError {
    let why = list.links.iter().map(|listed| {
        let link = &listed.link;
        let told = unknown
            .iter()
            .find(|(of, _)| Arc::ptr_eq(of, link))
            .map(|(_, problem)| format!("has nothing to give: {problem}"))
            .or_else(|| {
                let found = failed.iter().find(|(of, _)| Arc::ptr_eq(of, link));
                found.map(|(_, reason)| reason.clone())
            })
            .or_else(|| link.told().2.map(|failure| failure.reason))
            .unwrap_or_else(|| "was not asked: there was no time left".to_owned());
        (link.address().clone(), told)
    });
    ServiceError::NoServer {
        seconds: begun.elapsed().as_secs(),
        why: why.collect(),
    }
}
