//! outside
//! Notices as signed webhooks (Standard Webhooks): id, timestamp and HMAC-SHA256 signatures over both
//! and the body. The id is the notice's, the same on every retry; no secret may show in `Debug`.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{HeaderMap, HeaderValue};

use crate::kms::BoxFuture;
use crate::notify::body::Body;
use crate::notify::post::{BadReceiver, Door};
use crate::notify::{Delivery, Notice, Receiver};

/// A signed webhook.
pub struct Webhook {
    door: Door,
    secrets: Vec<hmac::Key>,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Webhook({} secrets)", self.secrets.len())
    }
}

impl Webhook {
    /// `secret` is `whsec_` and base64; several, separated by blanks, give several signatures, so
    /// that a receiver can change its secret without losing a notice.
    ///
    /// # Errors
    /// If the address or a secret is malformed.
    pub fn new(url: &str, secret: &str) -> Result<Self, BadReceiver> {
        let key = |text: &str| {
            let bytes = text.strip_prefix("whsec_").and_then(|rest| STANDARD.decode(rest).ok()).ok_or(BadReceiver::Secret)?;
            // Bounds of the Standard Webhooks specification.
            if (24..=64).contains(&bytes.len()) { Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes)) } else { Err(BadReceiver::Secret) }
        };
        let secrets = secret.split_whitespace().map(key).collect::<Result<Vec<_>, _>>()?;
        if secrets.is_empty() {
            return Err(BadReceiver::Secret);
        }
        Ok(Self { door: Door::new(url)?, secrets })
    }

    fn signatures(&self, id: &str, seconds: i64, body: &[u8]) -> String {
        let signed = [id.as_bytes(), b".", seconds.to_string().as_bytes(), b".", body].concat();
        let one = |key: &hmac::Key| format!("v1,{}", STANDARD.encode(hmac::sign(key, &signed)));
        self.secrets.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    async fn deliver(&self, notice: &Notice) -> Delivery {
        match body(notice) {
            Ok(body) => self.post_signed(&notice.id.0, body).await,
            Err(_) => Delivery::Refused { reason: "the notice cannot be written as JSON".to_owned() },
        }
    }

    /// Connects without posting.
    pub(crate) fn reach(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.door.reach())
    }

    /// Signs a body under its id and posts it.
    pub(crate) async fn post_signed(&self, id: &str, body: Vec<u8>) -> Delivery {
        let now = crate::clock::now().wall;
        let refused = |why: &str| Delivery::Refused { reason: why.to_owned() };
        let seconds = now.0.div_euclid(1000);
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", seconds.to_string()),
            ("webhook-signature", self.signatures(id, seconds, &body)),
        ] {
            match HeaderValue::from_str(&value) {
                Ok(value) => headers.insert(name, value),
                Err(_) => return refused("the id cannot be a header"),
            };
        }
        self.door.post(headers, body, now).await
    }
}

/// The body as sent and signed.
///
/// # Errors
/// If it cannot be written as JSON.
pub fn body(notice: &Notice) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Body::of(notice))
}

impl Receiver for Webhook {
    fn send<'a>(&'a self, notice: &'a Notice) -> BoxFuture<'a, Delivery> {
        Box::pin(self.deliver(notice))
    }
    fn check(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.door.reach())
    }
}
