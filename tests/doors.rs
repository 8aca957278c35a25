//! The doors as clients see them: routes, roles, refusals, problems, listeners.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::too_many_lines,
    reason = "test code"
)]

#[path = "support/doors.rs"]
mod support;

#[path = "doors/access.rs"]
mod access;
#[path = "doors/gate.rs"]
mod gate;
#[path = "doors/listeners.rs"]
mod listeners;
#[path = "doors/ofrep.rs"]
mod ofrep;
#[path = "doors/orders.rs"]
mod orders;
#[path = "doors/reads.rs"]
mod reads;
