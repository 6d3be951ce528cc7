//! Which refusals are final, and after which another key server is asked.

use crate::problem::{EkmCode, Problem};

/// What follows from a server's refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the answer. No other server is asked: what one server forbids, another whose tables are
    /// behind must not allow.
    Final,
    /// This server lacks knowledge of its own. The next one is asked, and this one stays in use.
    Elsewhere,
    /// This server cannot answer now. The next one is asked, and this one is looked at.
    Unable,
}

/// The table: code, verdict, and the reason for it.
pub const VERDICTS: [(EkmCode, Verdict, &str); 8] = [
    (
        EkmCode::EE0F,
        Verdict::Unable,
        "no token, too many requests, state or records that fail, a defect: of this server, and now",
    ),
    (
        EkmCode::EE23,
        Verdict::Final,
        "a request that one server does not understand is wrong for all",
    ),
    (
        EkmCode::EE25,
        Verdict::Final,
        "the drive's row does not fit the request; a person must mend the row",
    ),
    (
        EkmCode::EE2B,
        Verdict::Final,
        "the drive's key is not the one that is trusted: that must not be tried on one server after another",
    ),
    (
        EkmCode::EE30,
        Verdict::Final,
        "the rules forbid it; marked elsewhere where only the server's history of the cartridge is missing",
    ),
    (
        EkmCode::EE31,
        Verdict::Final,
        "the KEK is there and may not serve; marked elsewhere where no token there has a KEK of that label",
    ),
    (
        EkmCode::EE32,
        Verdict::Elsewhere,
        "no token there opens the cartridge's EEDKs; another server may have the KEK",
    ),
    (
        EkmCode::EF01,
        Verdict::Final,
        "a drive that was taken out of the table must not get its keys from a server whose table is behind",
    ),
];

impl Verdict {
    /// What follows from that refusal. The server itself says which are for want of knowledge
    /// ([`Problem::elsewhere`]); otherwise the code decides.
    #[must_use]
    pub fn of(problem: &Problem) -> Self {
        if problem.elsewhere {
            return Self::Elsewhere;
        }
        let row = VERDICTS.iter().find(|(code, _, _)| *code == problem.code);
        row.map_or(Self::Final, |(_, verdict, _)| *verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_row_and_only_one() {
        for code in EkmCode::ALL {
            let rows = VERDICTS.iter().filter(|(of, _, _)| *of == code).count();
            assert_eq!(rows, 1, "{code}");
        }
    }

    #[test]
    fn who_may_have_a_key_is_decided_by_the_server_that_answers() {
        for (code, verdict) in [
            (EkmCode::EF01, Verdict::Final),
            (EkmCode::EE2B, Verdict::Final),
            (EkmCode::EE30, Verdict::Final),
            (EkmCode::EE31, Verdict::Final),
            (EkmCode::EE32, Verdict::Elsewhere),
            (EkmCode::EE0F, Verdict::Unable),
        ] {
            assert_eq!(Verdict::of(&Problem::new(code, 403, "")), verdict, "{code}");
        }
        let unknown_here = Problem {
            elsewhere: true,
            ..Problem::new(EkmCode::EE30, 403, "never issued here")
        };
        assert_eq!(Verdict::of(&unknown_here), Verdict::Elsewhere);
    }

    #[test]
    fn a_server_of_before_that_mark_is_understood() {
        let text =
            r#"{"type":"urn:ekm:code:EE30","title":"","status":403,"detail":"","code":"EE30"}"#;
        let problem: Problem = serde_json::from_str(text).unwrap();
        assert_eq!(Verdict::of(&problem), Verdict::Final);
    }
}
