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
mod site;
mod support;
mod tokens;

mod adopt;
mod assess;
mod attacks;
mod budget;
mod ceremony;
mod certificates;
mod cli;
mod conformance;
mod doctor;
mod door;
mod drill;
mod enrolment;
mod faults;
mod hangs;
mod hardship;
mod import;
mod interleavings;
mod job;
mod keyfile;
mod metrics;
mod migrate;
mod moving;
mod openssl;
mod overload;
mod partner;
mod pin;
mod power_cut;
mod probe;
mod readiness;
mod resilience;
mod secrecy;
mod several;
mod software;
mod storm;
mod trust;
