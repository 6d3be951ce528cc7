//! The loop of a bridge that is asked one thing after another.

use std::io;
use std::os::unix::net::UnixStream;

use super::adopt;
use super::ceremony::Ceremony;
use super::doctor::Doctor;
use super::faults::Fault;
use super::import;
use super::message::{self, Errand, Reply, Response};
use super::rates::Rig;
use super::token::Token;

/// Answers until the socket closes.
pub(super) fn run(socket: &mut UnixStream, loaded: Result<Doctor, Fault>) -> io::Result<()> {
    let mut doctor = match loaded {
        Ok(doctor) => doctor,
        Err(fault) => return answer(socket, Err(fault)),
    };
    answer(socket, Ok(Reply::Attending))?;
    let mut rig = None;
    let mut token = None;
    let mut ceremony = None;
    while let Ok(errand) = message::read::<Errand>(socket) {
        let result = match errand {
            Errand::Examine(exam) => doctor
                .examine(exam)
                .map(|finding| Reply::Found(Box::new(finding))),
            Errand::Prepare { bits, first } => doctor
                .logged_in()
                .and_then(|token| Rig::new(token, bits, first))
                .map(|made| {
                    rig = Some(made);
                    Reply::Attending
                }),
            Errand::Measure(run) => match &rig {
                Some(rig) => Rig::measure(rig, run).map(Reply::Measured),
                None => Err(doctor.not_logged_in()),
            },
            Errand::Import(asked) => open(&mut doctor, &mut token).and_then(|token| {
                import::import(token, &asked).map(|done| Reply::Imported(Box::new(done)))
            }),
            Errand::Undo(id) => open(&mut doctor, &mut token)
                .and_then(|token| import::undo(token, &id).map(Reply::Undone)),
            Errand::Adopt(mends) => open(&mut doctor, &mut token).and_then(|token| {
                adopt::adopt(token, &mends).map(|seen| Reply::Adopted(Box::new(seen)))
            }),
            Errand::Ceremony(step) => held(&mut doctor, &mut ceremony)
                .and_then(|ceremony| ceremony.step(*step))
                .map(Reply::Ceremony),
        };
        answer(socket, result)?;
    }
    if let Some(rig) = rig {
        rig.leave();
    }
    Ok(())
}

/// The token, logged in to at the first errand that needs it.
fn open<'a>(doctor: &mut Doctor, token: &'a mut Option<Token>) -> Result<&'a Token, Fault> {
    match token {
        Some(token) => Ok(token),
        None => Ok(token.insert(doctor.logged_in()?)),
    }
}

/// The ceremony, logged in at its first step.
fn held<'a>(
    doctor: &mut Doctor,
    ceremony: &'a mut Option<Ceremony>,
) -> Result<&'a mut Ceremony, Fault> {
    match ceremony {
        Some(ceremony) => Ok(ceremony),
        None => Ok(ceremony.insert(Ceremony::begin(doctor)?)),
    }
}

fn answer(socket: &mut UnixStream, result: Result<Reply, Fault>) -> io::Result<()> {
    message::write(socket, &Response { id: 0, result })
}
