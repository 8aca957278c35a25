//! outside
//! The start, in the only safe order: configuration, secrets, store, stored locks published, then
//! doors. Nothing is served before stored locks stand, and a start that cannot be safe is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch as flag;

use crate::clock;
use crate::config::load::{self, LoadError, Loaded};
use crate::config::{Config, StoreUrl, WhenLost};
use crate::drive::Identities;
use crate::http::acks::Acks;
use crate::http::hub::{Feed, Hub};
use crate::http::serve::{SharedTls, serve_socket, serve_tcp};
use crate::http::socket::{ControlSocket, SocketFault};
use crate::http::tls::{TlsFault, server_config};
use crate::http::{App, Health, Limits};
use crate::journal::{Order, Restored, Store, StoreFault};
use crate::metrics::Metrics;

use crate::providers::{LeversError, Providers, ProvidersError, ReceiversError, levers, receivers, vault_keys};
use crate::published::Published;
use crate::run::effects::{Parts, Stores, kms_map};
use crate::run::heartbeat::Heart;
use crate::run::reload::{LastGood, Reloader};
use crate::run::{Handle, RunOptions, calendar, supervise};
use crate::store::lease_keys::LeaseKeys;
use crate::store::spool::Spool;
use crate::store::sqlite::{LOST_AT, Opened, Options, SqliteStore};
use crate::time::Span;
use crate::vault::Records;
use crate::vault::desk::{KEEP, Vault};
use crate::watch::{Effects, Start, Watch};

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("{0}")]
    Config(#[from] LoadError),
    #[error("{0}")]
    Providers(#[from] ProvidersError),
    #[error("{0}")]
    Receivers(#[from] ReceiversError),
    #[error("{0}")]
    Audit(String),
    #[error("{0}")]
    Levers(#[from] LeversError),
    #[error("server.tls: {0}")]
    Tls(#[from] TlsFault),
    #[error("store.url: {0}")]
    NotBuilt(&'static str),
    #[error("store {path}: {fault}")]
    Store { path: String, fault: StoreFault },
    #[error(
        "store {path} is lost: the marker beside it tells of installation {installation}, and there is no database. Restore it from a backup, or set store.when_lost = \"locked_until_proven\""
    )]
    Lost { path: String, installation: String },
    #[error(
        "store {path} is another one: the marker beside it tells of installation {expected}, the database of {found}. Put the right one back, or set store.when_lost = \"locked_until_proven\""
    )]
    Replaced { path: String, expected: String, found: String },
    #[error("server.listen {address}: {source}")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error("server.run_dir: {0}")]
    Socket(#[from] SocketFault),
    #[error("{0}")]
    Runtime(String),
}

impl Fault {
    pub(super) fn runtime(error: impl std::fmt::Display) -> Self {
        Self::Runtime(error.to_string())
    }

    /// The exit code of the contract (SETTLED D5).
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::Providers(_)
            | Self::Receivers(_)
            | Self::Levers(_)
            | Self::Audit(_)
            | Self::Tls(_)
            | Self::NotBuilt(_) => 78,
            Self::Store { .. } | Self::Lost { .. } | Self::Replaced { .. } => 74,
            Self::Listen { .. } | Self::Socket(_) | Self::Runtime(_) => 1,
        }
    }
}

/// The configuration in force, and why it is not the file's if it is not.
struct Chosen {
    loaded: Loaded,
    error: Option<String>,
}

fn choose(options: &RunOptions, last_good: &LastGood) -> Result<Chosen, Fault> {
    match load::load(&options.config_path) {
        Ok(loaded) => Ok(Chosen { loaded, error: None }),
        Err(error) if options.strict => Err(error.into()),
        Err(error) => match last_good.load() {
            Some(loaded) => {
                tracing::error!(%error, "the configuration file cannot be used; the last good one is in force");
                Ok(Chosen { loaded, error: Some(error.to_string()) })
            }
            None => Err(error.into()),
        },
    }
}

/// Receivers, and the secrets of audit sources: a missing one ends the start and is named.
fn outward(config: &Config) -> Result<crate::run::effects::ReceiverMap, Fault> {
    crate::run::audit::check(config).map_err(Fault::Audit)?;
    Ok(receivers(config)?)
}

