//! outside
//! Levers from the configuration, their secrets resolved. Every fault is gathered and named by lever
//! and field; it must never show an address or a secret, and never connect.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::{Config, LeverDetail};
use crate::key::LeverId;
use crate::lever::Lever;
use crate::lever::claude::ClaudeLever;
use crate::lever::file::FileLever;
use crate::lever::webhook::WebhookLever;
use crate::notify::post::BadReceiver;
use crate::secrets::{self, SecretError};

/// Why one lever cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum LeverFault {
    #[error("lever {lever}: {field}: {source}")]
    Secret { lever: LeverId, field: &'static str, source: SecretError },
    #[error("lever {lever}: {source}")]
    Post { lever: LeverId, source: BadReceiver },
    #[error("lever {lever}: path {path} cannot be written: {why}")]
    File { lever: LeverId, path: String, why: std::io::ErrorKind },
}

/// Every fault found, one a line.
#[derive(Debug)]
pub struct LeversError {
    pub faults: Vec<LeverFault>,
}

impl std::fmt::Display for LeversError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        super::lines(f, &self.faults)
    }
}

impl std::error::Error for LeversError {}

pub type LeverMap = BTreeMap<LeverId, Arc<dyn Lever>>;

/// Makes every configured lever. A deny-list that is not there yet is made, empty.
///
/// # Errors
/// Every fault found: a missing secret, a malformed address, a list that cannot be written.
pub fn levers(config: &Config) -> Result<LeverMap, LeversError> {
    let (mut made, mut faults) = (BTreeMap::new(), Vec::new());
    for (id, lever) in &config.levers {
        match lever_of(id, &lever.detail) {
            Ok(lever) => {
                made.insert(id.clone(), lever);
            }
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(made) } else { Err(LeversError { faults }) }
}

fn lever_of(id: &LeverId, detail: &LeverDetail) -> Result<Arc<dyn Lever>, LeverFault> {
    let missing = |field| move |source| LeverFault::Secret { lever: id.clone(), field, source };
    let bad = |source| LeverFault::Post { lever: id.clone(), source };
    Ok(match detail {
        LeverDetail::Claude { base_url, api_key } => {
            let key = secrets::resolve(api_key).map_err(missing("api_key"))?;
            Arc::new(ClaudeLever::new(base_url, key).map_err(bad)?)
        }
        LeverDetail::Webhook { url, secret } => {
            let url = secrets::resolve_url(url).map_err(missing("url"))?;
            let secret = secrets::resolve(secret).map_err(missing("secret"))?;
            Arc::new(WebhookLever::new(url.expose(), secret.expose()).map_err(bad)?)
        }
        LeverDetail::File { path, format } => {
            let lever = FileLever::new(path, *format);
            lever.make_if_missing().map_err(|why| LeverFault::File { lever: id.clone(), path: path.clone(), why: why.kind() })?;
            Arc::new(lever)
        }
    })
}
