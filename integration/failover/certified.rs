//! A drive that is trusted by its certificate, and a list of key servers.

use crate::pair::Pair;
use crate::relay::Way;

/// A challenge is good at the server that gave it, so each try has one of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_certified_drive_signs_anew_for_the_next_server() {
    let pair = Pair::new(0);
    let mut drive = pair.house.unknown_drive(7);
    pair.house.certify(&mut drive, "tls");
    let (_servings, relays) = pair.both().await;
    for which in 0..2 {
        let serial = drive.serial.as_str();
        pair.on(
            which,
            &["drive", "add", serial, "--ca", "--form", "rsa-oaep-sha1"],
        );
    }
    // The answer is lost, that to the challenge or that to the create; then the server is gone.
    relays[0].lose_one_answer(Way::Closed);
    let path = |path: &std::path::Path| path.display().to_string();
    let servers = format!("{},{}", relays[0].address, relays[1].address);
    let output = pair
        .house
        .command(&["softdrive", "write", "--session", "--drive"])
        .args([
            &drive.directory,
            "--cartridge",
            "tape",
            "--volser",
            "VOL007",
        ])
        .args(["--servers", &servers])
        .args(["--ca", &path(&drive.identity.ca)])
        .args(["--tls-cert", &path(&drive.identity.certificate)])
        .args(["--tls-key", &path(&drive.identity.key)])
        .stdin(std::fs::File::open(pair.house.at("ekm.toml")).unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(relays[0].to_lose(), 0, "nothing was lost");
    assert_eq!(pair.history(1).len(), 1);
    assert_eq!(pair.history(1)[0].1, "confirmed");
}
