use super::*;
use crate::bridge::profile::HsmProfile;

struct Site {
    folder: tempfile::TempDir,
    token: TokenInfo,
    count_low: CountLow,
}

impl Site {
    /// A token that shows wrong PINs, as SoftHSM does.
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            token: TokenInfo {
                label: "ekm".into(),
                serial: "1".into(),
                manufacturer: String::new(),
                model: String::new(),
                flags: 0,
                max_rw_sessions: 0,
                min_pin: 4,
                max_pin: 32,
            },
            count_low: CountLow::Reported,
        }
    }

    fn ledger(&self) -> Ledger {
        Ledger::of(self.folder.path(), &self.token)
    }

    fn begin(&self, change: &str) -> Result<Login, PinError> {
        self.begin_with(change, change)
    }

    fn begin_with(&self, change: &str, content: &str) -> Result<Login, PinError> {
        let generation = Generation {
            change: change.to_owned(),
            content: content.to_owned(),
        };
        self.ledger()
            .lead(Duration::ZERO)
            .unwrap()
            .begin(&self.token, generation, self.count_low)
    }

    fn accept(&self, change: &str) {
        self.begin(change).unwrap().end(Ok(()), false).unwrap();
    }

    fn end(&self, change: &str, rv: ck::CK_RV) {
        self.begin(change).unwrap().end(answer(rv), false).unwrap();
    }

    fn held(&self, change: &str) -> bool {
        match self.begin(change) {
            Err(PinError::Held { .. }) => true,
            Err(error) => panic!("{error}"),
            Ok(login) => {
                // As if it had not been asked.
                login
                    .end(answer(ck::CKR_USER_ALREADY_LOGGED_IN), false)
                    .unwrap();
                false
            }
        }
    }

    fn unlock(&self) {
        let leader = self.ledger().lead(Duration::ZERO).unwrap();
        leader.unlock(false).unwrap();
    }
}

fn answer(rv: ck::CK_RV) -> Result<(), CallError> {
    Err(CallError::new("C_Login", rv, &[]))
}

#[test]
fn a_refused_pin_is_held_until_its_source_changes() {
    let site = Site::new();
    site.end("1", ck::CKR_PIN_INCORRECT);
    assert!(site.held("1"));
    assert!(!site.held("2"));
    assert!(site.held("1"));
}

#[test]
fn a_refused_pin_is_held_until_the_operator_says_otherwise() {
    let site = Site::new();
    site.end("1", ck::CKR_PIN_INCORRECT);
    let before = unlocks(&site.ledger().path);
    site.unlock();
    assert!(!site.held("1"));
    assert_ne!(unlocks(&site.ledger().path), before);
}

/// Two servers with PIN files of their own on one token: neither's success
/// frees the other's wrong PIN.
#[test]
fn a_pin_that_is_accepted_does_not_free_another_that_was_refused() {
    let site = Site::new();
    site.end("wrong", ck::CKR_PIN_INCORRECT);
    site.accept("right");
    assert!(site.held("wrong"));
    site.end("also wrong", ck::CKR_PIN_INCORRECT);
    assert!(site.held("wrong") && site.held("also wrong") && !site.held("right"));
}

#[test]
fn a_login_whose_answer_was_not_seen_is_held() {
    let site = Site::new();
    drop(site.begin("1").unwrap());
    assert!(site.held("1"));
    site.end("2", ck::CKR_DEVICE_ERROR);
    assert!(site.held("2"));
}

#[test]
fn a_pin_that_was_accepted_survives_any_number_of_lost_answers() {
    let site = Site::new();
    site.accept("1");
    for _ in 0..20 {
        drop(site.begin("1").unwrap());
        site.end("1", ck::CKR_GENERAL_ERROR);
    }
}

#[test]
fn an_accepted_pin_is_held_once_the_token_shows_a_wrong_one() {
    let mut site = Site::new();
    site.accept("1");
    drop(site.begin("1").unwrap());
    site.token.flags = ck::CKF_USER_PIN_COUNT_LOW;
    assert!(site.held("1"));
    // The flag alone, with no login of ours in doubt, holds nothing.
    site.unlock();
    assert!(!site.held("1"));
}

#[test]
fn an_accepted_pin_is_held_where_a_token_may_hide_a_wrong_one() {
    let mut site = Site::new();
    site.count_low = CountLow::Unknown;
    site.accept("1");
    assert!(!site.held("1"));
    drop(site.begin("1").unwrap());
    assert!(site.held("1"));
}

/// A systemd credential has one name for ever, and may be another PIN after a restart.
#[test]
fn what_was_accepted_is_not_trusted_where_the_pin_may_be_another() {
    let site = Site::new();
    let accepted = site.begin_with("credential pin", "Monday").unwrap();
    accepted.end(Ok(()), false).unwrap();
    drop(site.begin_with("credential pin", "Tuesday").unwrap());
    for content in ["Monday", "Tuesday", "Wednesday"] {
        let again = site.begin_with("credential pin", content);
        if content == "Monday" {
            // The very PIN that was right: the token shows that none was wrong.
            again
                .unwrap()
                .end(answer(ck::CKR_PIN_INCORRECT), false)
                .unwrap();
            site.unlock();
            drop(site.begin_with("credential pin", "Tuesday").unwrap());
        } else {
            assert!(matches!(again, Err(PinError::Held { .. })), "{content}");
        }
    }
}

/// A login that another thread or process was faster with says nothing of the PIN.
#[test]
fn a_pin_that_was_not_looked_at_is_not_accepted() {
    let site = Site::new();
    site.end("1", ck::CKR_USER_ALREADY_LOGGED_IN);
    drop(site.begin("1").unwrap());
    assert!(site.held("1"));
}