pub(super) async fn run(options: RunOptions) -> Result<(), Fault> {
    let last_good = LastGood::beside(&options.config_path);
    let chosen = choose(&options, &last_good)?;
    let config = Arc::clone(&chosen.loaded.config);
    chosen.loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let opened = Providers::open(&config, None).await?;
    let receivers = Arc::new(ArcSwap::from_pointee(outward(&config)?));
    let levers = Arc::new(ArcSwap::from_pointee(levers(&config)?));
    let tls = shared_tls(&config)?;
    let (store, spool, restored, lost) = open_store(&config).await?;
    let cursors = crate::run::audit::stored_cursors(&restored.meta);
    let head = restored.head;
    let start = Start { store_lost: lost, config_error: chosen.error.clone(), config_text: None };
    let now = clock::now();
    let (watch, published) = restore(&config, restored, start, now);
    let metrics = Arc::new(Metrics::new().map_err(Fault::runtime)?);
    let vault = vault(&config, &store, &metrics).await?;
    metrics.config_reload(chosen.error.is_none());
    let health = Arc::new(Health::new(now.mono));
    let kms = Arc::new(ArcSwap::from_pointee(kms_map(&opened)));
    let (pushing, feed) = Pushing::start(&config, head, now, &metrics)?;
    let parts = Parts {
        feed,
        published: published.clone(),
        metrics: Arc::clone(&metrics),
        health: Arc::clone(&health),
        kms: Arc::clone(&kms),
        receivers: Arc::clone(&receivers),
        levers: Arc::clone(&levers),
        identities: Arc::new(Identities::default()),
        doors: tokio::runtime::Handle::current(),
        supervisor: supervise::Supervisor::new(),
    };
    let stores = Stores { store: Arc::clone(&store) as Arc<dyn Store>, spool };
    let shared = Arc::new(ArcSwap::new(Arc::clone(&config)));
    // From here on a signal waits for its turn: none ends the daemon in the middle of its first steps.
    let signals = Signals::listen()?;
    // Doors are bound before the loop starts: a port that is taken ends the start with nothing begun.
    let (listener, socket) = bind(&config).await?;
    let handle = crate::run::spawn(watch, parts, stores)?;
    if chosen.error.is_none() {
        last_good.keep(&chosen.loaded.text);
    }
    let reloader = Arc::new(Reloader {
        vault: Arc::clone(&vault),
        path: options.config_path.clone(),
        asks: handle.asks.clone(),
        config: Arc::clone(&shared),
        kms,
        receivers,
        levers,
        metrics: Arc::clone(&metrics),
        last_good,
        tls: tls.clone(),
        one_at_a_time: tokio::sync::Mutex::new(()),
    });
    let app = App {
        published,
        asks: handle.asks.clone(),
        store: Arc::clone(&store) as Arc<dyn Store>,
        config: shared,
        metrics,
        reload: Arc::clone(&reloader) as Arc<dyn crate::http::Reload>,
        health,
        hub: pushing.hub,
        acks: pushing.acks,
        leases: pushing.leases,
        vault: Some(vault),
    };
    serve(handle, store, app, reloader, Doors { listener, socket, tls, cursors }, signals).await
}

/// The core with what was stored; its locks stand from here on, and only now may a door open.
fn restore(config: &Arc<Config>, restored: Restored, start: Start, now: crate::time::Now) -> (Watch, Published) {
    let published = Published::default();
    let mut out = Effects::default();
    let watch = Watch::new(Arc::clone(config), restored, start, now, &mut out);
    published.apply(std::mem::take(&mut out.publish));
    published.apply(vec![crate::snapshot::Change::Fresh(now.mono)]);
    (watch, published)
}

async fn bind(config: &Config) -> Result<(tokio::net::TcpListener, ControlSocket), Fault> {
    let address = config.server.listen;
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|source| Fault::Listen { address, source })?;
    Ok((listener, ControlSocket::bind(Path::new(&config.server.run_dir))?))
}

/// The vault over the store, with keys of its own. Without a configured key it is there and empty.
async fn vault(config: &Config, store: &Arc<SqliteStore>, metrics: &Arc<Metrics>) -> Result<Arc<Vault>, Fault> {
    let keys = vault_keys(config).await?;
    let records = Arc::clone(store) as Arc<dyn Records>;
    let path = || match &config.store.url {
        StoreUrl::Sqlite(path) | StoreUrl::Postgres(path) => path.to_string(),
    };
    Vault::load(records, keys, KEEP, Arc::clone(metrics)).await.map_err(|fault| Fault::Store { path: path(), fault })
}

