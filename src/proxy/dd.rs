//! The operands of a DD statement that concern the key of its tape, in JCL's spelling.
//!
//! ```text
//! KEYLABL1=TAPE2026A,KEYENCD1=L,KEYLABL2='Partner, old',KEYENCD2=H,DISP=(NEW,KEEP),LABEL=(1,SL)
//! ```
//!
//! Outside of apostrophes lower case is taken as upper case; inside of them a text stays as it
//! is, and `''` stands for one apostrophe. Operands are separated by commas and no blanks: in JCL
//! a blank ends the operands and the rest is a comment, which here would be a label unseen.
//!
//! Source: z/OS MVS JCL Reference, the DD statement (DISP, LABEL, KEYLABL1, KEYENCD1, KEYLABL2,
//! KEYENCD2).

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::labels::{At, LabelFault, Labels, Operands};
use crate::key::{Encoding, KeyLabel, KeyLabelError};

/// Longest statement, characters: two labels of 64, each all apostrophes, and room for the rest.
const MAX_CHARS: usize = 1024;

/// What a DD statement says of the key of its tape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dd {
    /// KEYLABL1, KEYENCD1, KEYLABL2, KEYENCD2.
    pub(super) labels: Option<Labels>,
    /// DISP.
    pub(super) disp: Option<At<Disp>>,
    /// FILESEQ, or the first subparameter of LABEL; 1 to 65535.
    pub(super) file: Option<At<u16>>,
}

impl Dd {
    /// The labels.
    #[must_use]
    pub const fn labels(&self) -> Option<&Labels> {
        self.labels.as_ref()
    }

    /// DISP; NEW where nothing is said, as in JCL.
    #[must_use]
    pub fn disp(&self) -> Disp {
        self.disp.map_or(Disp::New, |disp| disp.value)
    }

    /// Whether DISP is said.
    #[must_use]
    pub const fn says_disp(&self) -> bool {
        self.disp.is_some()
    }

    /// The same with that DISP.
    ///
    /// # Errors
    /// It says another.
    pub fn with_disp(mut self, disp: Disp) -> Result<Self, DispTwice> {
        if self.says_disp() && self.disp() != disp {
            return Err(DispTwice {
                said: self.disp(),
                given: disp,
            });
        }
        self.disp.get_or_insert(At { value: disp, at: 1 });
        Ok(self)
    }

    /// Which file of the cartridge, from 1; 1 where nothing is said.
    #[must_use]
    pub fn file(&self) -> u16 {
        self.file.map_or(1, |file| file.value)
    }
}

/// The status of DISP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Disp {
    /// The file is made.
    New,
    /// The file is there, and is read. SHR is the same on tape.
    Old,
    /// Written at the end of what is there.
    Mod,
}

impl fmt::Display for Disp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::New => "NEW",
            Self::Old => "OLD",
            Self::Mod => "MOD",
        })
    }
}

/// A DISP beside a statement that says another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the DD statement says DISP={said}, and DISP={given} is given beside it")]
pub struct DispTwice {
    /// What the statement says.
    pub said: Disp,
    /// What is given.
    pub given: Disp,
}

/// Why a text is no DD statement, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("position {position}: {fault}")]
pub struct DdError {
    /// The character at which it was seen, from 1.
    pub position: usize,
    /// What is wrong.
    pub fault: DdFault,
}

