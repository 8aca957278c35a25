//! outside
//! The dead man's switch: one call a turn to an address that raises an alarm when the calls stop. It
//! speaks of the daemon only: failing keys never silence it, a stuck loop or store does.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HeaderMap;
use tokio::sync::{mpsc, oneshot};

use crate::clock;
use crate::config::Config;
use crate::http::Ask;
use crate::metrics::Metrics;
use crate::notify::Delivery;
use crate::notify::post::Door;
use crate::operate::{Action, Operation, Reply};
use crate::run::Swap;
use crate::secrets;
use crate::store::sqlite::SqliteStore;

/// The loop answers in a moment or is stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

pub struct Heart {
    pub config: Swap<Config>,
    pub asks: mpsc::Sender<Ask>,
    pub store: Arc<SqliteStore>,
    pub metrics: Arc<Metrics>,
}

impl Heart {
    /// Beats until it is dropped. A new address or interval is in force with the next beat.
    pub async fn run(self) {
        loop {
            let interval = self.config.load().heartbeat.interval.to_std();
            tokio::time::sleep(interval).await;
            match self.beat().await {
                Ok(true) => self.metrics.heartbeat(clock::now().wall),
                Ok(false) => {}
                Err(why) => tracing::error!(why, "no heartbeat was sent"),
            }
        }
    }

    /// One beat; `false` without an address.
    async fn beat(&self) -> Result<bool, String> {
        let config = self.config.load_full();
        let Some(url) = &config.heartbeat.url else { return Ok(false) };
        self.well().await?;
        let head = self.store.head().await.map_err(|fault| fault.to_string())?;
        let address = secrets::resolve_url(url).map_err(|fault| fault.to_string())?;
        let door = Door::new(address.expose()).map_err(|fault| fault.to_string())?;
        let now = clock::now().wall;
        let body = serde_json::json!({ "at": now, "journal": { "sequence": head.sequence, "hash": head.hash } });
        match door.post(HeaderMap::new(), body.to_string().into_bytes(), now).await {
            Delivery::Delivered => Ok(true),
            Delivery::Retry { reason, .. } | Delivery::Refused { reason } => Err(reason),
        }
    }

    /// Asks the loop how it is; an answer at all says that it turns.
    async fn well(&self) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let operation = Operation { actor: "heartbeat".to_owned(), action: Action::Health };
        self.asks.try_send(Ask { operation, answer }).map_err(|_| "the loop takes no questions".to_owned())?;
        match tokio::time::timeout(ANSWER_WITHIN, answered).await {
            Ok(Ok(Ok(Reply::Health(None)))) => Ok(()),
            Ok(Ok(Ok(Reply::Health(Some(why))))) => Err(why),
            Ok(Ok(Ok(_)) | Ok(Err(_)) | Err(_)) | Err(_) => Err("the loop does not answer".to_owned()),
        }
    }
}
