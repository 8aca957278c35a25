//! outside
//! A lever behind a signed webhook (Standard Webhooks): `lever.pull` and `lever.undo`. The id holds
//! workspace, sequence and act, the same on every retry; no address or secret may show.

use serde::Serialize;

use crate::kms::BoxFuture;
use crate::lever::{Lever, LeverOrder, Outcome};
use crate::notify::Delivery;
use crate::notify::post::BadReceiver;
use crate::notify::webhook::Webhook;
use crate::time::Wall;
use crate::words::LeverAct;

/// One lever of somebody else's.
#[derive(Debug)]
pub struct WebhookLever(Webhook);

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    event: &'static str,
    timestamp: Wall,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    lever: &'a str,
    workspace: &'a str,
    /// Number of the change; a lower one than the last seen for this workspace is an old retry.
    sequence: u64,
}

impl WebhookLever {
    /// # Errors
    /// If the address or a secret is malformed.
    pub fn new(url: &str, secret: &str) -> Result<Self, BadReceiver> {
        Webhook::new(url, secret).map(Self)
    }

    async fn call(&self, order: &LeverOrder) -> Outcome {
        let event = match order.act {
            LeverAct::Pull => "lever.pull",
            LeverAct::Undo => "lever.undo",
        };
        let id = format!("lvr_{}_{}_{}_{}", order.lever, order.workspace, order.sequence.0, order.act);
        let data = Data { lever: order.lever.as_str(), workspace: order.workspace.as_str(), sequence: order.sequence.0 };
        let Ok(body) = serde_json::to_vec(&Body { event, timestamp: crate::clock::now().wall, data }) else {
            return Outcome::Failed { reason: "the call cannot be written as JSON".to_owned(), after: None, memory: None };
        };
        match self.0.post_signed(&id, body).await {
            Delivery::Delivered => Outcome::Done { memory: None, left: Vec::new() },
            Delivery::Retry { after, reason } => Outcome::Failed { reason, after, memory: None },
            // A lever that refuses may be mended by its owner: it is asked again, with long pauses.
            Delivery::Refused { reason } => Outcome::Failed { reason, after: Some(crate::lever::AGAIN), memory: None },
        }
    }
}

impl Lever for WebhookLever {
    fn act<'a>(&'a self, order: &'a LeverOrder) -> BoxFuture<'a, Outcome> {
        Box::pin(self.call(order))
    }

    fn check(&self) -> BoxFuture<'_, Result<(), String>> {
        self.0.reach()
    }
}