/// What is wrong with a DD statement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DdFault {
    /// Longer than any statement need be.
    #[error("more than {MAX_CHARS} characters")]
    TooLong,
    /// A blank between or in operands.
    #[error("a blank, which ends a statement in JCL; put a label with blanks in apostrophes")]
    Blank,
    /// Something else than what must come here.
    #[error("expected {expected}, got {got}")]
    Expected {
        /// What must come here.
        expected: &'static str,
        /// What came.
        got: String,
    },
    /// An operand of which this knows nothing.
    #[error("{got:?} is none of KEYLABL1, KEYENCD1, KEYLABL2, KEYENCD2, DISP, FILESEQ and LABEL")]
    Keyword {
        /// What was given.
        got: String,
    },
    /// An operand twice; LABEL and FILESEQ both name the file.
    #[error("{keyword} is given a second time")]
    Twice {
        /// The operand.
        keyword: &'static str,
    },
    /// An apostrophe that is never closed.
    #[error("this apostrophe is not closed; one inside a label is written ''")]
    Open,
    /// A label that is none.
    #[error(transparent)]
    Label(#[from] KeyLabelError),
    /// Labels that do not go together.
    #[error(transparent)]
    Labels(#[from] LabelFault),
}

impl FromStr for Dd {
    type Err = DdError;

    fn from_str(given: &str) -> Result<Self, DdError> {
        let chars: Vec<char> = given
            .trim_matches(' ')
            .chars()
            .take(MAX_CHARS + 1)
            .collect();
        let before = given.chars().take_while(|c| *c == ' ').count();
        if chars.len() > MAX_CHARS {
            return Err(DdError {
                position: before + MAX_CHARS + 1,
                fault: DdFault::TooLong,
            });
        }
        let mut statement = Statement {
            chars,
            next: 0,
            before,
        };
        let mut dd = Self::default();
        let mut keks = Operands::default();
        if statement.peek().is_none() {
            return Ok(dd);
        }
        loop {
            statement.operand(&mut dd, &mut keks)?;
            if statement.peek().is_none() {
                break;
            }
            statement.take(',', "a comma before the next operand")?;
        }
        dd.labels = keks.labels().map_err(|faults| match faults.first() {
            Some(At { value, at }) => DdError {
                position: *at,
                fault: (*value).into(),
            },
            None => statement.unexpected("labels"),
        })?;
        Ok(dd)
    }
}

/// A statement and how far it has been read.
struct Statement {
    chars: Vec<char>,
    next: usize,
    /// Blanks before it, which count in positions.
    before: usize,
}

impl Statement {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.next).copied()
    }

    /// The position of the next character, from 1.
    const fn position(&self) -> usize {
        self.before + self.next + 1
    }

    fn unexpected(&self, expected: &'static str) -> DdError {
        let fault = match self.peek() {
            Some(' ') => DdFault::Blank,
            Some(got) => DdFault::Expected {
                expected,
                got: format!("{got:?}"),
            },
            None => DdFault::Expected {
                expected,
                got: "the end".to_owned(),
            },
        };
        DdError {
            position: self.position(),
            fault,
        }
    }

    fn take(&mut self, wanted: char, expected: &'static str) -> Result<(), DdError> {
        if self.peek() != Some(wanted) {
            return Err(self.unexpected(expected));
        }
        self.next += 1;
        Ok(())
    }

    /// What stands up to the next character that ends a word; upper case, perhaps empty.
    fn word(&mut self, ends: &str) -> At<String> {
        let at = self.position();
        let rest = self.chars.get(self.next..).unwrap_or_default();
        let value: String = rest
            .iter()
            .take_while(|c| c.is_ascii_graphic() && !ends.contains(**c))
            .map(char::to_ascii_uppercase)
            .collect();
        self.next += value.len();
        At { value, at }
    }

    fn quoted(&mut self) -> Result<At<String>, DdError> {
        let at = self.position();
        self.take('\'', "an apostrophe")?;
        let mut value = String::new();
        loop {
            let Some(c) = self.peek() else {
                return Err(DdError {
                    position: at,
                    fault: DdFault::Open,
                });
            };
            self.next += 1;
            if c == '\'' {
                if self.peek() != Some('\'') {
                    return Ok(At { value, at });
                }
                self.next += 1;
            }
            value.push(c);
        }
    }

    /// A word, or several in parentheses, each perhaps empty.
    fn words(&mut self) -> Result<Vec<At<String>>, DdError> {
        if self.peek() != Some('(') {
            return Ok(vec![self.word(",()'")]);
        }
        self.next += 1;
        let mut words = vec![self.word(",()'")];
        while self.peek() == Some(',') {
            self.next += 1;
            words.push(self.word(",()'"));
        }
        self.take(')', "a comma or the closing parenthesis")?;
        Ok(words)
    }

    fn label(&mut self) -> Result<At<KeyLabel>, DdError> {
        let text = if self.peek() == Some('\'') {
            self.quoted()?
        } else {
            let text = self.word(",()'&=");
            // A character that a word cannot have is told as such, not as an empty label.
            if !matches!(self.peek(), None | Some(',')) || text.value.is_empty() {
                return Err(self.unexpected(
                    "a label; in apostrophes unless it has only letters, digits and marks such as . - _ : $ # @",
                ));
            }
            text
        };
        let label = text.value.parse().map_err(|error: KeyLabelError| DdError {
            position: text.at,
            fault: error.into(),
        })?;
        Ok(At {
            value: label,
            at: text.at,
        })
    }

    fn encoding(&mut self) -> Result<At<Encoding>, DdError> {
        let word = self.word(",()'");
        let encoding = match word.value.as_str() {
            "L" => Encoding::Label,
            "H" => Encoding::Hash,
            _ => return Err(expected("L (label) or H (hash)", &word)),
        };
        Ok(At {
            value: encoding,
            at: word.at,
        })
    }

    /// Status, and what becomes of the file at the end of the step, which is checked only.
    fn disp(&mut self) -> Result<At<Disp>, DdError> {
        let at = self.position();
        let words = self.words()?;
        let mut words = words.iter();
        let status = words
            .next()
            .map_or(Ok(Disp::New), |word| match word.value.as_str() {
                "NEW" => Ok(Disp::New),
                "OLD" | "SHR" => Ok(Disp::Old),
                "MOD" => Ok(Disp::Mod),
                // DISP=(,KEEP) is NEW.
                "" if words.len() > 0 => Ok(Disp::New),
                _ => Err(expected("NEW, OLD, SHR or MOD", word)),
            })?;
        for (index, word) in words.enumerate() {
            match (index, word.value.as_str()) {
                (0 | 1, "" | "DELETE" | "KEEP" | "CATLG" | "UNCATLG") | (0, "PASS") => {}
                (0 | 1, _) => {
                    return Err(expected("DELETE, KEEP, PASS, CATLG or UNCATLG", word));
                }
                _ => return Err(expected("at most a status and two dispositions", word)),
            }
        }
        Ok(At { value: status, at })
    }

    /// Which file; what else LABEL says is checked only.
    fn label_file(&mut self) -> Result<Option<At<u16>>, DdError> {
        let words = self.words()?;
        let dated = |word: &str| word.starts_with("EXPDT=") || word.starts_with("RETPD=");
        let mut file = None;
        for (index, word) in words.iter().enumerate() {
            let text = word.value.as_str();
            match (index, text) {
                (_, text) if dated(text) && index + 1 == words.len() => {}
                (0, "") if words.len() > 1 => {}
                // In LABEL, and there only, zero stands for the first file.
                (0, "0") => {
                    file = Some(At {
                        value: 1,
                        at: word.at,
                    })
                }
                (0, _) => file = Some(file_number(word)?),
                (1..=3, "") => {}
                (1, "SL" | "SUL" | "AL" | "AUL" | "NSL" | "NL" | "BLP" | "LTM")
                | (2, "PASSWORD" | "NOPWREAD")
                | (3, "IN" | "OUT") => {}
                _ => {
                    return Err(expected(
                        "LABEL=(file,type,PASSWORD|NOPWREAD,IN|OUT,EXPDT=|RETPD=), type SL or another of JCL",
                        word,
                    ));
                }
            }
        }
        Ok(file)
    }

    fn operand(&mut self, dd: &mut Dd, keks: &mut Operands) -> Result<(), DdError> {
        let keyword = self.word(",()'=");
        if keyword.value.is_empty() {
            return Err(self.unexpected("a keyword such as KEYLABL1"));
        }
        if !matches!(
            keyword.value.as_str(),
            "KEYLABL1" | "KEYENCD1" | "KEYLABL2" | "KEYENCD2" | "DISP" | "FILESEQ" | "LABEL"
        ) {
            return Err(DdError {
                position: keyword.at,
                fault: DdFault::Keyword { got: keyword.value },
            });
        }
        self.take('=', "= and a value")?;
        let at = keyword.at;
        match keyword.value.as_str() {
            "KEYLABL1" => put(&mut keks.label1, self.label()?, "KEYLABL1", at),
            "KEYLABL2" => put(&mut keks.label2, self.label()?, "KEYLABL2", at),
            "KEYENCD1" => put(&mut keks.encoding1, self.encoding()?, "KEYENCD1", at),
            "KEYENCD2" => put(&mut keks.encoding2, self.encoding()?, "KEYENCD2", at),
            "DISP" => put(&mut dd.disp, self.disp()?, "DISP", at),
            "FILESEQ" => {
                let file = file_number(&self.word(",()'"))?;
                put(&mut dd.file, file, "the file (FILESEQ or LABEL)", at)
            }
            _ => match self.label_file()? {
                Some(file) => put(&mut dd.file, file, "the file (FILESEQ or LABEL)", at),
                None => Ok(()),
            },
        }
    }
}

fn put<T>(
    place: &mut Option<At<T>>,
    found: At<T>,
    keyword: &'static str,
    at: usize,
) -> Result<(), DdError> {
    if place.is_some() {
        return Err(DdError {
            position: at,
            fault: DdFault::Twice { keyword },
        });
    }
    // Where the operand begins is what a person looks for.
    *place = Some(At {
        value: found.value,
        at,
    });
    Ok(())
}

fn file_number(word: &At<String>) -> Result<At<u16>, DdError> {
    let digits = !word.value.is_empty() && word.value.bytes().all(|c| c.is_ascii_digit());
    match word.value.parse() {
        Ok(file @ 1..) if digits => Ok(At {
            value: file,
            at: word.at,
        }),
        _ => Err(expected("the number of a file, 1 to 65535", word)),
    }
}

fn expected(expected: &'static str, word: &At<String>) -> DdError {
    DdError {
        position: word.at,
        fault: DdFault::Expected {
            expected,
            got: format!("{:?}", word.value),
        },
    }
}
