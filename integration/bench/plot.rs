//! The figures as a picture: panels of bars, one above the other, in SVG 1.1.

use std::fmt::Write as _;

use crate::plan::{CONNECTIONS, Figure, Part, Series};
use crate::process::mib;
use crate::raw::Exchange;
use crate::report::Report;
use crate::sample::float;
use crate::storm::Outcome;

/// Size of the picture and of a panel in it, pixels.
const WIDTH: f64 = 860.0;
const PANEL: f64 = 190.0;
const GAP: f64 = 92.0;
const LEFT: f64 = 56.0;
const LINE: f64 = 16.0;

/// Told apart also without colours: from dark to light.
const COLOURS: [&str; 4] = ["#1b3a5c", "#2f6ea5", "#6aa7d4", "#b7d5ec"];

/// A panel: groups of bars over one scale.
struct Panel {
    title: &'static str,
    legend: Vec<String>,
    /// For each part, one bar for each entry of the legend.
    groups: Vec<(String, Vec<f64>)>,
    /// A line across, and what it stands for.
    mark: Option<f64>,
}

/// Draws a report.
pub(crate) fn draw(report: &Report) -> String {
    let panels = panels(&report.parts);
    let mut head = vec![report.versions.clone(), report.machine.clone()];
    head.extend(report.storms.iter().map(storm));
    // Below the head, a panel's title and its legend.
    let mut top = LINE * float(head.len()) + 66.0;
    let height = top + float(panels.len()) * (PANEL + GAP) - GAP + 46.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for (number, line) in head.iter().enumerate() {
        let y = 20.0 + LINE * float(number);
        text(&mut svg, LEFT, y, "start", &escaped(line));
    }
    for panel in &panels {
        panel.draw(&mut svg, top);
        top += PANEL + GAP;
    }
    svg.push_str("</svg>\n");
    svg
}

/// A storm in a line.
fn storm(storm: &Outcome) -> String {
    format!(
        "Mount storm, {}: {} keys within {:.1} s, {} refused; another peer's p99 {:.1} ms, {:.1} alone",
        storm.name,
        storm.got,
        storm.all_s,
        storm.refused,
        storm.other_p99_in_the_storm_ms,
        storm.other_p99_alone_ms
    )
}

fn panels(parts: &[Part]) -> Vec<Panel> {
    let group = |values: fn(&Part) -> Vec<f64>| -> Vec<(String, Vec<f64>)> {
        parts
            .iter()
            .map(|part| (format!("{}|RSA-{}", part.kind, part.bits), values(part)))
            .collect()
    };
    let connections: Vec<String> = CONNECTIONS
        .iter()
        .map(|count| format!("{count} connection{}", if *count == 1 { "" } else { "s" }))
        .collect();
    let over_connections = |title: &'static str, values: fn(&Part) -> Vec<f64>| Panel {
        title,
        legend: connections.clone(),
        groups: group(values),
        mark: Some(1.0),
    };
    vec![
        over_connections(
            "Resolves a second over TLS, of the bare loop's (on one thread for 1 connection, on as many as pay for more)",
            |part| by_connections(&part.resolve, |figure| figure.ratio),
        ),
        over_connections(
            "Creates a second over TLS, of the bare loop's with their proof (threads likewise)",
            |part| by_connections(&part.create, |figure| figure.ratio),
        ),
        over_connections(
            "p50 of a resolve over TLS, in times of the bare loop's on one thread; connections wait for one another",
            |part| times(part, |figure| figure.p50_ms),
        ),
        over_connections(
            "p99 of a resolve over TLS, in times of the bare loop's on one thread; connections wait for one another",
            |part| times(part, |figure| figure.p99_ms),
        ),
        Panel {
            title: "p50 and p99 of a resolve over TLS on one connection, in times of the bare loop's on one thread",
            legend: vec!["p50".to_owned(), "p99".to_owned()],
            groups: group(|part| {
                let bare = part.raw.get(&Exchange::Rewrap).and_then(|raw| raw.get("1"));
                match (part.resolve.get("1"), bare) {
                    (Some(own), Some(bare)) => {
                        vec![own.p50_ms / bare.p50_ms, own.p99_ms / bare.p99_ms]
                    }
                    _ => vec![0.0, 0.0],
                }
            }),
            mark: Some(1.0),
        },
        Panel {
            title: "Memory at the end, PSS in MiB",
            legend: vec!["server".to_owned(), "bridge".to_owned()],
            groups: group(|part| vec![mib(part.server_pss), mib(part.bridges_pss)]),
            mark: None,
        },
    ]
}

