//! The safety vault: over the real binary, and over each provider's own client against its fake.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

#[path = "clouds/aws.rs"]
mod aws_cloud;
#[path = "clouds/azure.rs"]
mod azure_cloud;
#[path = "support/azure_wire.rs"]
mod azure_wire;
#[path = "clouds/gcp.rs"]
mod gcp_cloud;
#[path = "support/https.rs"]
mod https;
#[path = "support/daemon.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod support;

#[path = "support/wire.rs"]
mod wire;

#[path = "vault/clouds.rs"]
mod over;
#[path = "vault/doors.rs"]
mod doors;
#[path = "vault/lives.rs"]
mod lives;
#[path = "vault/house.rs"]
mod house;
