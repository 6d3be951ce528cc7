//! No bridge outlives its server, whatever its module is doing.

use ekm::admin;

use super::{bridges, kill};
use crate::door::PATIENCE;
use crate::faulty::{Fault, Faulty};
use crate::site::Site;
use crate::support::{Hsm, Kind, lives, wait_for};

/// A server over a token behind the faulty module, without load.
async fn quiet() -> (Site, Hsm, Faulty) {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "orphans").await;
    let faulty = Faulty::before(&hsm);
    let site = Site::over(vec![faulty.config(&hsm, "main")], "").await;
    (site, hsm, faulty)
}

/// Kills the server, and its bridges must end by themselves.
fn kill_the_server(mut site: Site, faulty: &Faulty) {
    let left = bridges(faulty);
    assert!(!left.is_empty());
    site.child.kill().unwrap();
    site.child.wait().unwrap();
    // One that has not noticed is there for ever.
    wait_for("the end of the bridges", PATIENCE, || {
        !left.iter().any(|pid| lives(*pid))
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_ends_by_itself_when_its_server_was_killed() {
    let (site, _hsm, faulty) = quiet().await;
    kill_the_server(site, &faulty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_whose_call_hangs_ends_by_itself_when_its_server_was_killed() {
    let (site, _hsm, faulty) = quiet().await;
    faulty.strike(Some("C_FindObjectsInit"), 0, None, Fault::Hang);
    let before = faulty.called("C_FindObjectsInit");
    let socket = site.directory.path().join("state/ekm.sock");
    // It has no answer before the server is killed.
    tokio::spawn(async move { ekm::server::ask(&socket, &admin::Command::KekList).await });
    tokio::task::block_in_place(|| {
        wait_for("a call that hangs", PATIENCE, || {
            faulty.called("C_FindObjectsInit") > before
        });
    });
    kill_the_server(site, &faulty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_never_came_up_ends_by_itself_when_its_server_was_killed() {
    let (site, _hsm, faulty) = quiet().await;
    faulty.strike(Some("C_Initialize"), 0, None, Fault::Hang);
    let before = faulty.called("C_Initialize");
    bridges(&faulty).into_iter().for_each(kill);
    tokio::task::block_in_place(|| {
        wait_for("another bridge", PATIENCE, || {
            faulty.called("C_Initialize") > before
        });
    });
    kill_the_server(site, &faulty);
}
