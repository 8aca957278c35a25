//! The daemon as it is delivered: the real binary, its real doors, files and signals.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

#[path = "support/daemon.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod support;

#[path = "support/receivers.rs"]
mod receivers;

#[path = "daemon/denials.rs"]
mod denials;
#[path = "daemon/full_disk.rs"]
mod full_disk;
#[path = "daemon/mail.rs"]
mod mail;
#[path = "daemon/orders.rs"]
mod orders;
#[path = "daemon/quickstart.rs"]
mod quickstart;
#[path = "daemon/reload.rs"]
mod reload;
#[path = "daemon/restart.rs"]
mod restart;
#[path = "daemon/service_manager.rs"]
mod service_manager;
#[path = "daemon/start.rs"]
mod start;
