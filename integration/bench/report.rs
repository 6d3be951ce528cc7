//! What was found, for people and for programs.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use crate::plan::{CONNECTIONS, Figure, Part, Series};
use crate::process::{machine, mib};
use crate::raw::Exchange;
use crate::storm::Outcome;

/// All parts of a run, and where it ran.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) machine: String,
    pub(crate) versions: String,
    pub(crate) parts: Vec<Part>,
    /// None where it was not asked for.
    pub(crate) storms: Vec<Outcome>,
}

impl Report {
    /// A report without parts yet.
    pub(crate) fn new(ekm: &Path) -> anyhow::Result<Self> {
        let output = Command::new(ekm)
            .arg("--version")
            .output()
            .with_context(|| format!("cannot run {}", ekm.display()))?;
        let mut versions = vec![String::from_utf8_lossy(&output.stdout).trim().to_owned()];
        for package in ["softhsm2", "p11-kit"] {
            let asked = Command::new("dpkg-query")
                .args(["-W", "-f=${Version}", package])
                .output();
            if let Ok(output) = asked
                && output.status.success()
            {
                let version = String::from_utf8_lossy(&output.stdout);
                versions.push(format!("{package} {version}"));
            }
        }
        Ok(Self {
            machine: machine(),
            versions: versions.join(", "),
            parts: Vec::new(),
            storms: Vec::new(),
        })
    }

    /// Markdown.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("{}; {}.\n", self.machine, self.versions);
        for part in &self.parts {
            // Writing to a String does not fail.
            let _ = write!(
                text,
                "\n**{}, RSA-{}** (bare loop: {} threads are the most that pay)\n\n\
                 | | per second | of the bare loop | p50 ms | p99 ms | p50 added ms | CPU µs: load, server, bridge |\n\
                 |---|---:|---:|---:|---:|---:|---:|\n",
                part.kind, part.bits, part.threads
            );
            for (exchange, points) in &part.raw {
                let name = match exchange {
                    Exchange::Decrypt => "bare `C_Decrypt`",
                    Exchange::Rewrap => "bare resolve: unwrap, wrap, destroy",
                    Exchange::Create => "bare create: generate, wrap twice, destroy",
                    Exchange::Proved => "bare create with its proof",
                };
                rows(&mut text, name, "thread", points);
            }
            rows(&mut text, "bridge, resolve", "at once", &part.bridge);
            rows(&mut text, "server, resolve", "connection", &part.resolve);
            let name = "server, create (of the bare create with its proof)";
            rows(&mut text, name, "connection", &part.create);
            if part.server_pss > 0 {
                let _ = writeln!(
                    text,
                    "\nMemory at the end (PSS): server {:.1} MiB, bridge {:.1} MiB.",
                    mib(part.server_pss),
                    mib(part.bridges_pss)
                );
            }
        }
        if !self.storms.is_empty() {
            text.push('\n');
            text.push_str(&storm_table(&self.storms));
        }
        text
    }

    /// JSON: the first part at the top, all of them under `parts`, and the
    /// storms under `storm`.
    pub(crate) fn json(&self) -> anyhow::Result<String> {
        let mut top = Map::new();
        top.insert("machine".into(), self.machine.clone().into());
        top.insert("versions".into(), self.versions.clone().into());
        if let Some(first) = self.parts.first() {
            top.extend(of_part(first));
        }
        let parts: Vec<Value> = self.parts.iter().map(|part| of_part(part).into()).collect();
        top.insert("parts".into(), parts.into());
        top.insert("storm".into(), serde_json::to_value(&self.storms)?);
        Ok(serde_json::to_string_pretty(&top)? + "\n")
    }
}

