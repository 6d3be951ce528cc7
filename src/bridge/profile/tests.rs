use super::*;
use crate::bridge::pkcs11::User;
use crate::key::SedkForm;

#[test]
fn every_shipped_profile_parses_under_its_own_name() {
    for name in HsmProfile::shipped() {
        assert_eq!(HsmProfile::load(name).unwrap().name, name);
    }
}

#[test]
fn every_file_of_the_folder_is_shipped_and_in_its_readme() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/hsm-profiles");
    let readme = std::fs::read_to_string(format!("{folder}/README.md")).unwrap();
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(".toml").map(str::to_owned)
        })
        .collect();
    let mut shipped: Vec<&str> = HsmProfile::shipped().collect();
    files.sort();
    shipped.sort_unstable();
    assert_eq!(files, shipped);
    for name in shipped {
        assert!(readme.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn a_profile_says_when_it_was_checked_or_that_it_was_not() {
    for name in HsmProfile::shipped() {
        let verified = HsmProfile::load(name).unwrap().verified;
        let dated = verified.contains("20") && verified.contains("conformance tests");
        assert!(
            dated || verified.starts_with("NOT verified"),
            "{name}: {verified}"
        );
    }
}

#[test]
fn the_guide_to_opencryptoki_says_what_its_profiles_say() {
    let guide = include_str!("../../../docs/opencryptoki.md");
    let row = |head: &str| -> Vec<&str> {
        let line = guide.lines().find(|line| line.starts_with(head)).unwrap();
        let cells = line.trim_matches('|').split('|').skip(1);
        cells.map(str::trim).collect()
    };
    let names = row("| Profile |");
    let (wraps, labels) = (row("| EEDK wrap |"), row("| DKi as OAEP label |"));
    let forms = row("| SEDK forms that it makes |");
    let templates = row("| `CKA_UNWRAP_TEMPLATE` |");
    for (at, name) in names.iter().enumerate() {
        let profile = HsmProfile::load(name.trim_matches('`')).unwrap();
        assert_eq!(profile.unsupported, None, "{name}");
        match profile.eedk {
            WrapAlgorithm::Oaep { hash, .. } => {
                assert!(wraps[at].contains("SHA-256"), "{name}");
                assert_eq!(hash, OaepHash::Sha256, "{name}");
            }
            WrapAlgorithm::Pkcs1V15 => {
                assert!(wraps[at].contains("PKCS#1 v1.5"), "{name}");
            }
        }
        assert_eq!(
            labels[at].starts_with("yes"),
            profile.eedk.labelled(),
            "{name}"
        );
        for form in [SedkForm::T10Wrapped, SedkForm::RsaOaepSha1] {
            let told = forms[at].starts_with(&format!("`{form}`"))
                || forms[at].contains(&format!(", `{form}`"));
            assert_eq!(told, profile.drive.forms.contains(&form), "{name} {form}");
        }
        let never = profile.kek.unwrap_template == UnwrapTemplate::Never;
        assert_eq!(never, templates[at].starts_with("no"), "{name}");
    }
}

#[test]
fn a_product_that_cannot_serve_says_why() {
    let text = include_str!("../../../hsm-profiles/softhsm2.toml").replacen(
        "[module]",
        "unsupported = \"it has no RSA\"\n\n[module]",
        1,
    );
    let refused = HsmProfile::parse("changed", &text).unwrap();
    let refused = refused.serves().unwrap_err().to_string();
    assert!(refused.contains("it has no RSA"), "{refused}");
    assert!(HsmProfile::load("softhsm2").unwrap().serves().is_ok());
}

#[test]
fn only_the_product_without_oaep_wraps_by_v15_and_in_custody_host() {
    for name in HsmProfile::shipped() {
        let profile = HsmProfile::load(name).unwrap();
        let v15 = profile.wrap_algorithm().is_v15();
        assert_eq!(v15, name == "opencryptoki-icsf", "{name}");
        assert!(!v15 || profile.host_only(), "{name}");
    }
}

#[test]
fn values_that_do_not_fit_together_are_refused() {
    let good = include_str!("../../../hsm-profiles/softhsm2.toml");
    for (field, wrong, reason) in [
        ("processes = 1", "processes = 17", "session.processes"),
        ("workers = 4", "workers = 0", "session.workers"),
        ("workers = 4", "workers = 4\nlimit = 4", "session.limit"),
        (
            "sensitive = \"send\"",
            "sensitive = \"set-after\"",
            "contradict",
        ),
        (
            "denied_uses = \"send\"",
            "denied_uses = \"omit\"",
            "denied_uses",
        ),
        ("[login]", "[login]\nuser_type = 0", "CKU_SO"),
        ("[eedk]", "[eedk]\nsource = 1", "unknown field"),
        (
            "[eedk]",
            "[eedk]\npadding = \"pkcs1-v1.5\"",
            "leave both out",
        ),
    ] {
        assert!(good.contains(field), "{field}");
        let text = good.replacen(field, wrong, 1);
        let error = HsmProfile::parse("changed", &text).unwrap_err();
        let full = format!("{error}");
        assert!(full.contains(reason), "{wrong}: {full}");
    }
}

#[test]
fn a_vendors_user_type_is_taken() {
    let text = include_str!("../../../hsm-profiles/softhsm2.toml").replacen(
        "[login]",
        "[login]\nuser_type = 0x80000001",
        1,
    );
    let profile = HsmProfile::parse("changed", &text).unwrap();
    assert_eq!(profile.login.user(), User::Vendor(0x8000_0001));
}

#[test]
fn an_unknown_name_lists_what_there_is() {
    let error = HsmProfile::load("sofhtsm").unwrap_err().to_string();
    assert!(error.contains("softhsm2"), "{error}");
}
