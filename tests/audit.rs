//! Audit sources and pushed hints: the doors with every way to prove oneself, the readers against servers
//! that are not ours or that the providers' own Python clients referee, and the whole way in the daemon.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code"
)]

#[path = "clouds/azure.rs"]
mod azure_cloud;
#[path = "clouds/azure_logs.rs"]
mod azure_logs;
mod clouds {
    pub mod aws;
    use super::wire;
}
#[path = "clouds/gcp.rs"]
mod gcp_cloud;
#[path = "support/https.rs"]
mod https;
#[path = "support/ministack.rs"]
mod ministack;
#[path = "support/doors.rs"]
mod support;
#[path = "support/watchdog.rs"]
mod watchdog;
#[path = "support/wire.rs"]
mod wire;

#[path = "audit/aws.rs"]
mod aws;
#[path = "audit/doors.rs"]
mod doors;
#[path = "audit/latency.rs"]
mod latency;
#[path = "audit/logs.rs"]
mod logs;

use cmek_watchdog::audit::Mask;
use cmek_watchdog::config::{AuditKind, AuditSource};
use cmek_watchdog::key::ProviderId;
use cmek_watchdog::time::Span;

/// A source with nothing special.
fn source(name: &str, kind: AuditKind, provider: &str) -> AuditSource {
    AuditSource {
        name: name.into(),
        kind,
        provider: ProviderId::new(provider).unwrap(),
        poll_interval: Span::from_secs(1),
        address: None,
        region: None,
        assume_role: None,
        impersonate: None,
        tenant: None,
        subscription: None,
        endpoint: None,
        mask: Vec::<Mask>::new(),
        look_now: true,
        delete_malformed: true,
        auth: None,
    }
}

/// An EventBridge event about an AWS key.
fn bridge(id: &str, event: &str, arn: &str) -> serde_json::Value {
    let account = arn.split(':').nth(4).unwrap();
    serde_json::json!({
        "version": "0", "id": format!("b-{id}"), "detail-type": "AWS API Call via CloudTrail", "source": "aws.kms", "account": account,
        "detail": {
            "eventID": id, "eventSource": "kms.amazonaws.com", "eventName": event, "eventTime": cmek_watchdog::clock::now().wall.to_string(),
            "awsRegion": arn.split(':').nth(3).unwrap(), "recipientAccountId": account, "sourceIPAddress": "203.0.113.9", "userAgent": "aws-cli/2.31",
            "requestParameters": {"keyId": arn}, "userIdentity": {"type": "IAMUser", "arn": format!("arn:aws:iam::{account}:user/alice")},
        },
    })
}
