//! `ekm token explain`

use std::io::{IsTerminal, stdout};

use crate::bridge::faults::{Asked, Explained, FaultClass, Source, explain};
use crate::bridge::profile::HsmProfile;
use crate::cli::{Context, output};

/// A row of the whole table with more codes than this names their number instead.
const NAMED: usize = 8;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Explain {
    /// The code of a message: CKR_DEVICE_ERROR, device_error or 0x30. Without
    /// it: the whole table.
    #[arg(value_name = "CODE")]
    code: Option<String>,

    /// The function that answered with it: `C_UnwrapKey`.
    #[arg(long, value_name = "FUNCTION")]
    function: Option<String>,

    /// Takes this profile's own rules into account: a shipped name, or the path
    /// of a .toml file.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
}

impl Explain {
    pub(in crate::cli) fn run(&self, context: &Context) -> anyhow::Result<()> {
        let asked = Asked::parse(self.code.as_deref(), self.function.as_deref())?;
        let rules = match &self.profile {
            Some(name) => HsmProfile::load(name)?.faults,
            None => Vec::new(),
        };
        let rows = explain(asked, &rules);
        if context.json {
            return output::json(&rows);
        }
        if asked.names_a_code() {
            return in_full(&rows);
        }
        output::table(
            &["class", "what ekm does", "what you may do"],
            FaultClass::ALL.map(|class| {
                vec![
                    class.to_string(),
                    class.action().to_owned(),
                    class.advice().to_owned(),
                ]
            }),
        )?;
        output::say("")?;
        output::paragraph(FaultClass::OPENING)?;
        output::say("")?;
        let (of_functions, in_general): (Vec<_>, Vec<_>) =
            rows.iter().partition(|row| !row.functions.is_empty());
        let cells = |row: &&Explained| vec![codes(row), row.class.to_string(), row.reason.clone()];
        if !in_general.is_empty() {
            let head = ["code", "class", "why"];
            output::table(&head, in_general.iter().map(cells))?;
            output::say("")?;
        }
        output::table(
            &["function", "code", "class", "why"],
            of_functions.iter().map(|row| {
                let mut cells = cells(row);
                cells.insert(0, functions(row));
                cells
            }),
        )?;
        if stdout().is_terminal() {
            output::say("\nekm token explain CODE --function FUNCTION says what you may do")?;
        }
        Ok(())
    }
}

/// Each row with all it says.
fn in_full(rows: &[Explained]) -> anyhow::Result<()> {
    for (index, row) in rows.iter().enumerate() {
        if index > 0 {
            output::say("")?;
        }
        let number = row
            .number
            .map_or_else(String::new, |number| format!(" ({number:#x})"));
        let mut fields = vec![
            ("code", format!("{}{number}", codes(row))),
            ("  from", functions(row)),
        ];
        fields.extend(
            row.standard
                .as_ref()
                .filter(|_| index == 0)
                .map(|text| ("  standard", text.clone())),
        );
        fields.push((
            "  class",
            match row.source {
                Source::Profile => format!("{} (the profile's own rule)", row.class),
                Source::Function | Source::Code | Source::Unlisted => row.class.to_string(),
            },
        ));
        fields.push(("  why", row.reason.clone()));
        fields.push(("  ekm", row.ekm.to_owned()));
        fields.push(("  you", row.operator.clone()));
        output::fields_of_prose(&fields)?;
    }
    Ok(())
}

fn functions(row: &Explained) -> String {
    if row.functions.is_empty() {
        "any".to_owned()
    } else {
        row.functions.join(", ")
    }
}

fn codes(row: &Explained) -> String {
    if row.others && row.codes.len() > NAMED {
        format!("{} others", row.codes.len())
    } else {
        row.codes.join(", ")
    }
}
