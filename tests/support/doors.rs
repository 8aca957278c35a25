//! A daemon's doors without the daemon: a configuration, views of keys and workspaces, a journal in
//! memory, and a task that answers orders as the core would.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode, header};
use cmek_watchdog::clock;
use cmek_watchdog::config::{
    Brake, Config, GateConfig, Heartbeat, Provider, ProviderDetail, Server, StoreConfig, StoreUrl, Token, UnknownWorkspace, WhenLost,
};
use cmek_watchdog::gate::Features;
use cmek_watchdog::http::access::Peer;
use cmek_watchdog::http::hub::Hub;
use cmek_watchdog::http::{App, Ask, Health, Limits, Reload, router_with};
use cmek_watchdog::journal::{Commit, Committed, JournalQuery, Record, Restored, Store, StoreFault, StoredRecord};
use cmek_watchdog::key::{KeyId, KeyVersion, PolicyId, ProviderId, WorkspaceId};
use cmek_watchdog::kms::BoxFuture;
use cmek_watchdog::metrics::Metrics;
use cmek_watchdog::operate::{Action, Answered, Operation, Refusal, RefusalSlug, Reply};
use cmek_watchdog::policy::Policy;
use cmek_watchdog::probe::LegResult;
use cmek_watchdog::published::Published;
use cmek_watchdog::snapshot::{
    Change, DaemonView, FactsView, KeyView, LockView, OutboxView, ProbeView, ProviderView, VersionView, WorkspaceView,
};
use cmek_watchdog::store::lease_keys::LeaseKeys;
use cmek_watchdog::time::{Span, Wall};
use cmek_watchdog::words::{
    Access, By, Cause, Code, EventType, FailureKind, FeatureClass, Leg, LegOutcome, ProviderKind, Role, Sequence, StateWord, VerdictWord,
};
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tower::ServiceExt;

pub const SINCE: Wall = Wall(1_764_056_760_123);

pub fn config() -> Config {
    let provider = ProviderId::new("local").unwrap();
    let local = Provider {
        id: provider.clone(),
        detail: ProviderDetail::Local { path: "local-kms.json".into() },
        control_key: None,
        calls_per_second: 50,
    };
    let classes = [
        ("messages", FeatureClass::Content),
        ("batch", FeatureClass::Write),
        ("models", FeatureClass::Control),
        ("safety_metadata", FeatureClass::SafetyMetadata),
    ];
    Config {
        server: Server {
            listen: "127.0.0.1:9847".parse().unwrap(),
            tls: None,
            insecure_loopback: false,
            run_dir: "run".into(),
            tokens: vec![],
        },
        store: StoreConfig { url: StoreUrl::Sqlite("state.db".into()), when_lost: WhenLost::Refuse },
        gate: GateConfig {
            unknown_workspace: UnknownWorkspace::Deny,
            max_age: Span::from_hours(1),
            ack_within: Span::from_secs(30),
            lease_key_max_age: Span::from_days(30),
        },
        per_key_limit: 5000,
        operator_key: None,
        recovery_key: None,
        providers: BTreeMap::from([(provider, local)]),
        credentials_expire_at: BTreeMap::new(),
        policies: BTreeMap::from([(PolicyId::new("default").unwrap(), Arc::new(Policy::default()))]),
        brake: Brake::default(),
        features: Features(classes.into_iter().map(|(name, class)| (name.to_owned(), class)).collect()),
        workspace_features: BTreeMap::new(),
        keys: BTreeMap::new(),
        workspaces: BTreeMap::new(),
        audit: vec![],
        levers: BTreeMap::new(),
        notify: cmek_watchdog::config::NotifyConfig::default(),
        receivers: BTreeMap::new(),
        routes: vec![],
        cluster_lease: Span::from_secs(10),
        heartbeat: Heartbeat { url: None, interval: Span::from_secs(60) },
        reports: vec![],
    }
}

/// SHA-256 of the token's text, as `token new` would write it.
pub fn token(name: &str, role: Role, text: &str) -> Token {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    let sha256 = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Token { name: name.into(), role, sha256 }
}

