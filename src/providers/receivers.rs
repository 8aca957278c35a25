//! outside
//! Receivers from the configuration, their secrets resolved. Every fault is gathered and named by
//! receiver and field; it must never show an address or a secret, and never connect.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::{Config, ReceiverDetail, SecretRef, UrlRef};
use crate::key::ReceiverId;
use crate::notify::Receiver;
use crate::notify::alertmanager::Alertmanager;
use crate::notify::email::{BadEmail, Email, EmailSettings};
use crate::notify::pagerduty::PagerDuty;
use crate::notify::post::BadReceiver;
use crate::notify::slack::Slack;
use crate::notify::webhook::Webhook;
use crate::secrets::{self, Secret, SecretError};

/// No chain of certificates is longer.
const MOST_CA_BYTES: u64 = 1024 * 1024;

/// Why one receiver cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ReceiverFault {
    #[error("receiver {receiver}: {field}: {source}")]
    Secret { receiver: ReceiverId, field: &'static str, source: SecretError },
    #[error("receiver {receiver}: ca_file {path} cannot be read: {why}")]
    CaFile { receiver: ReceiverId, path: String, why: std::io::ErrorKind },
    #[error("receiver {receiver}: {source}")]
    Email { receiver: ReceiverId, source: BadEmail },
    #[error("receiver {receiver}: {source}")]
    Post { receiver: ReceiverId, source: BadReceiver },
}

/// Every fault found, one a line.
#[derive(Debug)]
pub struct ReceiversError {
    pub faults: Vec<ReceiverFault>,
}

impl std::fmt::Display for ReceiversError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        super::lines(f, &self.faults)
    }
}

impl std::error::Error for ReceiversError {}

/// Makes every configured receiver.
///
/// # Errors
/// Every fault found: a missing secret, an unreadable certificate, a malformed address.
pub fn receivers(config: &Config) -> Result<BTreeMap<ReceiverId, Arc<dyn Receiver>>, ReceiversError> {
    let (mut made, mut faults) = (BTreeMap::new(), Vec::new());
    for (id, receiver) in &config.receivers {
        match receiver_of(id, &receiver.detail) {
            Ok(receiver) => {
                made.insert(id.clone(), receiver);
            }
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(made) } else { Err(ReceiversError { faults }) }
}

fn receiver_of(id: &ReceiverId, detail: &ReceiverDetail) -> Result<Arc<dyn Receiver>, ReceiverFault> {
    let missing = |field| move |source| ReceiverFault::Secret { receiver: id.clone(), field, source };
    let secret = |field, reference: &SecretRef| secrets::resolve(reference).map_err(missing(field));
    let address = |url: &UrlRef| secrets::resolve_url(url).map_err(missing("url"));
    let bad = |source| ReceiverFault::Post { receiver: id.clone(), source };
    Ok(match detail {
        ReceiverDetail::Email { security, host, port, from, to, username, password, ca_file } => {
            let settings = EmailSettings {
                security: *security,
                host: host.clone(),
                port: *port,
                from: from.clone(),
                to: to.clone(),
                username: username.clone(),
                password: password.as_ref().map(|reference| secret("password", reference)).transpose()?.map(text),
                ca_pem: ca_file.as_ref().map(|path| certificate(id, path)).transpose()?,
            };
            Arc::new(Email::new(&settings).map_err(|source| ReceiverFault::Email { receiver: id.clone(), source })?)
        }
        ReceiverDetail::Webhook { url, secret: reference } => {
            let (url, key) = (address(url)?, secret("secret", reference)?);
            Arc::new(Webhook::new(url.expose(), key.expose()).map_err(bad)?)
        }
        ReceiverDetail::Slack { url } => Arc::new(Slack::new(address(url)?.expose()).map_err(bad)?),
        ReceiverDetail::PagerDuty { routing_key, url } => {
            let key = secret("routing_key", routing_key)?;
            let url = url.as_ref().map(address).transpose()?;
            Arc::new(PagerDuty::new(key.expose(), url.as_ref().map(Secret::expose)).map_err(bad)?)
        }
        ReceiverDetail::Alertmanager { url } => Arc::new(Alertmanager::new(address(url)?.expose()).map_err(bad)?),
    })
}

fn text(secret: Secret) -> String {
    secret.expose().to_owned()
}

fn certificate(id: &ReceiverId, path: &str) -> Result<String, ReceiverFault> {
    use std::io::Read as _;
    let fault = |why: std::io::Error| ReceiverFault::CaFile { receiver: id.clone(), path: path.to_owned(), why: why.kind() };
    let mut pem = String::new();
    std::fs::File::open(path).and_then(|file| file.take(MOST_CA_BYTES).read_to_string(&mut pem)).map_err(fault)?;
    Ok(pem)
}
