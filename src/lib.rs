//! `ekm`: encryption key management for tape drives, with the key-encrypting
//! keys in an HSM.
//!
//! The modules in the order in which a request meets them:
//!
//! ```text
//! drive / proxy --TLS--> server --Request--> policy --Grant--> exchange --> keystore --> bridge --PKCS#11--> token
//!                          ^                                                                         |
//!                          +--------- Audited answer <--------- audit, store <--------- Issued <-----+
//! ```

pub mod admin;
pub mod alarms;
pub mod api;
pub mod assess;
pub mod audit;
pub mod backup;
mod base64_bytes;
pub mod bridge;
pub mod certificates;
pub mod cli;
pub mod client;
pub mod config;
pub mod copies;
mod deadline;
pub mod drive;
pub mod exchange;
pub mod files;
pub mod job;
pub mod key;
pub mod keyfile;
pub mod keystore;
mod local;
pub mod metrics;
pub mod migrate;
pub mod operators;
pub mod policy;
pub mod problem;
pub mod proxy;
pub mod scsi;
pub mod server;
pub mod service;
pub mod softdrive;
pub mod store;
pub mod sync;
pub mod t10;
pub mod tls;
pub mod volser;
