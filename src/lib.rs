//! The map of the crate, in the order in which data passes through it.
//!
//! A file here is a stage of the path and is pure: types, decisions, and the trait it needs. A folder
//! of the same name holds the adapters that touch the world (first line `//! outside`) or further
//! pure parts (`//! inside`). `cargo check --no-default-features --lib` builds the inside alone.

// Tests inside and outside share one world of keys and stores, and so its paths.
#[cfg(test)]
extern crate self as cmek_watchdog;

pub mod words;
pub mod time;
pub mod key;
pub mod kms;
pub mod probe;
pub mod verdict;
pub mod policy;
pub mod schedule;
pub mod audit;
pub mod lifecycle;
pub mod gate;
pub mod snapshot;
pub mod lease;
pub mod notify;
pub mod journal;
pub mod vault;
pub mod config;
pub mod lockout;
pub mod lever;
pub mod operate;
pub mod watch;

#[cfg(any(feature = "daemon", feature = "client"))]
pub mod clock;
#[cfg(feature = "daemon")]
pub mod published;
#[cfg(feature = "daemon")]
pub mod secrets;
#[cfg(feature = "daemon")]
pub mod store;
#[cfg(feature = "daemon")]
pub mod metrics;
#[cfg(feature = "daemon")]
pub mod http;
#[cfg(feature = "daemon")]
pub mod drive;
#[cfg(feature = "daemon")]
pub mod providers;
#[cfg(feature = "daemon")]
pub mod run;
#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
