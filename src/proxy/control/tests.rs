//! The lines on the socket, and what a set makes of a list.

use super::*;

fn servers(list: &[&str]) -> KeyServers {
    let servers = list
        .iter()
        .map(|server| server.parse::<ServerAddress>().unwrap().into());
    KeyServers::of(servers.collect()).unwrap()
}

fn set(change: &str, list: &[&str]) -> Result<KeyServers, String> {
    let line = format!(r#"{{"command":"set",{change}}}"#);
    let Command::Set(change) = serde_json::from_str(&line).unwrap() else {
        panic!("{line} is no set");
    };
    change.applied(servers(list))
}

fn names(list: &KeyServers) -> Vec<String> {
    list.servers.iter().map(ToString::to_string).collect()
}

#[test]
fn commands_are_lines_that_a_script_can_write() {
    for (command, line) in [
        (Command::Display {}, r#"{"command":"display"}"#),
        (
            Command::Verify {
                which: Which::Secondary,
            },
            r#"{"command":"verify","which":"secondary"}"#,
        ),
        (
            Command::Path {
                drive: Some("001013000123".parse().unwrap()),
                path: Some(KeyPath::InBand),
            },
            r#"{"command":"path","drive":"001013000123","path":"in-band"}"#,
        ),
        (
            Command::Set(SetServers {
                secondary: Some(OrNone(None)),
                ..SetServers::default()
            }),
            r#"{"command":"set","secondary":"none"}"#,
        ),
    ] {
        assert_eq!(serde_json::to_string(&command).unwrap(), line);
        assert_eq!(serde_json::from_str::<Command>(line).unwrap(), command);
    }
}

#[test]
fn what_is_no_command_is_refused() {
    for line in [
        "",
        "null",
        "[]",
        "{}",
        r#"{"command":"format-all-tapes"}"#,
        r#"{"command":"display","really":true}"#,
        r#"{"command":"verify"}"#,
        r#"{"command":"verify","which":"third"}"#,
        r#"{"command":"set","primari":"a"}"#,
        r#"{"command":"set","primary":"a b"}"#,
        r#"{"command":"set","maxconn":70000}"#,
        r#"{"command":"path","path":"sideways"}"#,
    ] {
        assert!(serde_json::from_str::<Command>(line).is_err(), "{line}");
    }
}

#[test]
fn a_set_changes_what_it_names() {
    let two = ["a:1", "b:1"];
    let done = set(r#""primary":"c:1""#, &two).unwrap();
    assert_eq!(names(&done), ["c:1", "b:1"]);
    let done = set(r#""secondary":"c:1""#, &["a:1"]).unwrap();
    assert_eq!(names(&done), ["a:1", "c:1"]);
    let done = set(r#""secondary":"none""#, &["a:1", "b:1", "c:1"]).unwrap();
    assert_eq!(names(&done), ["a:1", "c:1"]);
    // Both at once change places.
    let done = set(r#""primary":"b:1","secondary":"a:1""#, &two).unwrap();
    assert_eq!(names(&done), ["b:1", "a:1"]);
    let done = set(r#""servers":["x:1","y:1","z:1"]"#, &two).unwrap();
    assert_eq!(names(&done), ["x:1", "y:1", "z:1"]);
    // The bound takes the one below it along.
    let done = set(r#""maxconn":4"#, &two).unwrap();
    assert_eq!((done.maxconn, done.maxpconn), (4, 4));
}

#[test]
fn a_set_that_cannot_be_is_refused() {
    for (change, wanted) in [
        (r#""primary":"b:1""#, "b:1 is listed twice"),
        (r#""servers":[]"#, "no key server"),
        (r#""servers":["x:1"],"primary":"y:1""#, "or the whole list"),
        (r#""maxconn":0"#, "maxconn: 0 is not 1 to 255"),
        (r#""maxconn":4,"maxpconn":5"#, "maxpconn: 5 is not 0 to 4"),
    ] {
        let refused = set(change, &["a:1", "b:1"]).unwrap_err();
        assert!(refused.contains(wanted), "{change}: {refused}");
    }
    let nothing = SetServers::default().applied(servers(&["a:1"]));
    assert!(nothing.unwrap_err().contains("nothing to set"));
    let many: Vec<String> = (0..17).map(|n| format!("\"a{n}:1\"")).collect();
    let refused = set(&format!("\"servers\":[{}]", many.join(",")), &["a:1"]);
    assert!(refused.unwrap_err().contains("17 key servers, at most 16"));
}
