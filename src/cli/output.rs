//! Tables that fit a terminal, and JSON for scripts.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// Prints a value as JSON, indented.
pub(super) fn json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

/// What becomes of a table's columns where the terminal is too narrow for all of them, by name.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Narrow<'a> {
    /// Never cut, however long: hashes and the like, which make no sense in parts.
    pub(super) whole: &'a [&'a str],
    /// Left out, the first one first: what another command shows.
    pub(super) drops: &'a [&'a str],
    /// Printed under the row, the first one first.
    pub(super) below: &'a [&'a str],
}

/// Columns that are short and make no sense in parts, in whichever table.
const SHORT: [&str; 14] = [
    "volser", "serial", "drive", "state", "place", "time", "created", "began", "when", "made",
    "until", "since", "hash", "dki",
];

/// How long a value of those may be at most.
const SHORTEST: usize = 28;

/// How much of a word a column has at least, where words are longer: labels have 64 characters.
const WORD: usize = 20;

/// What stands before a column and after it.
const PADDING: usize = 2;

/// What stands before that which is printed under a row.
const INDENT: &str = "     ";

/// Prints rows under a head, fitted to the terminal; whole where there is none.
pub(super) fn table(
    head: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> anyhow::Result<()> {
    table_narrow(Narrow::default(), head, rows)
}

/// The same with columns of hashes, dates and the like, which make no sense in parts: the others
/// are wrapped for them.
pub(super) fn table_with_names(
    whole: &[&str],
    head: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> anyhow::Result<()> {
    let narrow = Narrow {
        whole,
        ..Narrow::default()
    };
    table_narrow(narrow, head, rows)
}

/// The same with all that is said of a narrow terminal.
pub(super) fn table_narrow(
    narrow: Narrow<'_>,
    head: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> anyhow::Result<()> {
    let rows: Vec<Vec<String>> = rows.into_iter().collect();
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(head.iter().map(|cell| cell.to_uppercase()));
    let columns = columns(narrow, head, &rows);
    if let Some(width) = terminal_width()
        && taken(&columns, |column| column.natural) > width
    {
        let (columns, gone) = dropped(narrow, columns, width);
        let lines = fitted(narrow, columns, head, &rows, width);
        lines.iter().try_for_each(|line| say(line))?;
        return left_out(&gone).map_or(Ok(()), |line| say(&line));
    }
    for row in rows {
        table.add_row(row);
    }
    for line in table.lines() {
        say(line.trim_end())?;
    }
    Ok(())
}

/// A column, where it stands in a row, and how wide it would and must be.
#[derive(Clone, Copy, Debug)]
struct Column<'a> {
    place: usize,
    name: &'a str,
    natural: usize,
    least: usize,
    width: usize,
}

fn length(text: &str) -> usize {
    text.chars().count()
}

fn columns<'a>(narrow: Narrow<'_>, head: &[&'a str], rows: &[Vec<String>]) -> Vec<Column<'a>> {
    let column = |(place, name): (usize, &&'a str)| {
        let name: &'a str = name;
        let cells = || rows.iter().filter_map(move |row| row.get(place));
        let header = length(name);
        let longest = cells().flat_map(|cell| cell.lines()).map(length).max();
        let natural = header.max(longest.unwrap_or_default());
        let word = cells().flat_map(|cell| cell.split_whitespace()).map(length);
        let word = word.max().unwrap_or_default();
        let short = SHORT.contains(&name) && natural <= SHORTEST;
        let least = if short || narrow.whole.contains(&name) {
            natural
        } else {
            header.max(word.min(WORD))
        };
        Column {
            place,
            name,
            natural,
            least,
            width: least,
        }
    };
    head.iter().enumerate().map(column).collect()
}

/// The columns that a line takes; what stands after the last one is not printed.
fn taken(columns: &[Column<'_>], of: impl Fn(&Column<'_>) -> usize) -> usize {
    let all: usize = columns.iter().map(|column| of(column) + PADDING).sum();
    all.saturating_sub(1)
}

fn fit(columns: &[Column<'_>], width: usize) -> bool {
    taken(columns, |column| column.least) <= width
}

/// The columns without those that are left out for want of room, and these.
fn dropped<'a>(
    narrow: Narrow<'_>,
    mut shown: Vec<Column<'a>>,
    width: usize,
) -> (Vec<Column<'a>>, Vec<&'a str>) {
    let mut gone = Vec::new();
    for name in narrow.drops {
        if !fit(&shown, width) {
            let these = shown.iter().filter(|column| column.name == *name);
            gone.extend(these.map(|column| column.name));
            shown.retain(|column| column.name != *name);
        }
    }
    (shown, gone)
}

/// Says which columns are left out, and where they are to be had.
fn left_out(gone: &[&str]) -> Option<String> {
    let names = gone.join(", ").to_uppercase();
    (!gone.is_empty()).then(|| format!("no room for {names}; a wider terminal or --json shows all"))
}

/// The lines of a table that does not fit: columns that give way are wrapped, and those that there
/// is no room for stand under their rows.
fn fitted(
    narrow: Narrow<'_>,
    mut shown: Vec<Column<'_>>,
    head: &[&str],
    rows: &[Vec<String>],
    width: usize,
) -> Vec<String> {
    let mut under: Vec<usize> = Vec::new();
    for name in narrow.below {
        if !fit(&shown, width) {
            let gone = shown.iter().filter(|column| column.name == *name);
            under.extend(gone.map(|column| column.place));
            shown.retain(|column| column.name != *name);
        }
    }
    // Nobody said which: the widest that can be wrapped, and the first one never.
    while !fit(&shown, width) {
        let others = shown.iter().enumerate().skip(1);
        let widest = others.max_by_key(|(_, column)| (column.least < column.natural, column.least));
        let Some((at, _)) = widest else {
            break;
        };
        under.push(shown.remove(at).place);
    }
    under.sort_unstable();
    // What is left goes to those that have the least of what they would need.
    for _ in taken(&shown, |column| column.width)..width {
        let short = shown
            .iter_mut()
            .filter(|column| column.width < column.natural)
            .max_by_key(|column| column.natural - column.width);
        if let Some(column) = short {
            column.width += 1;
        }
    }

    let mut lines = side_by_side(&shown, |column| vec![column.name.to_uppercase()]);
    for row in rows {
        let cell = |place: usize| row.get(place).map_or("", String::as_str);
        lines.extend(side_by_side(&shown, |column| {
            wrapped(cell(column.place), column.width)
        }));
        let pairs = under.iter().filter_map(|place| {
            let name = head.get(*place)?;
            let text = cell(*place);
            (!text.is_empty() && text != "-").then(|| format!("{name} {text}"))
        });
        let below = one_after_another(pairs, width.saturating_sub(INDENT.len()));
        lines.extend(below.iter().map(|line| format!("{INDENT}{line}")));
    }
    lines
}

/// Names with their values, in as few lines as they go into without being broken.
fn one_after_another(pairs: impl Iterator<Item = String>, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for pair in pairs {
        let used = lines.last().map(|line| length(line));
        let fits = used.is_some_and(|used| used + PADDING + length(&pair) <= width);
        if fits && let Some(line) = lines.last_mut() {
            line.push_str("  ");
            line.push_str(&pair);
        } else {
            lines.extend(wrapped(&pair, width));
        }
    }
    lines
}

/// The lines of a row of cells that have lines themselves.
fn side_by_side(columns: &[Column<'_>], cell: impl Fn(&Column<'_>) -> Vec<String>) -> Vec<String> {
    let cells: Vec<Vec<String>> = columns.iter().map(cell).collect();
    let most = cells.iter().map(Vec::len).max().unwrap_or_default();
    let line = |number: usize| {
        let parts = columns.iter().zip(&cells).map(|(column, lines)| {
            let part = lines.get(number).map_or("", String::as_str);
            format!(" {part:width$} ", width = column.width)
        });
        parts.collect::<String>().trim_end().to_owned()
    };
    (0..most).map(line).collect()
}

/// A text in lines of that many characters: broken between words, and inside one that is longer.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            let mut word = word;
            if !line.is_empty() && length(&line) + 1 + length(word) > width {
                lines.push(std::mem::take(&mut line));
            }
            while let Some((end, _)) = word.char_indices().nth(width) {
                let (part, rest) = word.split_at(end);
                lines.push(part.to_owned());
                word = rest;
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines
}

/// Prints names and values, one pair a line.
pub(super) fn fields(pairs: &[(&str, String)]) -> anyhow::Result<()> {
    let width = pairs
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or_default();
    for (name, value) in pairs {
        say(&format!("{name:width$}  {value}"))?;
    }
    Ok(())
}

/// The same with values that are sentences: fitted to the terminal; whole where there is none.
pub(super) fn fields_of_prose(pairs: &[(&str, String)]) -> anyhow::Result<()> {
    match terminal_width() {
        Some(width) => beside(pairs, width).iter().try_for_each(|line| say(line)),
        None => fields(pairs),
    }
}

/// Names, and beside them their values in as many lines as they need.
fn beside(pairs: &[(&str, String)], width: usize) -> Vec<String> {
    let names = pairs.iter().map(|(name, _)| length(name)).max();
    let names = names.unwrap_or_default();
    let room = width.saturating_sub(names + PADDING).max(WORD);
    let mut lines = Vec::new();
    for (name, value) in pairs {
        let mut name = *name;
        let mut parts = wrapped(value, room);
        if parts.is_empty() {
            parts.push(String::new());
        }
        for line in parts {
            lines.push(format!("{name:names$}  {line}"));
            name = "";
        }
    }
    lines
}

/// Prints a sentence or more, fitted to the terminal; in one line where there is none.
pub(super) fn prose(text: &str) -> anyhow::Result<()> {
    match terminal_width() {
        Some(width) => wrapped(text, width).iter().try_for_each(|line| say(line)),
        None => say(text),
    }
}

fn terminal_width() -> Option<usize> {
    let terminal = io::IsTerminal::is_terminal(&io::stdout());
    let width = Table::new().width().filter(|_| terminal);
    width.map(usize::from)
}

/// Prints a sentence or more, in lines of 80 columns at most.
pub(super) fn paragraph(text: &str) -> anyhow::Result<()> {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > 80 {
            say(&line)?;
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    say(&line)
}

/// Prints a line; an error where nobody reads any more.
pub(super) fn say(line: &str) -> anyhow::Result<()> {
    writeln!(io::stdout().lock(), "{line}")?;
    Ok(())
}

/// Says how far it is, or a warning, on standard error: standard output is for what came of it.
pub(super) fn tell(line: &str) {
    // Nobody need read it.
    let _ = writeln!(io::stderr(), "{line}");
}

/// `yes`, `no`, or a dash where the token does not say.
pub(super) const fn yes(flag: Option<bool>) -> &'static str {
    match flag {
        Some(true) => "yes",
        Some(false) => "no",
        None => "-",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_80(narrow: Narrow<'_>, head: &[&str], rows: &[&[&str]]) -> Vec<String> {
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|row| row.iter().copied().map(str::to_owned).collect())
            .collect();
        let columns = columns(narrow, head, &rows);
        let (columns, gone) = dropped(narrow, columns, 80);
        let mut lines = fitted(narrow, columns, head, &rows, 80);
        lines.extend(left_out(&gone));
        let long = lines.iter().find(|line| length(line) > 80);
        assert_eq!(long, None, "{}", lines.join("\n"));
        lines
    }

    fn words(lines: &[String]) -> Vec<&str> {
        lines
            .iter()
            .flat_map(|line| line.split_whitespace())
            .collect()
    }

    #[test]
    fn keks_at_80_columns_have_their_labels_states_and_hashes_in_one_piece() {
        let long = "A".repeat(64);
        let lines = at_80(
            crate::cli::kek::NARROW,
            &crate::cli::kek::HEAD,
            &[
                &[
                    "TAPE2026A",
                    "active",
                    "3072",
                    "token",
                    "generated",
                    "2 tokens, proven, stated",
                    "main, second",
                    "2036-11-25",
                    "0123456789abcdef",
                ],
                &[
                    long.as_str(),
                    "retired",
                    "4096",
                    "no private half",
                    "imported",
                    "-",
                    "main",
                    "-",
                    "fedcba9876543210",
                ],
            ],
        );
        let text = lines.join("\n");
        let words = words(&lines);
        for whole in [
            "LABEL",
            "STATE",
            "COPIES",
            "TOKEN",
            "HASH",
            "TAPE2026A",
            "active",
            "retired",
            "2036-11-25",
            "0123456789abcdef",
            "fedcba9876543210",
        ] {
            assert!(words.contains(&whole), "{whole} is in parts:\n{text}");
        }
        assert!(text.contains("no room for PROVENANCE"), "{text}");
        // The head, three lines of copies or fewer, the label in four, and what is left out.
        assert!(lines.len() <= 9, "{text}");
    }

    #[test]
    fn volumes_at_80_columns_have_everything_but_lists_of_keks_in_one_piece() {
        let keks = format!("{}:label, TAPE2026B:hash", "K".repeat(64));
        let lines = at_80(
            crate::cli::volume::NARROW,
            &[
                "volser", "place", "state", "dki", "gen", "keks", "drive", "created",
            ],
            &[&[
                "ABC123",
                "catalog",
                "superseded",
                "454b4d0123456789abcdef01",
                "2",
                keks.as_str(),
                "000001365054",
                "2026-11-25T10:00:00",
            ]],
        );
        let text = lines.join("\n");
        let words = words(&lines);
        for whole in [
            "VOLSER",
            "CREATED",
            "ABC123",
            "catalog",
            "superseded",
            "454b4d0123456789abcdef01",
            "2026-11-25T10:00:00",
            "TAPE2026B:hash",
        ] {
            assert!(words.contains(&whole), "{whole} is in parts:\n{text}");
        }
        assert!(text.contains("drive 000001365054"), "{text}");
    }

    #[test]
    fn a_table_of_which_nobody_said_anything_has_its_widest_column_under_the_rows() {
        let why = "because ".repeat(12);
        let lines = at_80(
            Narrow::default(),
            &["serial", "what was done", "by", "time", "why"],
            &[&[
                "000001365054",
                "aaaaaaaaaaaaaaaaaaaaaaaa bbbb",
                "operator:anna.with.a.long.name",
                "2026-11-25T10:00:00",
                why.as_str(),
            ]],
        );
        let text = lines.join("\n");
        let words = words(&lines);
        for whole in ["000001365054", "2026-11-25T10:00:00", "because", "TIME"] {
            assert!(words.contains(&whole), "{whole} is in parts:\n{text}");
        }
        assert!(text.contains("by operator:anna.with.a.long.name"), "{text}");
    }

    #[test]
    fn sentences_beside_a_name_go_on_under_their_beginning() {
        let pairs = [
            ("A1", "one two three four five six".to_owned()),
            ("  do", "seven".to_owned()),
        ];
        assert_eq!(
            beside(&pairs, 26),
            ["A1    one two three four", "      five six", "  do  seven"]
        );
    }

    #[test]
    fn words_are_broken_only_where_one_is_longer_than_the_line() {
        assert_eq!(wrapped("one two", 3), ["one", "two"]);
        assert_eq!(wrapped("one two", 7), ["one two"]);
        assert_eq!(wrapped("a 1234567", 3), ["a", "123", "456", "7"]);
        assert_eq!(wrapped("", 3), Vec::<String>::new());
    }
}
