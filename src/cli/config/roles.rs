//! `ekm config roles`

use serde::Serialize;

use crate::admin::{Act, Second};
use crate::cli::{Context, output};
use crate::config::Config;
use crate::operators::Role;

/// A line of the table.
#[derive(Serialize)]
struct Row {
    action: &'static str,
    meaning: &'static str,
    roles: &'static [Role],
    changes: bool,
    /// Whether it can wait for a second person.
    second_person: &'static str,
    /// Whether the configuration at hand says that it does; null where there is none.
    asked_for: Option<bool>,
}

/// Prints what each role may do; with the configuration's own wishes, where there is one.
pub(super) fn print(context: &Context) -> anyhow::Result<()> {
    let config = Config::draft(&context.config).ok();
    let rows: Vec<Row> = Act::ALL
        .iter()
        .map(|act| Row {
            action: act.name(),
            meaning: act.meaning(),
            roles: act.roles(),
            changes: !act.looks(),
            second_person: match act.second() {
                Second::Never => "-",
                Second::Executed => "can",
                Second::Permitted => "can, and is done by the first",
            },
            asked_for: config
                .as_ref()
                .map(|config| config.policy.approval.wants(*act)),
        })
        .collect();
    if context.json {
        return output::json(&rows);
    }
    let mark = |row: &Row, role: Role| {
        let may = row.roles.contains(&role);
        if may { "x" } else { "" }.to_owned()
    };
    output::table(
        &[
            "action",
            "oper",
            "drive",
            "key",
            "audit",
            "2nd",
            "what it does",
        ],
        rows.iter().map(|row| {
            vec![
                row.action.to_owned(),
                mark(row, Role::Operator),
                mark(row, Role::DriveAdmin),
                mark(row, Role::KeyAdmin),
                mark(row, Role::Auditor),
                match (row.asked_for, row.second_person) {
                    (_, "-") => String::new(),
                    (Some(true), _) => "asked".to_owned(),
                    (Some(false) | None, _) => "can".to_owned(),
                },
                row.meaning.to_owned(),
            ]
        }),
    )?;
    output::say("")?;
    output::paragraph(
        "oper, drive, key, audit: the roles operator, drive-admin, key-admin, auditor. The role owner may do everything. 2nd: can wait for a second person (policy.approval.actions); asked: the configuration says so. docs/operators.md",
    )
}
