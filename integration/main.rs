//! The tests that need the real thing: tokens, processes, TLS, disks.
//!
//! Each makes its own token and directory. Where a module is missing a test
//! says so loudly on a laptop and fails in CI.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should stop there"
)]

mod faulty;
mod pair;
mod postgres;
mod relay;
mod site;
mod support;
mod tokens;
mod uml;

mod adopt;
mod assess;
mod attacks;
mod backup;
mod bench;
mod budget;
mod catalog;
mod ceremony;
mod certificates;
mod cli;
mod conformance;
mod doctor;
mod door;
mod drill;
mod enrolment;
mod evidence;
mod failover;
mod faults;
mod fleet;
mod hangs;
mod hardship;
mod import;
mod inband;
mod interleavings;
mod job;
mod keyfile;
mod lifecycle;
mod metrics;
mod migrate;
mod moving;
mod openssl;
mod operators;
mod overload;
mod partner;
mod pending;
mod pin;
mod pkcs1_v15;
mod power_cut;
mod probe;
mod proxyd;
mod reach;
mod readiness;
mod resilience;
mod scan;
mod secrecy;
mod several;
mod software;
mod store;
mod storm;
mod sync;
mod tape;
mod tapejobs;
mod trust;
mod words;
