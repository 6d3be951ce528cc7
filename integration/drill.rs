//! The disaster drill: the machine is gone, the cartridges are there. Every
//! step is a command line that an operator would type, run by a shell in the
//! directory that he would be in.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::{EKM, Hsm, Kind, example, write_private};

/// Puts everything that a site is into one file, beside the running server.
const BACK_UP: &str = "
ekm backup ../site.ekmbackup --passphrase-file ../passphrase
cp pin ../pin";

/// In an empty directory of another machine.
const RESTORE: &str = "
ekm restore ../site.ekmbackup --passphrase-file ../passphrase --to .
cp ../pin .
ekm config check ekm.toml
ekm kek list
ekm audit verify";

/// Until the server says that its token serves; a drive that asks before gets EE0F.
const WAIT: &str = "
until ekm token status | grep -w ready; do sleep 0.2; done";

/// Tells the drive where its key server is now.
const CONNECT: &str = r#"
ekm softdrive connect drive --server "$SERVER" --ca drive-tls/ca.crt \
    --tls-cert drive-tls/drive-000007800001.crt --tls-key drive-tls/drive-000007800001.key"#;

const READ: &str = "
ekm softdrive read --drive drive --cartridge VOL001 > VOL001.data";

/// A server that knows nothing yet, and a token that has only the KEK.
const NEW_SITE: &str = "
ekm tls init
ekm tls issue ekm2 --role server
ekm tls issue 000007800001 --role drive --out ../drive-tls
cp tls/ca.crt ../drive-tls/
ekm kek import ../kek.pem --label ESCROW
ekm softdrive key ../drive > drive.pem";

const ENROL: &str = r#"
ekm drive add 000007800001 --wwn 5005076300C0FFE1 --key drive.pem --form "$FORM""#;

/// What the records say of EEDKs that came from elsewhere.
const RECORDS: &str = "
ekm audit show --action resolve --json
ekm audit verify";

/// The EEDKs of the cartridge; needs no server, no token and no key.
const TAKE_EEDKS: &str = "
ekm softdrive show --cartridge VOL001 --eedks eedks
openssl asn1parse -inform DER -in eedks/VOL001-1.der";

/// The data key, with the KEK's private key in `kek.pem`.
const OPEN_EEDK: &str = r#"
dki=$(openssl asn1parse -inform DER -in eedks/VOL001-1.der | awk -F: '/HEX DUMP/ && !n++ { print $NF }')
at=$(openssl asn1parse -inform DER -in eedks/VOL001-1.der | awk -F: 'END { print $1 + 0 }')
openssl asn1parse -inform DER -in eedks/VOL001-1.der -strparse "$at" -noout -out wrapped
openssl pkeyutl -decrypt -inkey kek.pem -in wrapped -out dk \
    -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256 \
    -pkeyopt rsa_oaep_label:"$dki""#;

/// The data of a software drive's cartridge, with the data key in `dk`.
const DECRYPT: &str = r#"
hex() { od -An -v -tx1 | tr -d ' \n'; }
salt=$(dd if=VOL001 bs=32 skip=256 count=1 status=none | hex)
derive() {
    openssl kdf -binary -keylen 32 -kdfopt digest:SHA256 -kdfopt hexkey:"$(hex < dk)" \
        -kdfopt hexsalt:"$salt" -kdfopt info:"ekm cartridge v1 $1" HKDF
}
derive check | cmp - <(dd if=VOL001 bs=32 skip=257 count=1 status=none)
key=$(derive blocks | hex)
for ((n = 0, at = 8256, end = $(stat -c %s VOL001); at < end; n++, at += 262160)); do
    dd if=VOL001 iflag=skip_bytes,count_bytes skip="$at" count=262160 bs=262160 status=none | head -c -16 |
        openssl enc -d -aes-256-ctr -K "$key" -iv "$(printf '%024x00000002' "$n")"
done > VOL001.data"#;

