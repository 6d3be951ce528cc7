//! An HSM that goes away under a login, where nobody has seen whether it shows
//! wrong PINs: so it is with most profiles.

use ekm::config::TokenConfig;
use rustix::process::Signal;

use super::{PATIENCE, Place, kill, look_again};
use crate::faulty::Fault;
use crate::several::altered;
use crate::support::{Hsm, Kind, wait_for};

/// The token with a profile that leaves `login.pin_count_low` out.
fn untold(hsm: &Hsm) -> TokenConfig {
    let left_out = [("[login]\npin_count_low = \"reported\"\n", "")];
    altered(hsm, "main", &left_out)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_hsm_that_goes_away_under_a_login_waits_for_the_operator_where_it_may_hide_wrong_pins() {
    let hsm = Hsm::new(Kind::Softhsm, "away").await;
    let token = untold(&hsm);
    let place = Place::over(hsm, token);
    let server = place.serve();
    place.wait_for("ready");
    assert_eq!(place.logins(), 1);

    // The PIN is on its way when the HSM goes.
    place
        .faulty
        .strike(Some("C_Login"), 0, Some(1), Fault::Hang);
    kill(place.bridge_pids()[0], Signal::KILL);
    wait_for("another login", PATIENCE, || place.logins() == 2);
    place.hsm.docker("kill");
    place.faulty.heal();
    place.hsm.docker("start");

    place.wait_for("locked");
    let why = place.why();
    assert!(
        why.contains("the answer was never seen") && why.contains("pin_count_low"),
        "{why}"
    );
    assert!(why.contains("ekm token unlock main"), "{why}");
    look_again(&place, 1);
    place.wait_for("locked");
    assert_eq!(place.logins(), 2, "the PIN was sent again by itself");

    let unlocked = place.done(&["token", "unlock", "main"]);
    assert!(unlocked.contains("ready"), "{unlocked}");
    place.wait_for("ready");
    assert_eq!(place.logins(), 3);
    server.stop();
}
