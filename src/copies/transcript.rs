//! What an auditor keeps of a ceremony: a text without secrets.

use std::fmt::Write as _;

/// A transcript that is being written.
#[derive(Clone, Debug, Default)]
pub struct Transcript(String);

impl Transcript {
    /// With its title.
    #[must_use]
    pub fn new(title: &str) -> Self {
        Self(format!("{title}\n{}\n", "=".repeat(title.chars().count())))
    }

    /// Begins a section.
    pub fn section(&mut self, name: &str) {
        self.put(&format!("\n{name}\n"));
    }

    /// A name and its value.
    pub fn line(&mut self, name: &str, value: impl std::fmt::Display) {
        self.put(&format!("  {name:<22} {value}\n"));
    }

    /// A sentence.
    pub fn note(&mut self, text: &str) {
        self.put(&format!("  - {text}\n"));
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    fn put(&mut self, text: &str) {
        // Nothing of a label or an error message may look like a line of its own.
        for (index, line) in text.split('\n').enumerate() {
            if index > 0 {
                self.0.push('\n');
            }
            let shown = line.replace(char::is_control, " ");
            // Writing to a string does not fail.
            let _ = self.0.write_str(&shown);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_as_sections_of_lines() {
        let mut transcript = Transcript::new("Ceremony");
        transcript.section("Who");
        transcript.line("operator", "uid 0");
        transcript.note("nothing else");
        assert_eq!(
            transcript.text(),
            "Ceremony\n========\n\nWho\n  operator               uid 0\n  - nothing else\n"
        );
    }
}
