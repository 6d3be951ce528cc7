//! Tables that fit a terminal, and JSON for scripts.

use std::io::{self, Write};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use serde::Serialize;

/// Prints a value as JSON, indented.
pub(super) fn json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

/// Prints rows under a head, wrapped to the terminal; whole where there is none.
pub(super) fn table(
    head: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> anyhow::Result<()> {
    table_with_names(&[], head, rows)
}

/// The same with columns of hashes, dates and the like, which make no sense in parts: the others
/// are wrapped for them.
pub(super) fn table_with_names(
    whole: &[&str],
    head: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> anyhow::Result<()> {
    let mut table = built(whole, head, rows);
    if !io::IsTerminal::is_terminal(&io::stdout()) {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    for line in table.lines() {
        say(line.trim_end())?;
    }
    Ok(())
}

fn built(whole: &[&str], head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(head.iter().map(|cell| cell.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    for name in whole {
        let place = head.iter().position(|column| column == name);
        if let Some(column) = place.and_then(|place| table.column_mut(place)) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table
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

    #[test]
    fn a_hash_is_not_cut_at_80_columns() {
        let head = [
            "label",
            "bits",
            "custody",
            "provenance",
            "copies",
            "token",
            "valid until",
            "hash",
        ];
        let row = [
            "A label of many characters",
            "3072",
            "token",
            "restored",
            "2 tokens, proven, stated",
            "main, second",
            "2036-11-25",
            "0123456789abcdef",
        ];
        let rows = [row.map(str::to_owned).to_vec()];
        let mut table = built(&["hash", "valid until"], &head, rows);
        table.set_width(80);
        let text = table.to_string();
        assert!(text.contains("0123456789abcdef"), "{text}");
        assert!(text.contains("2036-11-25"), "{text}");
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
    }
}
