//! The history at ten thousand volumes and at ten million: what a create's
//! write to it takes, and each search.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use ekm::bridge::message::Custody;
use ekm::key::{DataKeyId, Eedk, KekHash, KekId, KeyLabel, OaepHash, WrapAlgorithm};
use ekm::store::{
    DatabaseConfig, Issuance, Issued, Origin, RequestKey, Sql, Store as _, StoredEedk, VolumeQuery,
    Volumes as _,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sqlx::{AnyConnection, AssertSqlSafe, Connection as _};
use time::OffsetDateTime;

use crate::sample::quantile;

/// KEKs that followed each other; each volume has EEDKs under one and its pair.
const KEKS: u64 = 100;

/// Drives that took turns. So few that also in the small history each has a page of volumes, as each
/// KEK has: answers of one length are compared.
const DRIVES: u64 = 100;

/// The first volume's second, since 1970.
const BEGAN: u64 = 1_500_000_000;

/// Creates, and searches of each kind.
const CREATES: u64 = 2_000;
const SEARCHES: u64 = 200;

/// Rows of a page.
const PAGE: usize = 100;

/// Modulus of RSA-3072, bytes.
const WRAPPED: usize = 384;

/// Arguments.
#[derive(Debug, Args)]
pub(crate) struct Volumes {
    /// Volumes of the history that is compared with.
    #[arg(long, default_value_t = 10_000)]
    small: u64,
    /// Volumes of the history that is measured.
    #[arg(long, default_value_t = 10_000_000)]
    large: u64,
    /// Where SQLite's files go.
    #[arg(long)]
    directory: PathBuf,
    /// A PostgreSQL server, as `postgresql://USER@localhost/?host=/PATH`, whose databases `small` and
    /// `large` are empty. Without it SQLite is measured.
    #[arg(long)]
    postgres: Option<String>,
    /// Where the figures go, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The databases are those of an earlier run: they are measured again and not filled.
    #[arg(long)]
    filled: bool,
    /// How many times as long the large one may take.
    #[arg(long, default_value_t = 2.0)]
    most: f64,
    /// Has PostgreSQL read all but the EEDKs themselves into memory before it is measured (pg_prewarm),
    /// as it is where a server has run for a while and has the memory for it.
    #[arg(long)]
    prewarm: bool,
}

/// Milliseconds of one kind of work.
#[derive(Debug, Serialize)]
struct Took {
    what: &'static str,
    p50_ms: f64,
    p99_ms: f64,
}

#[derive(Debug, Serialize)]
struct Measured {
    volumes: u64,
    load_s: f64,
    bytes: u64,
    took: Vec<Took>,
}

#[derive(Debug, Serialize)]
struct Report {
    database: &'static str,
    small: Measured,
    large: Measured,
}

impl Volumes {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?
            .block_on(self.measure())
    }

    async fn measure(&self) -> anyhow::Result<()> {
        let report = Report {
            database: if self.postgres.is_some() {
                "PostgreSQL"
            } else {
                "SQLite"
            },
            small: self.history("small", self.small).await?,
            large: self.history("large", self.large).await?,
        };
        println!("{}", report.table());
        if let Some(path) = &self.json {
            std::fs::write(path, serde_json::to_string_pretty(&report)?)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        let worst = report.ratios().fold(0.0, f64::max);
        ensure!(
            worst <= self.most,
            "the worst takes {worst:.2} times as long, and {} is what it may",
            self.most
        );
        Ok(())
    }

    async fn history(&self, name: &str, volumes: u64) -> anyhow::Result<Measured> {
        let place = match &self.postgres {
            Some(url) => Place::Postgres(url.replace("/?", &format!("/{name}?"))),
            None => Place::Sqlite(self.directory.join(name)),
        };
        let begin = Instant::now();
        // Opened once for its tables.
        drop(place.open().await?);
        if !self.filled {
            load(&place, volumes).await?;
        }
        let load_s = begin.elapsed().as_secs_f64();
        if self.prewarm {
            prewarm(&place).await?;
        }
        let store = place.open().await?;
        let mut took = vec![creates(&store, volumes).await?];
        for what in ["volser", "kek", "dki", "drive", "since"] {
            took.push(search(&store, what, volumes).await?);
        }
        Ok(Measured {
            volumes,
            load_s,
            bytes: place.bytes().await?,
            took,
        })
    }
}

enum Place {
    Sqlite(PathBuf),
    Postgres(String),
}

impl Place {
    async fn open(&self) -> anyhow::Result<Sql> {
        Ok(match self {
            Self::Sqlite(directory) => Sql::sqlite(directory).await?,
            Self::Postgres(url) => Sql::postgres(&DatabaseConfig::at(url.clone())).await?,
        })
    }

    async fn connect(&self) -> anyhow::Result<AnyConnection> {
        let url = match self {
            Self::Sqlite(directory) => format!("sqlite://{}/state.db", directory.display()),
            Self::Postgres(url) => url.clone(),
        };
        Ok(AnyConnection::connect(&url).await?)
    }

    async fn bytes(&self) -> anyhow::Result<u64> {
        match self {
            Self::Sqlite(directory) => Ok(std::fs::metadata(directory.join("state.db"))?.len()),
            Self::Postgres(_) => {
                let mut connection = self.connect().await?;
                let bytes: i64 = sqlx::query_scalar("SELECT pg_database_size(current_database())")
                    .fetch_one(&mut connection)
                    .await?;
                Ok(u64::try_from(bytes)?)
            }
        }
    }
}

/// Fills the history as servers would have over the years, in bulk: a volume a
/// second, keys in the order of time, each confirmed. Only the EEDKs' digests
/// are none: spread as evenly, but in order.
async fn load(place: &Place, volumes: u64) -> anyhow::Result<()> {
    let mut connection = place.connect().await?;
    let postgres = matches!(place, Place::Postgres(_));
    let settings = if postgres {
        "SET synchronous_commit = off; SET session_replication_role = replica"
    } else {
        "PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF; PRAGMA cache_size = -1000000"
    };
    sqlx::raw_sql(settings).execute(&mut connection).await?;
    let step = i64::MAX.cast_unsigned() / volumes;
    let bar = ProgressBar::new(volumes).with_style(ProgressStyle::with_template(
        "{bar:30} {human_pos} of {human_len} volumes, {eta} left",
    )?);
    for kek in 0..KEKS {
        let (from, to) = (volumes * kek / KEKS, volumes * (kek + 1) / KEKS);
        let words = Words {
            postgres,
            step,
            numbers: if postgres {
                format!(
                    "SELECT i FROM generate_series({from}::bigint, {}) AS i",
                    to - 1
                )
            } else {
                format!(
                    "WITH RECURSIVE n(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {to}) SELECT i FROM n"
                )
            },
        };
        for statement in words.statements(kek)? {
            sqlx::raw_sql(AssertSqlSafe(statement))
                .execute(&mut connection)
                .await?;
        }
        bar.set_position(to);
    }
    bar.finish_and_clear();
    let tidy = if postgres {
        "VACUUM ANALYZE; CHECKPOINT"
    } else {
        "PRAGMA wal_checkpoint(TRUNCATE)"
    };
    for statement in tidy.split("; ") {
        sqlx::raw_sql(statement).execute(&mut connection).await?;
    }
    connection.close().await?;
    Ok(())
}

async fn prewarm(place: &Place) -> anyhow::Result<()> {
    let mut connection = place.connect().await?;
    let relations = "SELECT SUM(pg_prewarm(oid, 'read'))::bigint FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'i') AND relname <> 'eedks'";
    for statement in ["CREATE EXTENSION IF NOT EXISTS pg_prewarm", relations] {
        sqlx::raw_sql(statement).execute(&mut connection).await?;
    }
    connection.close().await?;
    Ok(())
}

/// The same values in the words of either database.
struct Words {
    postgres: bool,
    step: u64,
    numbers: String,
}

impl Words {
    /// 16 hexadecimal digits that grow with i, spread over all there are.
    fn digits(&self, plus: u32) -> String {
        let step = self.step;
        if self.postgres {
            format!("lpad(to_hex(i * {step} + {plus}), 16, '0')")
        } else {
            format!("printf('%016x', i * {step} + {plus})")
        }
    }

    fn dki(&self) -> String {
        format!("'EKM' || upper({}) || '00'", self.digits(0))
    }

    fn created(&self) -> String {
        if self.postgres {
            format!(
                "to_char(to_timestamp({BEGAN} + i) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"
            )
        } else {
            format!("strftime('%Y-%m-%dT%H:%M:%SZ', {BEGAN} + i, 'unixepoch')")
        }
    }

    fn blob(&self, hex: &str) -> String {
        if self.postgres {
            format!("decode({hex}, 'hex')")
        } else {
            format!("unhex({hex})")
        }
    }

    fn serial(&self) -> String {
        if self.postgres {
            format!("lpad((i % {DRIVES})::text, 12, '0')")
        } else {
            format!("printf('%012d', i % {DRIVES})")
        }
    }

    fn statements(&self, kek: u64) -> anyhow::Result<Vec<String>> {
        let (dki, created, serial) = (self.dki(), self.created(), self.serial());
        let made = format!("({BEGAN} + i) * 1000000");
        // Six hexadecimal digits: for 16 million volumes.
        let volser = if self.postgres {
            "upper(lpad(to_hex(i), 6, '0'))"
        } else {
            "printf('%06X', i)"
        };
        let from = format!("FROM ({}) AS numbers", self.numbers);
        let mut all = vec![
            format!(
                "INSERT INTO data_keys (dki, \"foreign\", created) SELECT {dki}, 0, {created} {from}"
            ),
            format!(
                "INSERT INTO generations (dki, generation, volser, drive, token, custody, created, made, server, job)
                 SELECT {dki}, 1, {volser}, {serial}, 'main', 'token', {created}, {made}, 'ekm1', 'PAYROLL' {from}"
            ),
        ];
        for (position, suffix) in [(0, 'A'), (1, 'B')] {
            let label = label(kek, suffix)?;
            let (before, after) = template(&label)?;
            let der = self.blob(&format!(
                "'{before}' || {} || '00' || '{after}'",
                self.digits(0)
            ));
            all.push(format!(
                "INSERT INTO eedks (sha256, dki, generation, position, der, kek_label, kek_hash, proved, made)
                 SELECT {} || '{}', {dki}, 1, {position}, {der}, '{label}', '{}', 1, {made} {from}",
                self.digits(position),
                "0".repeat(48),
                hash(&label),
            ));
        }
        for state in ["issued", "confirmed"] {
            all.push(format!(
                "INSERT INTO eedk_states (dki, generation, state, at, peer)
                 SELECT {dki}, 1, '{state}', {created}, 'drive:' || {serial} {from}"
            ));
        }
        all.push(format!(
            "INSERT INTO requests (peer, request, digest, dki, generation)
             SELECT 'drive:' || {serial}, {} || '-4000-8000-0000', {}, {dki}, 1 {from}",
            self.digits(0),
            self.blob(&format!("'{}'", "00".repeat(32))),
        ));
        Ok(all)
    }
}

fn label(kek: u64, suffix: char) -> anyhow::Result<KeyLabel> {
    Ok(format!("TAPE{kek:04}{suffix}").parse()?)
}

fn hash(label: &KeyLabel) -> KekHash {
    KekHash::of_spki(label.as_str().as_bytes())
}

fn eedk(dki: DataKeyId, label: &KeyLabel) -> anyhow::Result<StoredEedk> {
    let wrap = WrapAlgorithm::oaep(OaepHash::Sha256, true);
    Ok(StoredEedk {
        eedk: Eedk::new(dki, KekId::Label(label.clone()), wrap, vec![0xA5; WRAPPED])?,
        kek_label: label.clone(),
        kek_hash: hash(label),
        proved: true,
    })
}

/// An EEDK's DER in hexadecimal, before and behind the nine random bytes of its DKi.
fn template(label: &KeyLabel) -> anyhow::Result<(String, String)> {
    let random = [0xC3; 9];
    let der = hex::encode(eedk(DataKeyId::from_random(random), label)?.eedk.as_der());
    let (before, after) = der
        .split_once(&hex::encode(random))
        .context("the DKi is not in the EEDK")?;
    Ok((before.to_owned(), after.to_owned()))
}

/// Evenly over the history, and never the same twice in a row.
fn nth(number: u64, volumes: u64) -> u64 {
    number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % volumes
}

async fn creates(store: &Sql, volumes: u64) -> anyhow::Result<Took> {
    let mut took = Vec::new();
    for number in 0..CREATES {
        let mut random = [0; 9];
        aws_lc_rs::rand::fill(&mut random).context("no random numbers")?;
        let dki = DataKeyId::from_random(random);
        let serial = format!("{:012}", number % DRIVES);
        let issuance = Issuance {
            request: RequestKey {
                peer: format!("drive:{serial}").parse()?,
                id: uuid::Uuid::now_v7().to_string(),
            },
            digest: [0; 32],
            dki,
            volser: format!("{:06X}", nth(number, volumes)).parse()?,
            drive: serial.parse()?,
            token: "main".to_owned(),
            custody: Custody::Token,
            origin: Origin::Ours,
            new: true,
            eedks: vec![
                eedk(dki, &label(KEKS - 1, 'A')?)?,
                eedk(dki, &label(KEKS - 1, 'B')?)?,
            ],
            server: "ekm1".to_owned(),
            job: None,
        };
        let begin = Instant::now();
        let issued = store.issue(&issuance).await?;
        took.push(begin.elapsed());
        ensure!(issued == Issued::Now, "the request had an answer before");
    }
    Ok(Took::of("create's write", took))
}

async fn search(store: &Sql, what: &'static str, volumes: u64) -> anyhow::Result<Took> {
    let step = i64::MAX.cast_unsigned() / volumes;
    let mut took = Vec::new();
    for number in 0..SEARCHES {
        let i = nth(number, volumes);
        let mut query = VolumeQuery::default();
        match what {
            "volser" => query.volser = Some(format!("{i:06X}").parse()?),
            "kek" => query.kek = Some(hash(&label(number % KEKS, 'B')?)),
            "dki" => query.dki = Some(format!("EKM{:016X}00", i * step).parse()?),
            "drive" => query.drive = Some(format!("{:012}", number % DRIVES).parse()?),
            _ => {
                query.since = Some(OffsetDateTime::from_unix_timestamp(i64::try_from(
                    BEGAN + i,
                )?)?);
            }
        }
        let begin = Instant::now();
        let found = store.find_volumes(&query, PAGE).await?;
        took.push(begin.elapsed());
        ensure!(!found.volumes.is_empty(), "nothing found by {what}");
    }
    Ok(Took::of(what, took))
}

impl Took {
    fn of(what: &'static str, mut took: Vec<Duration>) -> Self {
        took.sort_unstable();
        Self {
            what,
            p50_ms: quantile(&took, 50),
            p99_ms: quantile(&took, 99),
        }
    }
}

impl Report {
    /// How many times as long the large one takes, for each kind.
    fn ratios(&self) -> impl Iterator<Item = f64> {
        let pairs = self.small.took.iter().zip(&self.large.took);
        pairs.map(|(small, large)| large.p50_ms / small.p50_ms)
    }

    fn table(&self) -> String {
        let mut lines = vec![
            format!(
                "**{}**: {} and {} volumes; {:.1} MB and {:.1} GB",
                self.database,
                self.small.volumes,
                self.large.volumes,
                mega(self.small.bytes),
                mega(self.large.bytes) / 1_000.0,
            ),
            String::new(),
            "| | p50 ms | p99 ms | p50 ms, large | p99 ms, large | times |".to_owned(),
            "|---|---:|---:|---:|---:|---:|".to_owned(),
        ];
        let pairs = self.small.took.iter().zip(&self.large.took);
        lines.extend(pairs.zip(self.ratios()).map(|((small, large), ratio)| {
            format!(
                "| {} | {:.2} | {:.2} | {:.2} | {:.2} | {ratio:.2} |",
                small.what, small.p50_ms, small.p99_ms, large.p50_ms, large.p99_ms
            )
        }));
        lines.push(String::new());
        lines.push(format!("Loaded in {:.0} s.", self.large.load_s));
        lines.join("\n")
    }
}

fn mega(bytes: u64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::as_conversions,
        reason = "sizes in a report"
    )]
    let bytes = bytes as f64;
    bytes / 1e6
}