/// One value for each number of connections; 0 where there is none.
fn by_connections(series: &Series, of: impl Fn(&Figure) -> f64) -> Vec<f64> {
    CONNECTIONS
        .iter()
        .map(|count| series.get(&count.to_string()).map_or(0.0, &of))
        .collect()
}

/// Resolves over TLS by connections, in times of the bare loop's on one thread.
fn times(part: &Part, of: fn(&Figure) -> f64) -> Vec<f64> {
    let bare = part.raw.get(&Exchange::Rewrap).and_then(|raw| raw.get("1"));
    by_connections(&part.resolve, |figure| {
        bare.map_or(0.0, |bare| of(figure) / of(bare))
    })
}

impl Panel {
    fn draw(&self, svg: &mut String, top: f64) {
        let highest = self
            .groups
            .iter()
            .flat_map(|(_, values)| values)
            .copied()
            .chain(self.mark)
            .fold(0.0, f64::max);
        let step = step(highest);
        let scale = PANEL / ((highest / step).ceil() * step).max(step);
        let bottom = top + PANEL;
        text(svg, LEFT, top - 36.0, "start", self.title);
        let mut at = 0.0;
        while at <= highest + step / 2.0 && bottom - at * scale >= top - 1.0 {
            let y = bottom - at * scale;
            line(svg, y, "#e0e0e0", "");
            text(svg, LEFT - 6.0, y + 4.0, "end", &label(at));
            at += step;
        }
        let groups = float(self.groups.len()).max(1.0);
        let room = (WIDTH - LEFT - 20.0) / groups;
        let bars = float(self.legend.len());
        let width = (room * 0.8 / bars).min(46.0);
        for (number, (name, values)) in self.groups.iter().enumerate() {
            let middle = LEFT + room * (float(number) + 0.5);
            let start = middle - width * bars / 2.0;
            for (index, (value, colour)) in values.iter().zip(COLOURS).enumerate() {
                let x = start + width * float(index);
                let height = value * scale;
                let y = bottom - height;
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>",
                    width - 2.0
                );
                text(
                    svg,
                    x + width / 2.0 - 1.0,
                    y - 3.0,
                    "middle",
                    &label(*value),
                );
            }
            let (kind, bits) = name.split_once('|').unwrap_or((name, ""));
            // All of them are of it, as the head says, and there is no room.
            let kind = kind.strip_prefix("SoftHSM ").unwrap_or(kind);
            text(svg, middle, bottom + 15.0, "middle", kind);
            text(svg, middle, bottom + 29.0, "middle", bits);
        }
        if let Some(mark) = self.mark {
            line(
                svg,
                bottom - mark * scale,
                "#b03030",
                " stroke-dasharray=\"4 3\"",
            );
        }
        let mut x = WIDTH - 20.0;
        for (name, colour) in self
            .legend
            .iter()
            .zip(COLOURS)
            .collect::<Vec<_>>()
            .iter()
            .rev()
        {
            x -= 16.0 + 7.0 * float(name.len());
            let y = top - 27.0;
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>"
            );
            text(svg, x + 13.0, y + 9.0, "start", name);
        }
    }
}

/// A distance between lines that gives three to seven of them.
fn step(highest: f64) -> f64 {
    let magnitude = 10_f64.powf(highest.max(1e-6).log10().floor());
    let leading = highest / magnitude;
    magnitude
        * if leading < 1.5 {
            0.25
        } else if leading < 3.5 {
            0.5
        } else if leading < 7.0 {
            1.0
        } else {
            2.0
        }
}

fn label(value: f64) -> String {
    if value >= 10.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

fn line(svg: &mut String, y: f64, colour: &str, dashes: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\"{dashes}/>",
        WIDTH - 20.0
    );
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#202020\">{text}</text>"
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