/// The vault's keys are looked at as often as a key of the default policy.
fn look_every(config: &crate::run::Swap<Config>) -> impl Fn() -> std::time::Duration + Send + use<> {
    let config = Arc::clone(config);
    move || {
        let config = config.load();
        let usual = config.policies.get("default").map_or(Span::from_secs(60), |policy| policy.probe_interval);
        usual.max(Span::from_secs(1)).min(Span::from_mins(5)).to_std()
    }
}

/// What callers come in by, bound and not served yet.
struct Doors {
    listener: tokio::net::TcpListener,
    socket: ControlSocket,
    tls: Option<SharedTls>,
    /// Where the audit sources are read on from.
    cursors: BTreeMap<String, crate::audit::Cursor>,
}

async fn serve(
    handle: Handle,
    store: Arc<SqliteStore>,
    app: App,
    reloader: Arc<Reloader>,
    Doors { listener, socket, tls, cursors }: Doors,
    signals: Signals,
) -> Result<(), Fault> {
    if let Some(vault) = &app.vault {
        tokio::spawn(crate::vault::look::run(Arc::clone(vault), handle.asks.clone(), look_every(&app.config)));
    }
    let (closing, closed) = flag::channel(false);
    let until = |mut closed: flag::Receiver<bool>| async move {
        let _ = closed.wait_for(|closed| *closed).await;
    };
    tracing::info!(address = %listener.local_addr().map_or_else(|_| "unknown".to_owned(), |a| a.to_string()), "serving");
    let tcp = tokio::spawn(serve_tcp(listener, tls, app.clone(), Limits::default(), until(closed.clone())));
    let readers = crate::run::audit::run(Arc::clone(&app.config), handle.asks.clone(), Arc::clone(&app.metrics), cursors, closed.clone());
    let readers = tokio::spawn(readers);
    let (app_leases, tended) = (Arc::clone(&app.leases), Arc::clone(&app.config));
    let unix = tokio::spawn(serve_socket(socket, app, Limits::default(), until(closed)));
    let calendar = calendar::start(Arc::clone(&reloader.config), handle.asks.clone()).await;
    let heart = Heart {
        config: Arc::clone(&reloader.config),
        asks: handle.asks.clone(),
        store: Arc::clone(&store),
        metrics: Arc::clone(&reloader.metrics),
    };
    let heart = tokio::spawn(heart.run());
    let tending = tokio::spawn(crate::http::lease::tend(app_leases, tended));
    supervise::ready();
    signals.wait(&reloader).await;
    tracing::info!("stopping");
    supervise::stopping();
    heart.abort();
    if let Some(mut calendar) = calendar
        && let Err(error) = calendar.shutdown().await
    {
        tracing::warn!(%error, "the calendar did not stop");
    }
    let _ = handle.stop.send(true);
    let joined = tokio::task::spawn_blocking(move || handle.thread.join()).await;
    tending.abort();
    let _ = closing.send(true);
    let _ = tokio::join!(tcp, unix, readers);
    store.close().await;
    match joined {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Fault::runtime("the loop ended in a panic")),
    }
}

/// The signals that mean something here, caught from the moment this is made.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Fault> {
        let listen = |kind| signal(kind).map_err(Fault::runtime);
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// SIGHUP reloads; SIGTERM and SIGINT end.
    async fn wait(mut self, reloader: &Arc<Reloader>) {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => {
                    let reloader = Arc::clone(reloader);
                    tokio::spawn(async move {
                        if let Err(error) = crate::http::Reload::reload(&*reloader, "signal").await {
                            tracing::error!(%error, "the configuration was not taken");
                        }
                    });
                }
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
            }
        }
    }
}

fn shared_tls(config: &Config) -> Result<Option<SharedTls>, Fault> {
    Ok(match &config.server.tls {
        Some(tls) => Some(Arc::new(ArcSwap::from_pointee(server_config(tls)?))),
        None => None,
    })
}

/// What services follow, acknowledge and lease with.
struct Pushing {
    hub: Arc<Hub>,
    acks: Arc<Acks>,
    leases: Arc<LeaseKeys>,
}

impl Pushing {
    fn start(config: &Config, head: u64, now: crate::time::Now, metrics: &Arc<Metrics>) -> Result<(Self, Feed), Fault> {
        let leases = Arc::new(lease_keys(config)?);
        let hub = Arc::new(Hub::new(head, Limits::default().subscribers, now));
        let acks = Arc::new(Acks::default());
        let feed = hub.start(Arc::clone(metrics), Arc::clone(&acks));
        Ok((Self { hub, acks, leases }, feed))
    }
}