/// Directories side by side: the site, another one, and in their parent the
/// drive and its cartridges.
struct Stage {
    root: TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Stage {
    fn new() -> Self {
        let stage = Self {
            root: tempfile::tempdir().unwrap(),
            variables: Vec::new(),
        };
        stage.run(
            ".",
            "ekm softdrive init drive --serial 000007800001 --wwn 5005076300C0FFE1",
        );
        std::fs::write(stage.at("data"), data()).unwrap();
        stage
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.variables.retain(|(have, _)| *have != name);
        self.variables.push((name, value.into()));
    }

    fn command(&self, directory: &str, program: &str) -> Command {
        let own = Path::new(EKM).parent().unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(program);
        command
            .current_dir(self.at(directory))
            .env(
                "PATH",
                format!("{0}:{0}/examples:{path}:/usr/sbin", own.display()),
            )
            .env("RUST_LOG", "error")
            .env_remove("EKM_CONFIG")
            .env_remove("EKM_SOFTDRIVE")
            .envs(self.variables.iter().cloned())
            .stdin(Stdio::null());
        command
    }

    /// Has a shell run these lines in a directory, and gives what it prints.
    fn run(&self, directory: &str, lines: &str) -> String {
        let output = self
            .command(directory, "timeout")
            .args(["120", "bash", "-euo", "pipefail", "-c", lines])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "in {directory}: {lines}\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// `ekm serve` in a directory; `$SERVER` is where it listens.
    fn serve(&mut self, directory: &str) -> Server {
        let mut child = self
            .command(directory, "ekm")
            .arg("serve")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let server = Server(child);
        let address = line.trim().strip_prefix("listening on https://");
        self.set("SERVER", address.expect("the server starts"));
        self.run(directory, WAIT);
        server
    }

    /// A configuration whose token is where `token` says.
    fn configure(&self, directory: &str, node: &str, token: &str) {
        std::fs::create_dir(self.at(directory)).unwrap();
        let text = format!(
            "node = \"{node}\"
state = \"state\"
audit = \"audit\"

[server]
listen = \"127.0.0.1:0\"
certificate = \"tls/issued/server-{node}.crt\"
key = \"tls/issued/server-{node}.key\"
client_ca = \"tls/ca.crt\"
crl = \"tls/crl.pem\"

[[tokens]]
name = \"main\"
{token}
"
        );
        std::fs::write(self.at(directory).join("ekm.toml"), text).unwrap();
    }

    /// What the drive has read is what was written.
    fn same(&self) {
        let (read, written) = (self.at("VOL001.data"), self.at("data"));
        assert!(
            std::fs::read(&read).unwrap() == std::fs::read(written).unwrap(),
            "what was read back is not what was written"
        );
        std::fs::remove_file(read).unwrap();
    }
}

/// Three blocks of a cartridge.
fn data() -> Vec<u8> {
    let lines = (0..9_000).map(|line| {
        format!("{line:8} what must be readable in thirty years, and how it was written\n")
    });
    lines.collect::<String>().into_bytes()
}

struct Server(Child);

impl Server {
    /// As systemd would.
    fn stop(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_site_is_put_back_from_its_backup() {
    let mut stage = Stage::new();
    stage.configure(
        "site",
        "ekm1",
        "profile = \"embedded\"\nuri = \"pkcs11:token=ekm1\"\npin = { file = \"pin\" }\ndirectory = \"token\"",
    );
    write_private(&stage.at("site/pin"), "4242-4242");
    write_private(&stage.at("site/so-pin"), "12345678");
    stage.run(
        "site",
        "ekm tls init
        ekm tls issue ekm1 --role server
        ekm tls issue 000007800001 --role drive --out ../drive-tls
        cp tls/ca.crt ../drive-tls/
        ekm slot init --profile embedded --label ekm1 --so-pin-file so-pin --pin-file pin
        ekm kek generate TAPE2026A --bits 2048
        ekm softdrive key ../drive > drive.pem
        ekm drive add 000007800001 --wwn 5005076300C0FFE1 --key drive.pem --form t10-02h --kek1 TAPE2026A",
    );
    let server = stage.serve("site");
    stage.run(".", CONNECT);
    stage.run(
        ".",
        "ekm softdrive write --drive drive --cartridge VOL001 --volser VOL001 < data",
    );
    write_private(&stage.at("passphrase"), "what nobody else knows");
    let made = stage.run("site", BACK_UP);
    assert!(made.contains("KEKs in it: TAPE2026A (main)"), "{made}");
    server.stop();

    std::fs::remove_dir_all(stage.at("site")).unwrap();
    std::fs::create_dir(stage.at("new")).unwrap();
    stage.run("new", RESTORE);
    let server = stage.serve("new");
    stage.run(".", CONNECT);
    stage.run(".", READ);
    stage.same();
    let volume = stage.run("new", "ekm volume show VOL001");
    assert!(volume.contains("confirmed"), "{volume}");
    let records = stage.run("new", RECORDS);
    assert!(records.contains("\"foreign\": false"), "{records}");
    // The site goes on: a cartridge that is written now can be read, too.
    stage.run(
        ".",
        "ekm softdrive write --drive drive --cartridge VOL002 --volser VOL002 < data
        ekm softdrive read --drive drive --cartridge VOL002 | cmp - data",
    );
    server.stop();
}

/// A site with a token that has no KEK yet.
async fn site_without_kek(stage: &mut Stage, kind: Kind, directory: &str, node: &str) -> Hsm {
    let hsm = Hsm::new(kind, node).await;
    let place = hsm.directory.path().display();
    stage.configure(
        directory,
        node,
        &format!(
            "profile = \"{}\"\nuri = \"pkcs11:token={node}\"\npin = {{ file = \"{place}/pin\" }}\ndirectory = \"{place}\"",
            kind.profile()
        ),
    );
    let (module, environment) = hsm.module();
    stage.set("MODULE", module.display().to_string());
    stage.set("PIN_FILE", format!("{place}/pin"));
    stage.set("FORM", kind.form().to_string());
    for (name, value) in environment {
        stage.set(name, value);
    }
    hsm
}

/// A site whose KEK `ESCROW` came from outside, and was kept there.
async fn escrowed_site(stage: &mut Stage, kind: Kind, directory: &str, node: &str) -> Hsm {
    let hsm = site_without_kek(stage, kind, directory, node).await;
    example("hand");
    stage.run(
        ".",
        &format!(r#"hand "$MODULE" {node} "$PIN_FILE" import-private ESCROW kek.der"#),
    );
    hsm
}

async fn another_token_with_the_kek_reads(kind: Kind) {
    for encoding in ["label", "hash"] {
        let mut stage = Stage::new();
        stage.run(
            ".",
            "openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out kek.pem
            openssl pkcs8 -topk8 -nocrypt -in kek.pem -outform DER -out kek.der",
        );
        let lost = escrowed_site(&mut stage, kind, "site", "ekm1").await;
        stage.run(
            "site",
            &format!(
                "ekm tls init
                ekm tls issue ekm1 --role server
                ekm tls issue 000007800001 --role drive --out ../drive-tls
                cp tls/ca.crt ../drive-tls/
                ekm kek list
                ekm softdrive key ../drive > drive.pem
                {ENROL} --kek1 ESCROW:{encoding}"
            ),
        );
        let server = stage.serve("site");
        stage.run(".", CONNECT);
        stage.run(
            ".",
            "ekm softdrive write --drive drive --cartridge VOL001 --volser VOL001 < data",
        );
        server.stop();

        drop(lost);
        for gone in ["site", "drive-tls"] {
            std::fs::remove_dir_all(stage.at(gone)).unwrap();
        }
        let _token = site_without_kek(&mut stage, kind, "new", "ekm2").await;
        stage.run("new", NEW_SITE);
        stage.run("new", ENROL);
        let server = stage.serve("new");
        stage.run(".", CONNECT);
        stage.run(".", READ);
        stage.same();
        let records = stage.run("new", RECORDS);
        assert!(records.contains("\"foreign\": true"), "{records}");
        assert!(!records.contains("\"foreign\": false"), "{records}");
        let volumes = stage.run("new", "ekm volume list --json");
        assert_eq!(volumes.trim(), "[]");
        server.stop();
        if kind == Kind::Embedded && encoding == "label" {
            stage.run(".", TAKE_EEDKS);
            stage.run(".", &format!("{OPEN_EEDK}{DECRYPT}"));
            stage.same();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_embedded_token_with_the_same_kek_reads_the_cartridge() {
    another_token_with_the_kek_reads(Kind::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_softhsm_with_the_same_kek_reads_the_cartridge() {
    another_token_with_the_kek_reads(Kind::Softhsm).await;
}