#[test]
fn a_cancelled_pin_pad_does_not_ask_again_by_itself() {
    let site = Site::new();
    let login = site.begin("pad").unwrap();
    login.end(answer(ck::CKR_FUNCTION_CANCELED), true).unwrap();
    assert!(site.held("pad"));
}

#[test]
fn a_code_of_the_vendors_own_counts_as_a_refusal() {
    let site = Site::new();
    site.accept("1");
    site.end("1", ck::CKR_VENDOR_DEFINED + 7);
    assert!(site.held("1"));
}

#[test]
fn the_last_try_is_taken_once_and_only_when_the_operator_says_so() {
    let mut site = Site::new();
    site.token.flags = ck::CKF_USER_PIN_FINAL_TRY;
    assert!(matches!(site.begin("1"), Err(PinError::Spent { .. })));
    site.unlock();
    assert!(matches!(site.begin("1"), Err(PinError::Spent { .. })));
    let leader = site.ledger().lead(Duration::ZERO).unwrap();
    leader.unlock(true).unwrap();
    drop(site.begin("1").unwrap());
    assert!(matches!(site.begin("2"), Err(PinError::Spent { .. })));
    site.token.flags = ck::CKF_USER_PIN_LOCKED;
    let leader = site.ledger().lead(Duration::ZERO).unwrap();
    leader.unlock(true).unwrap();
    assert!(matches!(site.begin("2"), Err(PinError::Spent { .. })));
}

#[test]
fn a_low_counter_alone_holds_nothing() {
    let mut site = Site::new();
    site.token.flags = ck::CKF_USER_PIN_COUNT_LOW;
    site.accept("1");
}

#[test]
fn there_is_one_leader_and_who_waits_for_him_is_not_kept_for_ever() {
    let site = Site::new();
    let login = site.begin("1").unwrap();
    let waited = Instant::now();
    let error = site.ledger().lead(Duration::from_millis(200)).unwrap_err();
    assert!(waited.elapsed() >= Duration::from_millis(200));
    let own = std::process::id().to_string();
    assert!(
        matches!(&error, PinError::Led { leader, .. } if *leader == own),
        "{error}"
    );
    assert!(error.passes());
    drop(login);
    site.ledger().lead(Duration::ZERO).unwrap();
}

/// A follower that has waited sees what the leader saw.
#[test]
fn a_follower_does_not_send_what_its_leader_saw_refused() {
    let site = Site::new();
    let sent = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let leader = site.ledger().lead(PATIENCE).unwrap();
                let generation = Generation {
                    change: "1".to_owned(),
                    content: "1".to_owned(),
                };
                if let Ok(login) = leader.begin(&site.token, generation, CountLow::Reported) {
                    sent.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(20));
                    login.end(answer(ck::CKR_PIN_INCORRECT), false).unwrap();
                }
            });
        }
    });
    assert_eq!(sent.into_inner(), 1);
}

#[test]
fn a_damaged_ledger_sends_nothing_until_it_is_unlocked() {
    let site = Site::new();
    site.accept("1");
    std::fs::write(&site.ledger().path, "{").unwrap();
    assert!(matches!(site.begin("1"), Err(PinError::Ledger { .. })));
    site.unlock();
    site.accept("1");
}

#[test]
fn the_oldest_generations_are_forgotten_and_the_newest_kept() {
    let site = Site::new();
    for change in 0..100 {
        site.end(&change.to_string(), ck::CKR_PIN_INCORRECT);
    }
    assert!(site.held("99") && site.held("36"));
    let book = site.ledger().read().unwrap();
    assert_eq!(book.generations.len(), REMEMBERED);
}

/// The words of a message that have the shape of a setting: `section.key`.
fn settings(message: &str) -> Vec<&str> {
    let plain =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    message
        .split(|c: char| c.is_whitespace() || "();,:".contains(c))
        .filter(|word| {
            let parts = word.split_once('.');
            parts.is_some_and(|(section, key)| plain(section) && plain(key))
        })
        .collect()
}

#[test]
fn a_setting_that_a_message_names_is_one_of_the_profiles() {
    let mut site = Site::new();
    let mut messages = Vec::new();
    let mut hold = |site: &Site, change: &str| {
        let error = site.begin(change).map(drop).unwrap_err();
        messages.push(error.to_string());
    };
    site.end("refused", ck::CKR_PIN_INCORRECT);
    hold(&site, "refused");
    drop(site.begin("unseen").unwrap());
    hold(&site, "unseen");
    site.accept("right");
    drop(site.begin("right").unwrap());
    site.count_low = CountLow::Unknown;
    hold(&site, "right");
    for flag in [
        ck::CKF_USER_PIN_COUNT_LOW,
        ck::CKF_USER_PIN_FINAL_TRY,
        ck::CKF_USER_PIN_LOCKED,
    ] {
        site.token.flags = flag;
        hold(&site, "right");
    }
    let profile = toml::to_string(&HsmProfile::software()).unwrap();
    let profile: toml::Table = toml::from_str(&profile).unwrap();
    let mut named = Vec::new();
    for message in &messages {
        for setting in settings(message) {
            let (section, key) = setting.split_once('.').unwrap();
            let there = profile.get(section).and_then(|section| section.get(key));
            assert!(there.is_some(), "no setting {setting}: {message}");
            named.push(setting);
        }
    }
    assert_eq!(named, ["login.pin_count_low"]);
}
