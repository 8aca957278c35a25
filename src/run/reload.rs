//! outside
//! A new configuration, all or nothing: read, checked, secrets resolved, clients opened; only then
//! handed to the core. Whatever fails leaves everything as it was, and is shown.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};

use crate::config::Config;
use crate::config::load::{self, Loaded};
use crate::http::serve::SharedTls;
use crate::http::tls::server_config;
use crate::http::{Ask, Reload};
use crate::kms::BoxFuture;
use crate::metrics::Metrics;
use crate::operate::{Action, Operation};
use crate::providers::{Providers, receivers, vault_keys};
use crate::run::Swap;
use crate::run::effects::{KmsMap, ReceiverMap, kms_map};
use crate::vault::desk::Vault;

pub struct Reloader {
    pub path: PathBuf,
    pub asks: mpsc::Sender<Ask>,
    pub config: Swap<Config>,
    pub kms: Swap<KmsMap>,
    pub receivers: Swap<ReceiverMap>,
    pub metrics: Arc<Metrics>,
    pub vault: Arc<Vault>,
    pub last_good: LastGood,
    pub tls: Option<SharedTls>,
    pub one_at_a_time: Mutex<()>,
}

impl Reloader {
    async fn take(&self, actor: &str) -> Result<(), String> {
        let path = self.path.clone();
        let loaded = tokio::task::spawn_blocking(move || load::load(&path)).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        let old = self.config.load_full();
        needs_restart(&old, &loaded.config)?;
        let opened = Providers::open(&loaded.config, None).await.map_err(|e| e.to_string())?;
        let vault_keys = vault_keys(&loaded.config).await.map_err(|e| e.to_string())?;
        let receivers = receivers(&loaded.config).map_err(|e| e.to_string())?;
        let certificate = match (&self.tls, &loaded.config.server.tls) {
            (Some(shared), Some(tls)) => Some((shared, Arc::new(server_config(tls).map_err(|e| e.to_string())?))),
            _ => None,
        };
        // Clients first: the core orders probes of new keys in the same turn.
        let before = (self.kms.swap(Arc::new(kms_map(&opened))), self.receivers.swap(Arc::new(receivers)));
        if let Err(refused) = self.ask(actor, Action::Reload { config: Arc::clone(&loaded.config) }).await {
            self.kms.store(before.0);
            self.receivers.store(before.1);
            return Err(refused);
        }
        if let Some((shared, certificate)) = certificate {
            shared.store(certificate);
        }
        self.vault.set_keys(vault_keys).await;
        self.config.store(Arc::clone(&loaded.config));
        self.last_good.keep(&loaded.text);
        Ok(())
    }

    async fn ask(&self, actor: &str, action: Action) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let operation = Operation { actor: actor.to_owned(), action };
        self.asks.send(Ask { operation, answer }).await.map_err(|_| "the daemon is stopping".to_owned())?;
        match answered.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(refusal)) => Err(refusal.to_string()),
            Err(_) => Err("the daemon is stopping".to_owned()),
        }
    }
}

/// What is bound at the start cannot be moved while running.
fn needs_restart(old: &Config, new: &Config) -> Result<(), String> {
    let fields = [
        ("server.listen", old.server.listen == new.server.listen),
        ("server.run_dir", old.server.run_dir == new.server.run_dir),
        ("server.tls", old.server.tls.is_some() == new.server.tls.is_some()),
        ("store.url", old.store.url == new.store.url),
    ];
    match fields.iter().find(|(_, same)| !same) {
        Some((field, _)) => Err(format!("{field}: a change of this field needs a restart; nothing was taken")),
        None => Ok(()),
    }
}

impl Reload for Reloader {
    fn reload<'a>(&'a self, actor: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let _one = self.one_at_a_time.lock().await;
            let result = self.take(actor).await;
            self.metrics.config_reload(result.is_ok());
            if let Err(error) = &result
                && let Err(refused) = self.ask(actor, Action::ReloadFailed { error: error.clone() }).await
            {
                tracing::warn!(refused, "a failed reload could not be noted");
            }
            result
        })
    }
}