/// Storms in Markdown.
pub(crate) fn storm_table(storms: &[Outcome]) -> String {
    let mut text = String::from(
        "**Mount storm, SoftHSM in process, RSA-2048** (meanwhile another peer asks one thing at a time)\n\n\
         | | got their key | refused | all within s | p50 s | p99 s | other peer's p99 ms, alone | in the storm |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for storm in storms {
        let Outcome {
            name,
            got,
            refused,
            all_s,
            p50_s,
            p99_s,
            other_p99_alone_ms,
            other_p99_in_the_storm_ms,
        } = storm;
        let _ = writeln!(
            text,
            "| {name} | {got} | {refused} | {all_s:.1} | {p50_s:.2} | {p99_s:.2} | {other_p99_alone_ms:.1} | {other_p99_in_the_storm_ms:.1} |"
        );
    }
    text
}

fn rows(text: &mut String, name: &str, unit: &str, points: &Series) {
    let mut order: Vec<String> = std::iter::once(1)
        .chain(CONNECTIONS)
        .map(|point| point.to_string())
        .collect();
    order.dedup();
    for point in order {
        if let Some(figure) = points.get(&point) {
            let plural = if point == "1" { "" } else { "s" };
            let unit = if unit == "at once" {
                unit.to_owned()
            } else {
                format!("{unit}{plural}")
            };
            row(text, &format!("{name}, {point} {unit}"), figure);
        }
    }
    // Where it stands under its own number already, it needs no second row.
    let has_points = points.len() > 2;
    if let Some(figure) = points.get("saturation")
        && !has_points
    {
        row(text, &format!("{name}, saturated"), figure);
    }
}

fn row(text: &mut String, name: &str, figure: &Figure) {
    let Figure {
        per_s,
        ratio,
        p50_ms,
        p99_ms,
        added_p50_ms,
        cpu,
    } = figure;
    let cpu = if cpu.bridges_us > 0.0 {
        format!(
            "{:.0}, {:.0}, {:.0}",
            cpu.load_us, cpu.server_us, cpu.bridges_us
        )
    } else {
        String::new()
    };
    let _ = writeln!(
        text,
        "| {name} | {per_s:.0} | {ratio:.2} | {p50_ms:.2} | {p99_ms:.2} | {added_p50_ms:.2} | {cpu} |"
    );
}

fn of_part(part: &Part) -> Map<String, Value> {
    let Part {
        kind,
        bits,
        threads,
        raw,
        bridge,
        resolve,
        create,
        server_pss,
        bridges_pss,
    } = part;
    let mut map = Map::new();
    map.insert("token".into(), kind.to_string().into());
    map.insert("kek_bits".into(), (*bits).into());
    map.insert("threads_that_pay".into(), (*threads).into());
    let raw: Map<String, Value> = raw
        .iter()
        .map(|(exchange, points)| {
            let name = match exchange {
                Exchange::Decrypt => "decrypt",
                Exchange::Rewrap => "rewrap",
                Exchange::Create => "create",
                Exchange::Proved => "create_proved",
            };
            (name.to_owned(), of_series(points, "ratio_to_raw_rewrap"))
        })
        .collect();
    map.insert("raw".into(), raw.into());
    for (name, points, ratio) in [
        ("resolve_by_bridge", bridge, "ratio_to_raw_rewrap"),
        ("resolve_over_tls", resolve, "ratio_to_raw_rewrap"),
        ("create_over_tls", create, "ratio_to_raw_create_proved"),
    ] {
        map.insert(name.into(), of_series(points, ratio));
    }
    map.insert(
        "pss_mib".into(),
        json!({ "server": mib(*server_pss), "bridges": mib(*bridges_pss) }),
    );
    map
}

fn of_series(points: &Series, ratio_name: &str) -> Value {
    let points: Map<String, Value> = points
        .iter()
        .map(|(point, figure)| {
            let Figure {
                per_s,
                ratio,
                p50_ms,
                p99_ms,
                added_p50_ms,
                cpu,
            } = figure;
            let all = cpu.load_us + cpu.server_us + cpu.bridges_us;
            let figure = json!({
                "per_s": per_s,
                ratio_name: ratio,
                "p50_ms": p50_ms,
                "p99_ms": p99_ms,
                "added_p50_ms": added_p50_ms,
                "cpu": cpu,
                "load_generator_share_of_cpu": if all > 0.0 { cpu.load_us / all } else { 0.0 },
            });
            (point.clone(), figure)
        })
        .collect();
    points.into()
}
