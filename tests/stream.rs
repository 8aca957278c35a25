//! The stream, acknowledgements, leases and the client that lives from them: against the real router
//! with a hub fed by the test, and against the real daemon.
#![cfg(all(feature = "daemon", feature = "client"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "test code"
)]

#[path = "support/doors.rs"]
mod doors;
#[path = "support/daemon.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod support;

#[path = "stream/client.rs"]
mod client;
#[path = "stream/crowd.rs"]
mod crowd;
#[path = "stream/leases.rs"]
mod leases;
#[path = "stream/reads.rs"]
mod reads;