/// The last configuration that was taken, kept where the store's address need not be known:
/// in the service's state directory, else beside the file.
pub struct LastGood {
    file: PathBuf,
    of: PathBuf,
}

impl LastGood {
    #[must_use]
    pub fn beside(config: &Path) -> Self {
        let name = config.file_name().map_or_else(|| "config.toml".to_owned(), |name| name.to_string_lossy().into_owned());
        let file = match std::env::var_os("STATE_DIRECTORY") {
            Some(folder) => PathBuf::from(folder).join(format!("{name}.last-good")),
            None => config.with_file_name(format!(".{name}.last-good")),
        };
        Self { file, of: config.to_owned() }
    }

    /// The last good configuration, if there is one and it is still good.
    #[must_use]
    pub fn load(&self) -> Option<Loaded> {
        let text = std::fs::read_to_string(&self.file).ok()?;
        let folder = self.of.parent().map_or_else(|| ".".to_owned(), |folder| folder.to_string_lossy().into_owned());
        let folder = if folder.is_empty() { ".".to_owned() } else { folder };
        load::from_text(&text, &self.file.display().to_string(), &folder).ok()
    }

    /// Kept with mode 0600: addresses in it may be secrets.
    pub fn keep(&self, text: &str) {
        if std::fs::read_to_string(&self.file).is_ok_and(|old| old == text) {
            return;
        }
        if let Err(error) = write_private(&self.file, text) {
            tracing::warn!(%error, file = %self.file.display(), "the last good configuration could not be kept");
        }
    }
}

fn write_private(file: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let beside = file.with_extension("last-good.new");
    let mut opened = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    opened.write_all(text.as_bytes())?;
    opened.sync_all()?;
    std::fs::rename(&beside, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::{Refusal, RefusalSlug};
    use crate::store::sqlite::{Opened, Options, SqliteStore};
    use crate::time::Span;
    use arc_swap::ArcSwap;

    #[tokio::test]
    async fn a_configuration_that_the_core_refuses_leaves_the_old_clients() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let text = "[providers.local]\nkind = \"local\"\npath = \"kms.json\"\n[[keys]]\nid = \"k\"\nprovider = \"local\"\nkey = \"k\"\nworkspaces = [\"w\"]\n";
        std::fs::write(&path, text).unwrap();
        let (asks, mut asked) = mpsc::channel::<Ask>(1);
        let loaded = load::load(&path).unwrap();
        let (kms, receivers) = (Arc::new(KmsMap::new()), Arc::new(ReceiverMap::new()));
        let metrics = Arc::new(Metrics::new().unwrap());
        let opened = SqliteStore::open(&folder.path().join("state.db"), Options::default()).await.unwrap();
        let Opened::Ready { store, .. } = opened else { panic!("a first start") };
        let vault = Vault::load(store, Vec::new(), Span::from_mins(5), Arc::clone(&metrics)).await.unwrap();
        let reloader = Reloader {
            vault,
            last_good: LastGood::beside(&path),
            path,
            asks,
            config: Arc::new(ArcSwap::new(Arc::clone(&loaded.config))),
            kms: Arc::new(ArcSwap::new(Arc::clone(&kms))),
            receivers: Arc::new(ArcSwap::new(Arc::clone(&receivers))),
            metrics,
            tls: None,
            one_at_a_time: Mutex::new(()),
        };
        let core = async {
            let ask = asked.recv().await.unwrap();
            let refusal = Refusal { slug: RefusalSlug::Busy, detail: "too many requests".to_owned() };
            ask.answer.send(Err(refusal)).unwrap();
        };
        let (taken, ()) = tokio::join!(reloader.take("test"), core);
        assert_eq!(taken, Err("too many requests".to_owned()));
        assert!(Arc::ptr_eq(&reloader.kms.load_full(), &kms));
        assert!(Arc::ptr_eq(&reloader.receivers.load_full(), &receivers));
        assert!(Arc::ptr_eq(&reloader.config.load_full(), &loaded.config));
        assert!(reloader.last_good.load().is_none());
    }
}
