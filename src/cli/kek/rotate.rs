//! `ekm kek rotate`, `ekm kek schedule`

use time::OffsetDateTime;

use super::{spinner, tell};
use crate::admin::{Command, OLD_EEDKS, Reply, RotateWanted, ScheduleAct, TAKEN_BACK};
use crate::cli::{Context, output, site, times};
use crate::key::KeyLabel;
use crate::store::{Every, MoveState};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Rotate {
    /// The KEK that is written under now.
    label: KeyLabel,
    /// The new one's label. Without it the month, the year or the counter at the end of the old
    /// one's goes on: TAPE-2026 becomes TAPE-2027, KEK1 becomes KEK2.
    #[arg(long, value_name = "LABEL")]
    new_label: Option<KeyLabel>,
    /// When it takes the old one's place: 2027-01-01 (00:00 UTC) or 2027-01-01T18:00:00+01:00.
    /// A time that is past is refused: without --at it is done now.
    #[arg(long, value_name = "TIME", value_parser = to_come)]
    at: Option<OffsetDateTime>,
    /// The token that the new one is made on; else one that has the old one.
    #[arg(long, value_name = "NAME")]
    token: Option<String>,
}

/// A time that is not past, but for a minute.
fn to_come(text: &str) -> Result<OffsetDateTime, String> {
    let at = times::parse(text)?;
    if at < OffsetDateTime::now_utc() - time::Duration::MINUTE {
        return Err(format!("{text} is past; leave --at out to rotate now"));
    }
    Ok(at)
}

impl Rotate {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self {
            label,
            new_label,
            at,
            token,
        } = self;
        let spinner = spinner(&format!("generating the KEK that follows {label}"));
        let reply = site::execute(
            context,
            Command::KekRotate(RotateWanted {
                label,
                new_label,
                at,
                token,
            }),
        );
        spinner.finish_and_clear();
        let rotated = match reply? {
            Reply::Rotated(rotated) => rotated,
            other => return site::out_of_turn(&other),
        };
        if context.json {
            return output::json(&rotated);
        }
        output::fields(&[
            ("new KEK", rotated.successor.to_string()),
            ("in the place of", rotated.former.to_string()),
            (
                "since",
                match rotated.state {
                    MoveState::Done => "now".to_owned(),
                    MoveState::Planned => format!("planned for {}", times::shown(rotated.due)),
                },
            ),
            (
                "what changed",
                rotated.note.clone().unwrap_or_else(|| "-".to_owned()),
            ),
        ])?;
        output::say("")?;
        output::paragraph(&format!(
            "Volumes under {0} stay under it and need it until they are rekeyed (ekm volume rekey \
             --from-kek {0} --kek1 {1} --all-of). Where their other EEDK is under a KEK that was \
             rotated too, name the one that took its place with --kek2. {OLD_EEDKS}",
            rotated.former, rotated.successor
        ))
    }
}

#[derive(Debug, clap::Subcommand)]
pub(in crate::cli) enum Schedule {
    /// Has a server rotate a KEK on the first day of each month or year, 00:00 UTC.
    Set {
        /// The KEK that is written under now. Its successor takes its place in the schedule too.
        label: KeyLabel,
        /// month or year.
        #[arg(long)]
        every: Every,
        /// When first, instead of when the next month or year begins.
        #[arg(long, value_name = "TIME", value_parser = times::parse)]
        first: Option<OffsetDateTime>,
    },
    /// Lists schedules, planned rotations and the last that were done.
    List,
    /// Takes a schedule away, and a planned rotation back.
    Remove {
        /// The KEK that it would rotate next, and that stays in use.
        label: KeyLabel,
    },
}

impl Schedule {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let act = match self {
            Self::Set {
                label,
                every,
                first,
            } => ScheduleAct::Set {
                label,
                every,
                first,
            },
            Self::List => ScheduleAct::List,
            Self::Remove { label } => ScheduleAct::Remove(label),
        };
        let rollovers = match site::execute(context, Command::KekSchedule(act))? {
            Reply::Rollovers(rollovers) => rollovers,
            other => return site::out_of_turn(&other),
        };
        if context.json {
            return output::json(&rollovers);
        }
        let schedules = rollovers.schedules.iter().map(|schedule| {
            vec![
                schedule.label.to_string(),
                format!("every {}", schedule.every),
                times::shown(schedule.due),
                "-".to_owned(),
            ]
        });
        let moves = rollovers.moves.iter().map(|planned| {
            vec![
                planned.former.to_string(),
                match (planned.state, planned.note.as_deref()) {
                    (MoveState::Planned, _) => "planned",
                    (MoveState::Done, Some(note)) if note.starts_with(TAKEN_BACK) => TAKEN_BACK,
                    (MoveState::Done, _) => "done",
                }
                .to_owned(),
                times::shown(planned.due),
                planned.successor.to_string(),
            ]
        });
        output::table_with_names(
            &["when"],
            &["kek", "rotation", "when", "successor"],
            schedules.chain(moves),
        )?;
        for label in &rollovers.left {
            tell(&format!(
                "{label} was made for the rotation that is taken back, and is left over, active; \
                 ekm kek retire {label}, then ekm kek delete {label} --destroy do away with it"
            ));
        }
        for schedule in &rollovers.schedules {
            if let Some(trouble) = &schedule.trouble {
                tell(&format!("{} was not rotated: {trouble}", schedule.label));
            }
        }
        for planned in &rollovers.moves {
            if let (MoveState::Planned, Some(note)) = (planned.state, &planned.note) {
                tell(note);
            }
        }
        Ok(())
    }
}
