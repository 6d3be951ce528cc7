//! The documents show commands that the command line takes.

use clap::{CommandFactory as _, Parser as _};

use super::Cli;
use crate::migrate::properties::{Becomes, PROPERTIES};
use crate::migrate::stores::STORES;

const MIGRATING: &str = include_str!("../../docs/migrating-from-ekm.md");

/// The command lines in a document's code blocks that begin with `ekm`, as words. Lines that end in `\`
/// go on.
fn commands(document: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut block = None;
    let mut open = String::new();
    for line in document.lines() {
        let line = line.trim();
        if let Some(language) = line.strip_prefix("```") {
            block = match block {
                None => Some(language.to_owned()),
                Some(_) => None,
            };
            continue;
        }
        if block.as_deref() != Some("sh") {
            continue;
        }
        if let Some(more) = line.strip_suffix('\\') {
            open.push_str(more);
            continue;
        }
        open.push_str(line);
        let command = std::mem::take(&mut open);
        let command = command.split(" #").next().unwrap_or_default();
        let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        if words.first().is_some_and(|word| word == "ekm") {
            found.push(words);
        }
    }
    found
}

#[test]
fn every_command_of_the_migration_guide_is_one() {
    let commands = commands(MIGRATING);
    assert!(commands.len() > 25, "{}", commands.len());
    for words in commands {
        if let Err(error) = Cli::try_parse_from(&words) {
            panic!("{}:\n{error}", words.join(" "));
        }
    }
}

#[test]
fn every_noun_and_verb_that_the_guide_names_in_its_text_is_one() {
    let command = Cli::command();
    let mut named = 0;
    for quoted in MIGRATING.split('`').skip(1).step_by(2) {
        let mut words = quoted.split_whitespace();
        if words.next() != Some("ekm") {
            continue;
        }
        let Some(noun) = words.next() else { continue };
        named += 1;
        let found = command.find_subcommand(noun);
        let found = found.unwrap_or_else(|| panic!("{quoted}: no noun {noun}"));
        if found.has_subcommands() {
            let verb = words.next().unwrap_or_default();
            assert!(
                found.find_subcommand(verb).is_some(),
                "{quoted}: no verb {verb}"
            );
        }
    }
    assert!(named > 5, "{named}");
}

#[test]
fn the_guide_has_each_property_and_each_kind_of_keystore_as_the_program_has_it() {
    for row in PROPERTIES {
        let becomes = match row.becomes {
            Becomes::Config(key) => format!("`{key}`"),
            Becomes::Moved(what) => what.to_owned(),
            Becomes::Nothing => "-".to_owned(),
        };
        let line = format!("| `{}` | {becomes} | {} |", row.name, row.why);
        assert!(
            MIGRATING.contains(&line),
            "the guide lacks the line\n{line}"
        );
    }
    for kind in STORES {
        let names: Vec<String> = kind.names.iter().map(|name| format!("`{name}`")).collect();
        let line = format!(
            "| {} | {} | {} | {} | {} |",
            names.join(", "),
            kind.place,
            kind.fate,
            kind.how,
            kind.not
        );
        assert!(
            MIGRATING.contains(&line),
            "the guide lacks the line\n{line}"
        );
    }
    assert!(MIGRATING.replace('\n', " ").contains(crate::migrate::FIRST));
}
