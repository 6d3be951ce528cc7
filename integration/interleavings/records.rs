//! What was answered, held against the audit log.

use std::collections::BTreeMap;
use std::path::Path;

use ekm::audit::{self, Outcome, Record};
use ekm::problem::Problem;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use uuid::Uuid;

/// Every answer by its request's id.
#[derive(Default)]
pub(super) struct Answers(BTreeMap<String, Answer>);

enum Answer {
    /// What was asked for, by this record.
    Given { record: u64 },
    /// This code, with these words.
    Refused { code: String, detail: String },
}

impl Answers {
    pub(super) fn given(&mut self, id: Uuid, record: u64) {
        self.0.insert(id.to_string(), Answer::Given { record });
    }

    pub(super) fn refused(&mut self, id: Uuid, problem: &Problem) {
        let refused = Answer::Refused {
            code: problem.code.to_string(),
            detail: problem.detail.clone(),
        };
        self.0.insert(id.to_string(), refused);
    }

    /// The log must be whole, and have for each answer one outcome that says the same.
    pub(super) fn check(&self, log: &Path) -> Result<(), TestCaseError> {
        let verified = audit::verify(log);
        prop_assert!(verified.is_ok(), "{:?}", verified.err());
        let mut records: BTreeMap<String, Vec<Record>> = BTreeMap::new();
        for record in audit::read(log).unwrap().map(Result::unwrap) {
            if let Some(id) = &record.event.request {
                records.entry(id.clone()).or_default().push(record);
            }
        }
        for (id, answer) in &self.0 {
            let all = records.remove(id).unwrap_or_default();
            let ends: Vec<&Record> = all
                .iter()
                .filter(|record| record.event.outcome != Outcome::Intent)
                .collect();
            let right = match (answer, ends.as_slice()) {
                (Answer::Given { record }, [end]) => {
                    end.event.outcome == Outcome::Success
                        && all.iter().any(|one| one.seq == *record)
                }
                (Answer::Refused { code, detail }, [end]) => {
                    end.event.outcome == Outcome::Failure
                        && end.event.code.as_ref() == Some(code)
                        && end.event.detail.as_ref() == Some(detail)
                }
                (Answer::Given { .. } | Answer::Refused { .. }, _) => false,
            };
            prop_assert!(
                right,
                "the record of {id} is not what was answered: {all:?}"
            );
        }
        prop_assert!(records.is_empty(), "nobody asked for {records:?}");
        Ok(())
    }
}
