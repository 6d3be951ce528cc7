//! What `/readyz` says is so, also while a module hangs.

use std::time::{Duration, Instant};

use ekm::client::KeyClient;

use crate::faulty::{Fault, Faulty};
use crate::site::Site;
use crate::support::{Hsm, Kind, drive};

/// More than the five seconds to a canary and the five that it may take; less than the 32 after
/// which the bridge of a call that hangs is killed.
const SEEN: Duration = Duration::from_secs(25);

async fn readyz(client: &mut KeyClient) -> (u16, String) {
    let (status, body) = client.get("/readyz").await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// What `/readyz` says once it has that status.
async fn until(client: &mut KeyClient, status: u16) -> String {
    let start = Instant::now();
    loop {
        let (seen, text) = readyz(client).await;
        if seen == status {
            return text;
        }
        assert!(start.elapsed() < SEEN, "still {seen}: {text}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readyz_does_not_say_ready_of_a_token_that_hangs() {
    let hsm = Hsm::new(Kind::SofthsmInProcess, "hangs").await;
    let faulty = Faulty::before(&hsm);
    let site = Site::over(vec![faulty.config(&hsm, "main")], "").await;
    site.ekm(&["kek", "generate", "KEK1", "--bits", "2048"]);
    let peer = drive(site.directory.path(), 1, Kind::SofthsmInProcess.form()).peer;
    let mut client = site.client(&peer);
    assert_eq!(readyz(&mut client).await.0, 200);
    // The sessions of a bridge may change, and it is the same one.
    let pids = || -> Vec<u64> { faulty.clients().iter().map(|(pid, _)| *pid).collect() };
    let bridges = pids();

    // Nobody asks for a key: the canary alone finds out.
    faulty.strike(None, 0, None, Fault::Hang);
    let text = until(&mut client, 503).await;
    assert!(text.contains("main is degraded since 20"), "{text}");
    assert!(text.contains("has not answered"), "{text}");
    // The site's certificate is good for a day, which is an alarm.
    assert!(text.contains("\\nEKM-A07 "), "{text}");
    assert_eq!(pids(), bridges, "its bridge is the same one");

    faulty.heal();
    let text = until(&mut client, 200).await;
    assert!(text.starts_with("ready\n"), "{text}");
    assert_eq!(pids(), bridges, "its bridge is the same one");

    // One that fails is told with why and when it is tried again.
    faulty.strike(
        Some("C_GetSlotList"),
        0,
        None,
        Fault::Answer(cryptoki_sys::CKR_DEVICE_REMOVED),
    );
    faulty.strike(Some("C_UnwrapKey"), 0, None, Fault::Abort);
    let text = until(&mut client, 503).await;
    assert!(text.contains("main is failed since 20"), "{text}");
    assert!(text.contains("is tried again at 20"), "{text}");
    faulty.heal();
    until(&mut client, 200).await;
    site.stop();
}