pub fn key(id: &str, state: StateWord) -> KeyView {
    let revoked = state == StateWord::Revoked;
    let leg = |leg, outcome, kind: Option<FailureKind>| LegResult {
        leg,
        outcome,
        failure_kind: kind,
        stated: kind.is_some(),
        code: kind.map(|_| "DisabledException".into()),
        message: kind.map(|_| "the key is disabled".into()),
        request_id: Some("r-1".into()),
        duration_ms: Some(Span(12)),
        version: None,
    };
    let failed = revoked.then_some(FailureKind::Disabled);
    let outcome = if revoked { LegOutcome::Failed } else { LegOutcome::Ok };
    KeyView {
        id: KeyId::new(id).unwrap(),
        provider: ProviderId::new("local").unwrap(),
        provider_kind: ProviderKind::Local,
        key: id.to_owned(),
        policy: "default".into(),
        state,
        verdict: Some(if revoked { VerdictWord::Revoked } else { VerdictWord::Usable }),
        failure_kind: failed,
        stated: revoked,
        confirmed: revoked,
        held_by: None,
        enforced: true,
        would_access: None,
        since: SINCE,
        workspaces: vec![WorkspaceId::new(&format!("wrkspc_{id}")).unwrap()],
        owner: Some("security@acme.example".into()),
        versions: vec![VersionView {
            version: KeyVersion::new("1"),
            usable: Some(!revoked),
            protects_data: true,
            last_checked: Some(SINCE),
            current: true,
            retired: false,
            failure_kind: failed,
        }],
        facts: FactsView::default(),
        last_probe: Some(ProbeView { at: SINCE, legs: vec![leg(Leg::Wrap, LegOutcome::Ok, None), leg(Leg::Unwrap, outcome, failed)] }),
        last_conclusive_at: Some(SINCE),
        next_probe_at: Some(SINCE.plus(Span::from_secs(60))),
        identity: None,
        source: "file".into(),
        refused: None,
        rotations: 0,
    }
}

pub fn workspace(id: &str, access: Access) -> WorkspaceView {
    let lowered = access != Access::Open;
    let key = KeyId::new("demo").unwrap();
    let lock = LockView {
        by: By::Automatic,
        key: Some(key.clone()),
        cause: Cause::Kind(FailureKind::Disabled),
        access,
        since: SINCE,
        reason: None,
        actor: None,
        expires_at: None,
        sequence: Sequence(7),
        release: None,
        durable: true,
    };
    WorkspaceView {
        workspace: WorkspaceId::new(id).unwrap(),
        access,
        code: lowered.then_some(Code::CmekKeyDisabled),
        cause: lowered.then_some(Cause::Kind(FailureKind::Disabled)),
        key: lowered.then(|| key.clone()),
        message: lowered.then(|| "key demo is disabled\n\u{e9}".to_owned()),
        since: SINCE,
        by: lowered.then_some(By::Automatic),
        sequence: Sequence(7),
        keys: vec![key],
        locks: if lowered { vec![lock] } else { vec![] },
        terminal: false,
        recoverable_until: None,
        next_step: lowered.then(|| "enable the key".to_owned()),
        release: None,
        overrides: vec![],
        durable: true,
        would_access: None,
        levers: Vec::new(),
        drill: None,
    }
}

pub fn provider() -> ProviderView {
    ProviderView {
        provider: ProviderId::new("local").unwrap(),
        kind: ProviderKind::Local,
        control_key_healthy: Some(true),
        control_key: Some("operator".into()),
        brake_engaged: false,
        held: vec![],
        clock_skew_ms: Some(-250),
        missed_windows: 0,
        credentials_failing: false,
        credentials_expire_at: None,
    }
}

pub fn daemon() -> DaemonView {
    let queue =
        OutboxView { receiver: "sre-mail".into(), depth: 2, oldest_at: Some(SINCE), failing: false, last_success_at: Some(SINCE), dead: 0 };
    DaemonView { started_at: SINCE, ready: true, outbox: vec![queue], ..DaemonView::default() }
}

/// The state of most tests: two workspaces of three are lowered.
pub fn publish(published: &Published) {
    let rows = [("wrkspc_demo", Access::Locked), ("wrkspc_half", Access::ReadOnly), ("wrkspc_open", Access::Open)];
    let mut changes: Vec<Change> = rows.into_iter().map(|(id, access)| Change::Workspace(Arc::new(workspace(id, access)))).collect();
    let keys = [("demo", StateWord::Revoked), ("half", StateWord::Impaired), ("open", StateWord::Active)];
    changes.extend(keys.into_iter().map(|(id, state)| Change::Key(Arc::new(key(id, state)))));
    changes.push(Change::Provider(Arc::new(provider())));
    changes.push(Change::Daemon(Arc::new(daemon())));
    changes.push(Change::Fresh(clock::now().mono));
    published.apply(changes);
}

