//! The attacks of someone who has the user PIN and a process on the machine,
//! by another PKCS#11 client, on KEKs as `ekm kek generate` makes them; held
//! against the README's table, word by word.

use std::path::Path;

use ekm::keystore::Custody;
use ekm::policy::PolicyConfig;

use crate::several::altered;
use crate::support::{Bench, Hsm, Kind, pkcs8_key};
use crate::tokens::can_be_made;

/// The attacks, in the order of the table's columns.
const ATTACKS: [&str; 4] = [
    "weak-template",
    "foreign-key",
    "flip-decrypt",
    "copy-decrypt",
];

/// The head of the table in the README.
const HEAD: &str = "| Token, and its KEKs | opens it unprotected, and reads it | wraps it for a key of his own | turns on `CKA_DECRYPT` | copies the KEK with `CKA_DECRYPT` |";

/// The rows of the table, by what stands in their first cell.
fn rows() -> Vec<Vec<String>> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"));
    let readme = readme.unwrap();
    let (_, table) = readme.split_once(HEAD).expect("the README has the table");
    let lines = table.lines().skip(2);
    lines
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().replace('`', "")).collect()
        })
        .collect()
}

/// A KEK as the token's profile makes it, with some of its lines changed, meets every attack.
async fn ends_as_the_readme_says(row: &str, kind: Kind, changes: &[(&str, &str)]) {
    if !can_be_made(kind) {
        return;
    }
    let hsm = Hsm::new(kind, "attacked").await;
    let bench = if changes.is_empty() {
        Bench::new(&[&hsm], PolicyConfig::default()).await
    } else {
        let token = altered(&hsm, "main", changes);
        Bench::with(vec![token], PolicyConfig::default()).await
    };
    bench.kek("KEK1", "main", kind.custody()).await;
    drop(bench);

    let mine = hsm.directory.path().join("mine.der");
    std::fs::write(&mine, pkcs8_key()).unwrap();
    let mine = mine.display().to_string();
    let hash = match kind {
        Kind::Softhsm | Kind::SofthsmInProcess => "sha1",
        Kind::Embedded | Kind::Opencryptoki | Kind::Nss | Kind::Tpm2 => "sha256",
    };
    let measured: Vec<String> = ATTACKS
        .iter()
        .map(|attack| {
            let said = hsm.hand(&["attack", attack, "KEK1", hash, &mine]);
            said.trim().to_owned()
        })
        .collect();
    let rows = rows();
    let told = rows.iter().find(|cells| cells[0] == row);
    let told = told.unwrap_or_else(|| panic!("the README's table has no row {row}"));
    assert_eq!(told[1..], measured, "{row}: the README, then the token");
    // What is stopped is stopped by a function of the token's, with its code.
    for cell in &measured {
        let by = cell.strip_prefix("stopped: ");
        assert!(
            cell == "remains" || by.is_some_and(|by| by.starts_with("C_") && by.contains(" CKR_")),
            "{cell}"
        );
    }
}

const NO_TEMPLATE: (&str, &str) = ("unwrap_template = \"try\"", "unwrap_template = \"never\"");

const TRUSTED: [(&str, &str); 2] = [
    ("[data_key]", "[data_key]\nwrap_with_trusted = true"),
    ("unwrap_template = \"try\"", "unwrap_template = \"require\""),
];

#[tokio::test(flavor = "multi_thread")]
async fn attacks_on_the_embedded_token() {
    ends_as_the_readme_says("kryoptic 1.5.4, embedded", Kind::Embedded, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attacks_on_the_embedded_token_without_unwrap_template() {
    let row = "kryoptic, unwrap_template = \"never\"";
    ends_as_the_readme_says(row, Kind::Embedded, &[NO_TEMPLATE]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attacks_on_softhsm_in_process() {
    ends_as_the_readme_says("SoftHSM 2.6.1", Kind::SofthsmInProcess, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attacks_on_softhsm_without_unwrap_template() {
    let row = "SoftHSM, unwrap_template = \"never\"";
    ends_as_the_readme_says(row, Kind::SofthsmInProcess, &[NO_TEMPLATE]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attacks_on_softhsm_with_trusted_keys() {
    let row = "SoftHSM, wrap_with_trusted = true";
    ends_as_the_readme_says(row, Kind::SofthsmInProcess, &TRUSTED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attacks_on_softhsm_behind_p11_kit() {
    ends_as_the_readme_says("SoftHSM behind p11-kit 0.24.1", Kind::Softhsm, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attacks_on_softhsm_behind_p11_kit_with_trusted_keys() {
    let row = "SoftHSM behind p11-kit, wrap_with_trusted = true";
    ends_as_the_readme_says(row, Kind::Softhsm, &TRUSTED[..1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attacks_on_opencryptoki() {
    ends_as_the_readme_says("openCryptoki 3.8.1, soft token", Kind::Opencryptoki, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attacks_on_nss() {
    ends_as_the_readme_says("NSS 3.87.1", Kind::Nss, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attacks_on_a_tpm() {
    assert_eq!(Kind::Tpm2.custody(), Custody::Host);
    ends_as_the_readme_says("TPM 2.0, custody host", Kind::Tpm2, &[]).await;
}

/// No row of the table is without a test above.
#[test]
fn every_row_of_the_table_is_measured() {
    let tested = include_str!("attacks.rs").replace("\\\"", "\"");
    let rows = rows();
    assert_eq!(rows.len(), 10);
    for cells in rows {
        assert_eq!(cells.len(), ATTACKS.len() + 1, "{cells:?}");
        assert!(tested.contains(&format!("\"{}\"", cells[0])), "{cells:?}");
    }
}
