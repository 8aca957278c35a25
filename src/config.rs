//! inside
//! The validated configuration: types that cannot be wrong, made from the file's raw twin
//! (`config/raw.rs`) by `config/check.rs`. It must never read a file, a variable or a secret.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::gate::{Features, FeaturesOf};
use crate::key::{AssumeRole, KeyId, KeyTarget, LeverId, PolicyId, ProviderId, ReceiverId, WorkspaceId};
use crate::notify::storm::Pace;
use crate::policy::Policy;
use crate::time::{Span, Wall};
use crate::words::{ProviderKind, Role, Severity};

pub mod check;
#[cfg(feature = "daemon")]
pub mod load;
pub mod raw;
pub mod sheet;
pub mod values;
pub mod route;

/// Where a secret is to be found; the value itself is never part of the configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SecretRef {
    Env(String),
    File(String),
    /// systemd credential.
    Credential(String),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tls {
    pub cert: String,
    pub key: String,
    pub client_ca: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token {
    pub name: String,
    pub role: Role,
    /// Lower-case hex of SHA-256 over the token.
    pub sha256: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Server {
    pub listen: core::net::SocketAddr,
    pub tls: Option<Tls>,
    pub insecure_loopback: bool,
    /// Absolute, or relative to the configuration file and already joined with its folder.
    pub run_dir: String,
    pub tokens: Vec<Token>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreUrl {
    /// Path of the database file, already joined with the configuration file's folder.
    Sqlite(String),
    /// The whole address; may hold no password (a password comes from PGPASSWORD or a passfile).
    Postgres(String),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhenLost {
    Refuse,
    LockedUntilProven,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreConfig {
    pub url: StoreUrl,
    pub when_lost: WhenLost,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnknownWorkspace {
    Deny,
    Allow,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GateConfig {
    pub unknown_workspace: UnknownWorkspace,
    pub max_age: Span,
    /// A consumer that acknowledges is behind when it has not done so for so long.
    pub ack_within: Span,
    /// How long one key signs leases.
    pub lease_key_max_age: Span,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AzureCredentials {
    /// Workload identity, then managed identity.
    Default,
    ClientSecret {
        tenant: String,
        client: String,
        secret: SecretRef,
    },
    StaticToken(SecretRef),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GcpCredentials {
    /// Application Default Credentials.
    Default,
    File(String),
    Anonymous,
}

/// What only one kind of provider has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProviderDetail {
    Local {
        path: String,
    },
    Aws {
        region: String,
        endpoint: Option<String>,
        assume_role: Option<AssumeRole>,
        our_accounts: Vec<String>,
    },
    Gcp {
        endpoint: Option<String>,
        credentials: GcpCredentials,
        project_number: Option<String>,
        our_accounts: Vec<String>,
    },
    Azure {
        credentials: AzureCredentials,
        ca_file: Option<String>,
        verify_challenge_resource: bool,
        host_suffixes: Vec<String>,
        our_accounts: Vec<String>,
    },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Provider {
    pub id: ProviderId,
    pub detail: ProviderDetail,
    pub control_key: Option<Arc<KeyTarget>>,
    pub calls_per_second: u32,
}

impl Provider {
    #[must_use]
    pub const fn kind(&self) -> ProviderKind {
        match self.detail {
            ProviderDetail::Local { .. } => ProviderKind::Local,
            ProviderDetail::Aws { .. } => ProviderKind::Aws,
            ProviderDetail::Gcp { .. } => ProviderKind::Gcp,
            ProviderDetail::Azure { .. } => ProviderKind::Azure,
        }
    }
}

/// Where a key's registration comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    File,
    Api,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key {
    pub id: KeyId,
    pub provider: ProviderId,
    pub target: Arc<KeyTarget>,
    pub workspaces: Vec<WorkspaceId>,
    pub policy: PolicyId,
    pub owner: Option<String>,
    /// Owner account: from the configuration, else parsed from the key.
    pub account: String,
    pub labels: BTreeMap<String, String>,
    pub notify_owner: bool,
    pub source: Source,
    /// A bad row of `keys_from`: shown as `misconfigured` with this text, never probed.
    pub refused: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Needs {
    All,
    Any,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Brake {
    pub accounts: u32,
    /// Share of the provider's accounts in thousandths.
    pub fraction_permille: u32,
    pub most: u32,
    pub within: Span,
    /// `None` = manual.
    pub release: Option<Span>,
}

impl Default for Brake {
    fn default() -> Self {
        Self { accounts: 3, fraction_permille: 200, most: 25, within: Span::from_mins(5), release: None }
    }
}

/// How a deny-list file is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListFormat {
    /// One workspace a line.
    Lines,
    /// A JSON array of workspaces.
    Json,
    /// Lines of an nginx `map`: `"WORKSPACE" 1;`.
    Nginx,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeverDetail {
    /// Claude's Admin API: the workspace's API keys.
    Claude {
        base_url: String,
        api_key: SecretRef,
    },
    Webhook {
        url: UrlRef,
        secret: SecretRef,
    },
    File {
        path: String,
        format: ListFormat,
    },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeverConfig {
    pub id: LeverId,
    pub detail: LeverDetail,
    /// Pulled for read-only workspaces too.
    pub read_only: bool,
    /// `owner` is never set.
    pub matching: Match,
}

/// How an SMTP connection is protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SmtpSecurity {
    Plain,
    StartTls,
    Tls,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReceiverDetail {
    Email {
        security: SmtpSecurity,
        host: String,
        port: u16,
        from: String,
        to: Vec<String>,
        username: Option<String>,
        password: Option<SecretRef>,
        ca_file: Option<String>,
    },
    /// `url` is kept out of `Debug` and logs by being a reference or a [`PlainUrl`].
    Webhook {
        url: UrlRef,
        secret: SecretRef,
    },
    Slack {
        url: UrlRef,
    },
    PagerDuty {
        routing_key: SecretRef,
        url: Option<UrlRef>,
    },
    Alertmanager {
        url: UrlRef,
    },
}

/// An address that counts as a secret.
#[derive(Clone, PartialEq, Eq)]
pub enum UrlRef {
    Secret(SecretRef),
    Plain(String),
}

impl std::fmt::Debug for UrlRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Secret(secret) => secret.fmt(f),
            Self::Plain(_) => f.write_str("(address)"),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReceiverConfig {
    pub id: ReceiverId,
    pub detail: ReceiverDetail,
    /// Who is told instead while this one takes nothing.
    pub fallback: Option<ReceiverId>,
}

/// Shell-style patterns (`*` only) that all must match.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Match {
    pub provider: Option<String>,
    pub owner: Option<String>,
    pub workspace: Option<String>,
    pub key: Option<String>,
    /// The notice's type, such as `key.*`.
    pub kind: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    pub receivers: Vec<ReceiverId>,
    pub severity: Severity,
    pub matching: Match,
}

/// Hours in which quiet notices wait, in a time zone of its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Quiet {
    /// Minutes after midnight.
    pub from: u16,
    pub to: u16,
    pub timezone: String,
}

/// Who else is told when nobody acknowledges a critical lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Escalate {
    pub after: Span,
    pub receivers: Vec<ReceiverId>,
}

/// How people are told, whatever the receiver.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NotifyConfig {
    pub pace: Pace,
    pub quiet: Option<Quiet>,
    pub escalate: Option<Escalate>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heartbeat {
    pub url: Option<UrlRef>,
    pub interval: Span,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    pub name: String,
    pub cron: String,
    pub timezone: String,
    pub receivers: Vec<ReceiverId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AuditKind {
    CloudTrail,
    CloudLogging,
    AzureMonitor,
    Sqs,
    Push,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuditSource {
    pub name: String,
    pub kind: AuditKind,
    pub provider: ProviderId,
    pub poll_interval: Span,
    /// What the kind reads: queue address (`sqs`), Log Analytics workspace (`azure_monitor`), Google
    /// project (`cloud_logging`, `None` = the projects of the keys); `None` for the others.
    pub address: Option<String>,
    /// AWS region, else the provider's.
    pub region: Option<String>,
    /// AWS role in the owner's account, else the provider's identity.
    pub assume_role: Option<AssumeRole>,
    /// Google service account, else the provider's identity.
    pub impersonate: Option<String>,
    /// Azure tenant of the log workspace.
    pub tenant: Option<String>,
    /// Azure subscription whose activity log is read too.
    pub subscription: Option<String>,
    /// Another address of the service, for emulators and private endpoints.
    pub endpoint: Option<String>,
    /// Personal data that is hidden before anything is kept.
    pub mask: Vec<crate::audit::Mask>,
    /// Whether its events make a key due at once.
    pub look_now: bool,
    /// Messages of a queue that cannot be read are deleted; else they are left to its own policy.
    pub delete_malformed: bool,
    pub auth: Option<PushAuth>,
}

impl AuditKind {
    /// The word of the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CloudTrail => "cloudtrail",
            Self::CloudLogging => "cloud_logging",
            Self::AzureMonitor => "azure_monitor",
            Self::Sqs => "sqs",
            Self::Push => "push",
        }
    }
}

/// How a sender of hints proves who it is; without one of these a token of role `hint` does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PushAuth {
    /// EventBridge API destination: `x-api-key`.
    ApiKey(SecretRef),
    /// Event Grid: `aeg-sas-key`.
    SasKey(SecretRef),
    /// Pub/Sub push, Event Grid with Entra ID: a signed token.
    Oidc {
        audience: String,
        issuer: String,
        jwks: String,
        /// The service account (`email`) or application (`azp`, `appid`) that signs.
        subject: String,
    },
}

/// The whole configuration, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    pub server: Server,
    pub store: StoreConfig,
    pub gate: GateConfig,
    pub per_key_limit: u32,
    /// Provider and key of the safety vault.
    pub operator_key: Option<(ProviderId, Arc<KeyTarget>)>,
    pub recovery_key: Option<(ProviderId, Arc<KeyTarget>)>,
    pub providers: BTreeMap<ProviderId, Provider>,
    /// When our own secret at a provider ends, as far as somebody wrote it down.
    pub credentials_expire_at: BTreeMap<ProviderId, Wall>,
    /// Always holds `default`.
    pub policies: BTreeMap<PolicyId, Arc<Policy>>,
    pub brake: Brake,
    pub features: Features,
    /// Classes that a workspace has of its own, by feature; only what differs.
    pub workspace_features: BTreeMap<WorkspaceId, Features>,
    pub keys: BTreeMap<KeyId, Key>,
    pub workspaces: BTreeMap<WorkspaceId, Needs>,
    pub audit: Vec<AuditSource>,
    pub receivers: BTreeMap<ReceiverId, ReceiverConfig>,
    pub routes: Vec<Route>,
    pub levers: BTreeMap<LeverId, LeverConfig>,
    pub notify: NotifyConfig,
    pub cluster_lease: Span,
    pub heartbeat: Heartbeat,
    pub reports: Vec<Report>,
}

impl Config {
    /// Receivers that keep one incident per matter until they are told of its end.
    #[must_use]
    pub fn keeping_incidents(&self) -> Vec<ReceiverId> {
        let keeps = |detail: &ReceiverDetail| match detail {
            ReceiverDetail::PagerDuty { .. } => true,
            ReceiverDetail::Email { .. }
            | ReceiverDetail::Webhook { .. }
            | ReceiverDetail::Slack { .. }
            | ReceiverDetail::Alertmanager { .. } => false,
        };
        self.receivers.values().filter(|receiver| keeps(&receiver.detail)).map(|receiver| receiver.id.clone()).collect()
    }

    /// The features as they stand for one workspace, known or not.
    #[must_use]
    pub fn features_of(&self, workspace: &str) -> FeaturesOf<'_> {
        FeaturesOf { common: &self.features, own: self.workspace_features.get(workspace) }
    }
}
