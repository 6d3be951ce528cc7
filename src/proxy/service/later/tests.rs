//! What waits: on disk, in a process after this one, and where its server says no.

use super::*;
use crate::problem::{EkmCode, Problem};
use crate::proxy::servers::{KeyServers, ServerAddress};
use crate::proxy::service::Times;

const SERVER: &str = "ekm1.example.com:3801";

fn list() -> List {
    let address: ServerAddress = SERVER.parse().unwrap();
    let servers = KeyServers::of(vec![address.into()]).unwrap();
    List::new(servers, None, &Times::default())
}

fn request(number: u8, stored: bool) -> ConfirmRequest {
    ConfirmRequest {
        request_id: uuid::Uuid::from_bytes([number; 16]),
        serial: "001013000123".parse().unwrap(),
        dki: crate::key::DataKeyId::from_random([number; 9]),
        stored,
    }
}

fn no() -> ServiceError {
    ServiceError::Refused {
        server: SERVER.parse().unwrap(),
        problem: Box::new(Problem::new(EkmCode::EF01, 403, "the drive is not there")),
    }
}

fn waiting(later: &Later, link: &Arc<Link>, request: ConfirmRequest) -> Waiting {
    Waiting {
        link: Arc::clone(link),
        file: later.keep(link, &request),
        request,
        refused: None,
    }
}

fn ids(later: &Later) -> Vec<(uuid::Uuid, bool)> {
    let queue = later.queue();
    let each = queue.iter();
    each.map(|waiting| (waiting.request.request_id, waiting.request.stored))
        .collect()
}

fn files(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn what_waits_is_told_by_the_process_after_this_one_in_its_order() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("state/confirms");
    let list = list();
    let here = Later::read(&directory, &list);
    assert_eq!(here.waiting(), 0);
    let link = &list.links[0].link;
    let unlisted = Link::new("ekm9.example.com:3801".parse().unwrap());
    for (number, link) in [(9, link), (1, &unlisted), (5, link)] {
        here.put(waiting(&here, link, request(number, number == 5)));
    }
    let before = ids(&here);
    drop(here);
    let next = Later::read(&directory, &list);
    assert_eq!(ids(&next), before);
    let queue = next.queue();
    assert!(Arc::ptr_eq(&queue[0].link, link));
    assert_eq!(queue[1].link.address(), unlisted.address());
    assert_eq!(queue[1].request.dki, request(1, false).dki);
}

#[tokio::test]
async fn what_was_told_is_not_told_by_the_next_process() {
    let home = tempfile::tempdir().unwrap();
    let list = list();
    let later = Later::read(home.path(), &list);
    let one = waiting(&later, &list.links[0].link, request(1, false));
    assert_eq!(files(home.path()).len(), 1);
    one.ended().await;
    assert_eq!(files(home.path()), [""; 0]);
    assert_eq!(Later::read(home.path(), &list).waiting(), 0);
}

#[test]
fn file_that_cannot_be_read_is_set_aside_and_takes_no_other_with_it() {
    let home = tempfile::tempdir().unwrap();
    let list = list();
    let here = Later::read(home.path(), &list);
    here.put(waiting(&here, &list.links[0].link, request(1, false)));
    drop(here);
    std::fs::write(home.path().join("0-cut.json"), "{\"server\": \"ekm1").unwrap();
    std::fs::write(home.path().join("9-long.json"), vec![b' '; 1 << 20]).unwrap();
    std::fs::create_dir(home.path().join("5-folder.json")).unwrap();
    let next = Later::read(home.path(), &list);
    assert_eq!(ids(&next), [(request(1, false).request_id, false)]);
    let left = files(home.path());
    for aside in [
        "0-cut.unreadable",
        "5-folder.unreadable",
        "9-long.unreadable",
    ] {
        assert!(left.iter().any(|name| name == aside), "{left:?}");
    }
    assert_eq!(left.len(), 4);
}

#[test]
fn refused_word_that_nothing_was_written_is_kept_and_shown_and_told_again() {
    let home = tempfile::tempdir().unwrap();
    let list = list();
    let later = Later::read(home.path(), &list);
    let one = waiting(&later, &list.links[0].link, request(1, false));
    assert!(later.refused(one, &no()).is_none());
    assert_eq!(later.waiting(), 1);
    let shown = later.refusals();
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0].dki, request(1, false).dki);
    assert!(shown[0].why.contains("the drive is not there"), "{shown:?}");
    let again = later.queue()[0].refused.as_ref().unwrap().again;
    let until = again.saturating_duration_since(Instant::now());
    assert!(until <= REFUSED && until > REFUSED / 2, "{until:?}");
    drop(later);
    // The next process does not wait for it.
    let next = Later::read(home.path(), &list);
    assert_eq!(next.waiting(), 1);
    assert!(next.queue()[0].refused.is_none());
}

#[test]
fn refused_word_that_eedks_are_stored_is_given_up() {
    let home = tempfile::tempdir().unwrap();
    let list = list();
    let later = Later::read(home.path(), &list);
    let one = waiting(&later, &list.links[0].link, request(1, true));
    assert!(later.refused(one, &no()).is_some());
    assert_eq!(later.waiting(), 0);
}

#[test]
fn directory_that_cannot_be_written_leaves_it_to_the_memory() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    std::fs::write(&file, "").unwrap();
    let list = list();
    let later = Later::read(&file.join("confirms"), &list);
    let one = waiting(&later, &list.links[0].link, request(1, false));
    assert_eq!(one.file, None);
    later.put(one);
    assert_eq!(later.waiting(), 1);
}
