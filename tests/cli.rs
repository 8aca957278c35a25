//! The program as people and scripts meet it: the built binary, its exit codes, its text and its JSON.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

#[path = "support/doors.rs"]
mod doors;
#[path = "support/store_rows.rs"]
mod rows;

#[path = "cli/desk.rs"]
mod desk;
#[path = "cli/live.rs"]
mod live;
#[path = "cli/offline.rs"]
mod offline;
#[path = "cli/online.rs"]
mod online;
#[path = "cli/usage.rs"]
mod usage;
