//! The loop of a bridge that is asked one thing after another.

use std::io;
use std::os::unix::net::UnixStream;

use super::doctor::Doctor;
use super::faults::Fault;
use super::message::{self, Errand, Reply, Response};
use super::rates::Rig;

/// Answers until the socket closes.
pub(super) fn run(socket: &mut UnixStream, loaded: Result<Doctor, Fault>) -> io::Result<()> {
    let mut doctor = match loaded {
        Ok(doctor) => doctor,
        Err(fault) => return answer(socket, Err(fault)),
    };
    answer(socket, Ok(Reply::Attending))?;
    let mut rig = None;
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
        };
        answer(socket, result)?;
    }
    if let Some(rig) = rig {
        rig.leave();
    }
    Ok(())
}

fn answer(socket: &mut UnixStream, result: Result<Reply, Fault>) -> io::Result<()> {
    message::write(socket, &Response { id: 0, result })
}