/// A journal in memory, or one that cannot be read.
#[derive(Default)]
pub struct Journal {
    pub records: Vec<StoredRecord>,
    pub broken: bool,
}

impl Journal {
    /// Records 1 to `count`, of keys `demo` and `gone` in turn.
    pub fn with(count: u64) -> Self {
        let record = |sequence: u64| StoredRecord {
            sequence,
            record: Record {
                at: SINCE,
                event: EventType::KeySuspect,
                key: Some(KeyId::new(if sequence % 2 == 1 { "demo" } else { "gone" }).unwrap()),
                workspace: None,
                version: None,
                actor: None,
                event_id: None,
                correlation_id: None,
                detail: BTreeMap::from([("kind".to_owned(), "disabled".to_owned())]),
            },
            hash: "00".into(),
        };
        Self { records: (1..=count).map(record).collect(), broken: false }
    }
}

impl Store for Journal {
    fn load(&self) -> BoxFuture<'_, Result<Restored, StoreFault>> {
        Box::pin(async { Ok(Restored::default()) })
    }
    fn commit<'a>(&'a self, _: &'a Commit) -> BoxFuture<'a, Result<Committed, StoreFault>> {
        Box::pin(async { Err(StoreFault::Unavailable("the doors never commit".into())) })
    }
    fn journal<'a>(&'a self, query: &'a JournalQuery) -> BoxFuture<'a, Result<Vec<StoredRecord>, StoreFault>> {
        Box::pin(async move {
            if self.broken {
                return Err(StoreFault::Unavailable("password=hunter2".into()));
            }
            let fits = |row: &&StoredRecord| {
                row.sequence > query.after
                    && (query.key.is_none() || row.record.key == query.key)
                    && (query.workspace.is_none() || row.record.workspace == query.workspace)
            };
            Ok(self.records.iter().filter(fits).take(usize::try_from(query.limit).unwrap()).cloned().collect())
        })
    }
}

/// Reloads well, or with the given error.
pub struct Reloading(pub Result<(), String>);

impl Reload for Reloading {
    fn reload<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { self.0.clone() })
    }
}

/// The doors with everything behind them.
pub struct House {
    pub app: App,
    pub limits: Limits,
    /// What the core was asked, in order.
    pub asked: Arc<Mutex<Vec<Operation>>>,
    /// Orders not yet taken; `None` once a core runs.
    pub orders: Option<mpsc::Receiver<Ask>>,
}

impl House {
    pub fn new(config: Config) -> Self {
        let (asks, orders) = mpsc::channel(8);
        let folder = tempfile::tempdir().unwrap();
        let leases = LeaseKeys::beside(&folder.path().join("state.db"), Span::from_days(30), clock::now().wall).unwrap();
        let app = App {
            hub: Arc::new(Hub::new(5, 3000, clock::now())),
            acks: Arc::default(),
            leases: Arc::new(leases),
            published: Published::default(),
            asks,
            store: Arc::new(Journal::with(5)),
            config: Arc::new(ArcSwap::from_pointee(config)),
            metrics: Arc::new(Metrics::new().unwrap()),
            reload: Arc::new(Reloading(Ok(()))),
            health: Arc::new(Health::new(clock::now().mono)),
            vault: None,
        };
        publish(&app.published);
        Self { app, limits: Limits::default(), asked: Arc::default(), orders: Some(orders) }
    }

    /// Lets a core answer every order with `answer`.
    pub fn answering(mut self, answer: impl Fn(&Action) -> Answered + Send + 'static) -> Self {
        let mut orders = self.orders.take().unwrap();
        let asked = Arc::clone(&self.asked);
        tokio::spawn(async move {
            while let Some(Ask { operation, answer: back }) = orders.recv().await {
                let answered = answer(&operation.action);
                asked.lock().unwrap().push(operation);
                let _ = back.send(answered);
            }
        });
        self
    }

    /// A core that does what it is asked.
    pub fn obeying(self) -> Self {
        self.answering(obey)
    }

