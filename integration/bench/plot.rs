//! The figures as a picture: three panels of bars, in SVG 1.1.

use std::fmt::Write as _;

use crate::plan::{CONNECTIONS, Part};
use crate::process::mib;
use crate::raw::Exchange;
use crate::report::Report;
use crate::sample::float;

/// Size of the picture and of a panel in it, pixels.
const WIDTH: f64 = 860.0;
const PANEL: f64 = 190.0;
const GAP: f64 = 74.0;
const LEFT: f64 = 56.0;
const TOP: f64 = 52.0;

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
    let height = TOP + float(panels.len()) * (PANEL + GAP) + 20.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    text(&mut svg, LEFT, 20.0, "start", &escaped(&report.versions));
    text(&mut svg, LEFT, 36.0, "start", &escaped(&report.machine));
    let mut top = TOP + 20.0;
    for panel in &panels {
        panel.draw(&mut svg, top);
        top += PANEL + GAP;
    }
    svg.push_str("</svg>\n");
    svg
}

fn panels(parts: &[Part]) -> Vec<Panel> {
    let group = |values: fn(&Part) -> Vec<f64>| -> Vec<(String, Vec<f64>)> {
        parts
            .iter()
            .map(|part| (format!("{}|RSA-{}", part.kind, part.bits), values(part)))
            .collect()
    };
    vec![
        Panel {
            title: "Resolves over TLS, as a part of what the bare PKCS#11 loop does in a second",
            legend: CONNECTIONS
                .iter()
                .map(|count| format!("{count} connection{}", if *count == 1 { "" } else { "s" }))
                .collect(),
            groups: group(|part| {
                CONNECTIONS
                    .iter()
                    .map(|count| {
                        part.resolve
                            .get(&count.to_string())
                            .map_or(0.0, |figure| figure.ratio)
                    })
                    .collect()
            }),
            mark: Some(1.0),
        },
        Panel {
            title: "Time of a resolve over TLS on one connection, in times of the bare loop's",
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
        text(svg, LEFT, top - 12.0, "start", self.title);
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
            let y = top - 21.0;
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
