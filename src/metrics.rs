//! What is measured while a server runs, and how it is shown.
//!
//! Nothing here names a drive, a cartridge or a key: labels come from the
//! configuration and from this program only, so there are few of them.

pub mod families;
mod latency;
mod page;
mod requests;

pub use latency::{BOUNDS, Histogram, Latency};
pub use page::{CONTENT_TYPE, Family, Kind, Page, Value};
pub use requests::{Outcome, Requests, UnderWay, Verb, VerbSeen};
