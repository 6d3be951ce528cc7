//! A transport that answers as a test says, and remembers what it was asked.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Completion, Data, Transport, TransportError};
use crate::t10::Sense;

type Answer = dyn FnMut(&[u8], Data<'_>) -> Result<Completion, TransportError> + Send;

pub(crate) struct Scripted {
    answer: Box<Answer>,
    asked: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Scripted {
    pub(crate) fn new(
        answer: impl FnMut(&[u8], Data<'_>) -> Result<Completion, TransportError> + Send + 'static,
    ) -> Self {
        Self {
            answer: Box::new(answer),
            asked: Arc::default(),
        }
    }

    /// One that gives the same bytes to every command that reads, cut to what was asked for.
    pub(crate) fn saying(bytes: &[u8]) -> Self {
        let bytes = bytes.to_vec();
        Self::new(move |_, data| Ok(good(data, &bytes)))
    }

    /// One that gives these answers one after another, and the last one for ever.
    pub(crate) fn playing(mut answers: Vec<Completion>) -> Self {
        answers.reverse();
        Self::new(move |_, _| {
            let next = answers.last().unwrap().clone();
            if answers.len() > 1 {
                answers.pop();
            }
            Ok(next)
        })
    }

    /// The CDBs that came, in order.
    pub(crate) fn asked(&self) -> Arc<Mutex<Vec<Vec<u8>>>> {
        Arc::clone(&self.asked)
    }
}

impl Transport for Scripted {
    fn execute(
        &mut self,
        cdb: &[u8],
        data: Data<'_>,
        _limit: Duration,
    ) -> Result<Completion, TransportError> {
        self.asked.lock().unwrap().push(cdb.to_vec());
        (self.answer)(cdb, data)
    }

    fn name(&self) -> &str {
        "/dev/sg3"
    }
}

/// GOOD, with these bytes as far as there is room.
pub(crate) fn good(data: Data<'_>, bytes: &[u8]) -> Completion {
    let transferred = match data {
        Data::In(buffer) => {
            let len = buffer.len().min(bytes.len());
            buffer[..len].copy_from_slice(&bytes[..len]);
            len
        }
        data => data.len(),
    };
    Completion {
        status: Completion::GOOD,
        transferred,
        sense: Vec::new(),
    }
}

/// CHECK CONDITION with this sense.
pub(crate) fn check(sense: Sense) -> Completion {
    Completion {
        status: Completion::CHECK_CONDITION,
        transferred: 0,
        sense: sense.encode().to_vec(),
    }
}