    pub async fn send(&self, request: Request<Body>) -> Told {
        Told::read(router_with(self.app.clone(), self.limits).oneshot(request).await.unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Told {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// As the command line does it.
    pub async fn order(&self, path: &str, body: &str) -> Told {
        self.send(from_socket(json(path, body))).await
    }

    /// Value of one series of the scrape.
    pub fn metric(&self, series: &str) -> Option<f64> {
        let text = self.app.metrics.render(&self.app.published.load(), &self.app.config.load(), clock::now());
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }
}

pub fn obey(action: &Action) -> Answered {
    match action {
        Action::Lock { workspace: id, .. } => Ok(Reply::Workspace(Arc::new(workspace(id.as_str(), Access::Locked)))),
        Action::Unlock { workspace: id, .. } => Ok(Reply::Workspace(Arc::new(workspace(id.as_str(), Access::Open)))),
        Action::Validate { key: id } if id.as_str() == "demo" => Ok(Reply::Key(Arc::new(key("demo", StateWord::Revoked)))),
        Action::Validate { key: id } if id.as_str() == "open" => Ok(Reply::Key(Arc::new(key("open", StateWord::Active)))),
        Action::Validate { key: id } => Err(Refusal { slug: RefusalSlug::UnknownKey, detail: format!("key `{id}` is not known") }),
        Action::BrakeRelease { .. } => Ok(Reply::Released(3)),
        Action::Audit { told } => Ok(Reply::Heard(u32::from(!told.events.is_empty()))),
        Action::RetireVersion { key: id, .. } | Action::RetireKey { key: id, .. } => {
            Ok(Reply::Key(Arc::new(key(id.as_str(), StateWord::Retired))))
        }
        Action::PutKey { key: raw } => Ok(Reply::Registered(Arc::new(key(&raw.id, StateWord::Unproven)))),
        Action::DeleteKey { keep_lock: false, key: id } if id.as_str() == "demo" => {
            Err(Refusal { slug: RefusalSlug::KeyLocks, detail: "key `demo` locks wrkspc_demo".into() })
        }
        Action::DeleteKey { .. } => Ok(Reply::Done),
        Action::Journal { .. } | Action::VaultKey { .. } | Action::Drill { .. } | Action::EndDrill { .. } => Ok(Reply::Done),
        Action::AcknowledgeNotice { id } | Action::ResendNotices { id: Some(id) } if id.0.as_ref() == "ghost" => {
            Err(Refusal { slug: RefusalSlug::UnknownNotice, detail: "no such notice".to_owned() })
        }
        Action::ListNotices { .. } => Ok(Reply::Notices(Vec::new())),
        Action::Health => Ok(Reply::Health(None)),
        Action::ResendNotices { .. } => Ok(Reply::Released(1)),
        Action::Reload { .. }
        | Action::ReloadFailed { .. }
        | Action::TestReceiver { .. }
        | Action::AcknowledgeNotice { .. }
        | Action::Quiet { .. }
        | Action::Report { .. } => Ok(Reply::Done),
    }
}

/// A whole answer.
pub struct Told {
    pub status: StatusCode,
    pub headers: header::HeaderMap,
    pub text: String,
}

impl Told {
    pub async fn read(response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Self { status: parts.status, headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().unwrap())
    }

    /// Checks that this is a problem of the given status and slug, and returns its detail.
    #[track_caller]
    pub fn problem(&self, status: u16, slug: &str) -> String {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let body = self.json();
        assert_eq!(body["type"], format!("urn:cmek-watchdog:{slug}"));
        assert_eq!(body["status"], status);
        assert!(body["title"].is_string());
        body["detail"].as_str().unwrap().to_owned()
    }
}

pub fn json(path: &str, body: &str) -> Request<Body> {
    let builder = Request::builder().method(Method::POST).uri(path).header("content-type", "application/json");
    builder.body(Body::from(body.to_owned())).unwrap()
}

pub fn from_socket(mut request: Request<Body>) -> Request<Body> {
    request.extensions_mut().insert(Peer::Socket { uid: 1000 });
    request
}

pub fn from_tcp(mut request: Request<Body>, from: &str) -> Request<Body> {
    request.extensions_mut().insert(Peer::Tcp { from: from.parse::<SocketAddr>().unwrap(), tls: false });
    request
}