/// The signing keys beside the store: made at the first start, looked after once a minute.
fn lease_keys(config: &Config) -> Result<LeaseKeys, Fault> {
    let path = match &config.store.url {
        StoreUrl::Sqlite(path) => PathBuf::from(path),
        StoreUrl::Postgres(_) => return Err(Fault::NotBuilt("PostgreSQL is not built in yet; use sqlite://FILE")),
    };
    LeaseKeys::beside(&path, config.gate.lease_key_max_age, clock::now().wall)
        .map_err(|error| Fault::Store { path: path.display().to_string(), fault: StoreFault::Unavailable(error.to_string()) })
}

type OpenStore = (Arc<SqliteStore>, Option<Spool>, Restored, bool);

async fn open_store(config: &Config) -> Result<OpenStore, Fault> {
    let path = match &config.store.url {
        StoreUrl::Sqlite(path) => PathBuf::from(path),
        StoreUrl::Postgres(_) => return Err(Fault::NotBuilt("PostgreSQL is not built in yet; use sqlite://FILE")),
    };
    let name = path.display().to_string();
    let fault = |fault| Fault::Store { path: name.clone(), fault };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| fault(StoreFault::Unavailable(error.to_string())))?;
    }
    let accept_loss = config.store.when_lost == WhenLost::LockedUntilProven;
    let options = Options { accept_loss, ..Options::default() };
    let store = match SqliteStore::open(&path, options).await.map_err(fault)? {
        Opened::Ready { store, .. } => store,
        Opened::Lost { installation } => return Err(Fault::Lost { path: name, installation }),
        Opened::Replaced { expected, found } => return Err(Fault::Replaced { path: name, expected, found }),
    };
    let mut restored = store.load().await.map_err(fault)?;
    let lost = restored.meta.contains_key(LOST_AT);
    let spool = match Spool::beside(&path) {
        Ok(mut spool) => {
            let spooled = spool.read().map_err(|error| fault(StoreFault::Unavailable(format!("spool: {error}"))))?;
            fold(&mut restored, spooled);
            Some(spool)
        }
        Err(error) => {
            tracing::error!(%error, "no spool beside the store: a lock that the store cannot take would not survive a crash");
            None
        }
    };
    Ok((store, spool, restored, lost))
}

/// Locks that were shown before the store had them. One that the store has lifted since is over.
fn fold(restored: &mut Restored, spooled: Vec<Order>) {
    for order in spooled {
        let slot = order.slot();
        let name = format!("workspace:{}", order.workspace);
        let seen = restored
            .meta
            .get(&name)
            .and_then(|text| serde_json::from_str::<(u64, serde_json::Value)>(text).ok())
            .map_or(0, |(seen, _)| seen);
        let standing = restored.orders.iter_mut().find(|stored| stored.slot() == slot);
        match standing {
            Some(stored) if stored.sequence < order.sequence => *stored = order,
            Some(_) => {}
            None if order.sequence.0 > seen => restored.orders.push(order),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::WorkspaceId;
    use crate::time::Wall;
    use crate::words::{Access, By, Cause, Sequence};

    fn manual(sequence: u64, access: Access) -> Order {
        Order {
            workspace: WorkspaceId::new("w").unwrap(),
            by: By::Manual,
            key: None,
            access,
            cause: Cause::Manual,
            sequence: Sequence(sequence),
            since: Wall(0),
            reason: None,
            actor: None,
            expires_at: None,
            message: None,
            release: None,
            orphaned: false,
        }
    }

    #[test]
    fn a_spooled_lock_stands_unless_the_store_knows_better() {
        let mut empty = Restored::default();
        fold(&mut empty, vec![manual(5, Access::Locked)]);
        assert_eq!(empty.orders, [manual(5, Access::Locked)]);

        let mut older = Restored { orders: vec![manual(4, Access::ReadOnly)], ..Restored::default() };
        fold(&mut older, vec![manual(5, Access::Locked), manual(3, Access::ReadOnly)]);
        assert_eq!(older.orders, [manual(5, Access::Locked)]);

        let mut lifted = Restored::default();
        lifted.meta.insert("workspace:w".to_owned(), "[6,\"1970-01-01T00:00:00.000Z\"]".to_owned());
        fold(&mut lifted, vec![manual(5, Access::Locked)]);
        assert!(lifted.orders.is_empty());
    }
}
