//! The bench: under which names its figures are written, and which bare loop each is held against.
//! How good they are is no matter of a test.

use std::process::Command;

use quick_xml::Reader;
use quick_xml::events::Event;
use serde_json::Value;

use crate::support::{EKM, Kind, example};
use crate::tokens::can_be_made;

const CONNECTIONS: [&str; 4] = ["1", "4", "16", "64"];

/// What the bench prints.
fn bench(arguments: &[&str]) -> String {
    let output = Command::new(example("bench"))
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The number at a place, names with dots between.
fn number(figures: &Value, place: &str) -> f64 {
    place
        .split('.')
        .try_fold(figures, |value, name| value.get(name))
        .and_then(Value::as_f64)
        .unwrap_or_else(|| panic!("no number at {place}:\n{figures:#}"))
}

fn positive(figures: &Value, place: &str) -> f64 {
    let number = number(figures, place);
    assert!(number > 0.0, "{place} is {number}:\n{figures:#}");
    number
}

/// A point of a series over TLS has all its figures.
fn point(figures: &Value, series: &str, point: &str, ratio: &str) {
    for name in ["per_s", ratio, "p50_ms", "p99_ms"] {
        positive(figures, &format!("{series}.{point}.{name}"));
    }
    // Less than nothing, where the bare loop had the worse of its windows.
    for name in ["added_p50_ms", "load_generator_share_of_cpu", "cpu.load_us"] {
        number(figures, &format!("{series}.{point}.{name}"));
    }
}

/// In a run of one round, ratio and difference follow from the figures beside them.
fn held_against(figures: &Value, series: &str, ratio: &str, bare: &str) {
    let near = |place: &str, expected: f64| {
        let found = number(figures, place);
        let difference = (found - expected).abs();
        assert!(
            difference <= 1e-6 * expected.abs().max(1.0),
            "{place} is {found} and not {expected}:\n{figures:#}"
        );
    };
    for count in CONNECTIONS {
        let at = |name: &str| format!("{series}.{count}.{name}");
        let threads = if count == "1" { "1" } else { "saturation" };
        let rate = positive(figures, &format!("raw.{bare}.{threads}.per_s"));
        near(&at(ratio), positive(figures, &at("per_s")) / rate);
        let alone = positive(figures, &format!("raw.{bare}.1.p50_ms"));
        near(
            &at("added_p50_ms"),
            positive(figures, &at("p50_ms")) - alone,
        );
    }
}

/// An XML document whose elements are all closed and whose attributes can be read.
fn well_formed(xml: &str) {
    let mut reader = Reader::from_str(xml);
    let mut open = 0_u32;
    loop {
        match reader.read_event() {
            Ok(Event::Start(element)) => {
                open += 1;
                assert!(element.attributes().all(|one| one.is_ok()), "{element:?}");
            }
            Ok(Event::Empty(element)) => {
                assert!(element.attributes().all(|one| one.is_ok()), "{element:?}");
            }
            Ok(Event::End(_)) => open -= 1,
            Ok(Event::Eof) => break,
            Ok(_) => {}
            Err(error) => panic!("{error}:\n{xml}"),
        }
    }
    assert_eq!(open, 0, "elements are open at the end:\n{xml}");
}

#[test]
fn every_figure_of_a_quick_run_has_its_name_and_is_held_against_its_bare_loop() {
    if !can_be_made(Kind::SofthsmInProcess) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let (json, table, plot) = (at("figures.json"), at("table.md"), at("plot.svg"));
    let printed = bench(&[
        "run", "--quick", "--rounds", "1", "--window", "100", "--ekm", EKM, "--json", &json,
        "--table", &table, "--plot", &plot,
    ]);

    let text = std::fs::read_to_string(&json).unwrap();
    let figures: Value = serde_json::from_str(&text).unwrap();
    for (series, ratio, bare) in [
        ("resolve_over_tls", "ratio_to_raw_rewrap", "rewrap"),
        (
            "create_over_tls",
            "ratio_to_raw_create_proved",
            "create_proved",
        ),
    ] {
        for count in CONNECTIONS {
            point(&figures, series, count, ratio);
        }
        point(&figures, series, "saturation", ratio);
        held_against(&figures, series, ratio, bare);
    }
    for place in [
        "raw.decrypt.1",
        "raw.rewrap.saturation",
        "raw.create.saturation",
        "resolve_by_bridge.1",
        "resolve_by_bridge.saturation",
    ] {
        positive(&figures, &format!("{place}.per_s"));
        positive(&figures, &format!("{place}.ratio_to_raw_rewrap"));
    }
    // 0 where another's memory may not be looked at.
    assert!(number(&figures, "pss_mib.server") >= 0.0);
    assert_eq!(figures["kek_bits"], 2048);
    assert_eq!(figures["parts"].as_array().unwrap().len(), 1);
    assert_eq!(figures["storm"], Value::Array(Vec::new()));

    let table = std::fs::read_to_string(&table).unwrap();
    assert_eq!(printed.trim_end(), table.trim_end());
    for row in [
        "| server, resolve, 64 connections |",
        "| server, create (of the bare create with its proof), 64 connections |",
    ] {
        assert!(table.contains(row), "no {row} in:\n{table}");
    }
    let plot = std::fs::read_to_string(&plot).unwrap();
    well_formed(&plot);
    for title in ["Resolves a second", "Creates a second", "p50 of", "p99 of"] {
        assert!(plot.contains(title), "no {title} in:\n{plot}");
    }
}

#[test]
fn a_storm_says_of_every_drive_whether_it_got_its_key() {
    if !can_be_made(Kind::SofthsmInProcess) {
        return;
    }
    let told = bench(&[
        "storm",
        "--ekm",
        EKM,
        "--drives",
        "8",
        "--proxy-connections",
        "2",
    ]);
    for name in ["8 peers, a connection each", "one proxy, 2 connections"] {
        let row = format!("| {name} | 8 | 0 |");
        assert!(told.contains(&row), "no {row} in:\n{told}");
    }
}
