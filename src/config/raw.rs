//! inside
//! The file as written: one struct per table, unknown fields refused. Texts keep their place in the
//! file, so that a fault found later still has a line. It must never give a value a meaning.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

/// A text with its place in the file.
pub type Text = Spanned<String>;
/// A whole number with its place in the file; signed, so that a negative one is told as such.
pub type Int = Spanned<i64>;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Server {
    pub listen: Option<Text>,
    pub tls: Option<Tls>,
    pub insecure_loopback: Option<Spanned<bool>>,
    pub run_dir: Option<Text>,
    #[serde(default)]
    pub tokens: Vec<Token>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    pub cert: Text,
    pub key: Text,
    pub client_ca: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    pub name: Text,
    pub role: Text,
    pub sha256: Text,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Store {
    pub url: Option<Text>,
    pub when_lost: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    pub unknown_workspace: Option<Text>,
    pub max_age: Option<Text>,
    pub ack_within: Option<Text>,
    pub lease_key_max_age: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    pub per_key_limit: Option<Int>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Vault {
    pub operator_key: Option<VaultKey>,
    pub recovery_key: Option<VaultKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultKey {
    pub provider: Text,
    pub key: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalProvider {
    #[serde(rename = "kind")]
    pub _kind: String,
    pub path: Option<Text>,
    pub control_key: Option<Text>,
    pub calls_per_second: Option<Int>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwsProvider {
    #[serde(rename = "kind")]
    pub _kind: String,
    pub region: Text,
    pub endpoint: Option<Text>,
    pub assume_role: Option<AssumeRole>,
    pub credentials_expire_at: Option<Text>,
    pub control_key: Option<Text>,
    pub calls_per_second: Option<Int>,
    #[serde(default)]
    pub our_accounts: Vec<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssumeRole {
    pub arn: Text,
    pub external_id: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GcpProvider {
    #[serde(rename = "kind")]
    pub _kind: String,
    pub endpoint: Option<Text>,
    pub credentials: Option<Text>,
    pub project_number: Option<Text>,
    pub credentials_expire_at: Option<Text>,
    pub control_key: Option<Text>,
    pub calls_per_second: Option<Int>,
    #[serde(default)]
    pub our_accounts: Vec<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AzureProvider {
    #[serde(rename = "kind")]
    pub _kind: String,
    pub credentials: Option<Spanned<AzureCredentials>>,
    pub ca_file: Option<Text>,
    pub verify_challenge_resource: Option<bool>,
    pub host_suffixes: Option<Spanned<Vec<Text>>>,
    pub credentials_expire_at: Option<Text>,
    pub control_key: Option<Text>,
    pub calls_per_second: Option<Int>,
    #[serde(default)]
    pub our_accounts: Vec<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AzureCredentials {
    pub client_secret: Option<ClientSecret>,
    pub static_token: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientSecret {
    pub tenant: Text,
    pub client: Text,
    pub secret: Text,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    pub probe_interval: Option<Text>,
    pub suspect_interval: Option<Text>,
    pub revoked_interval: Option<Text>,
    pub version_interval: Option<Text>,
    pub call_timeout: Option<Text>,
    pub unlock: Option<Text>,
    pub unlock_after: Option<UnlockAfter>,
    pub lock_after_stale: Option<Text>,
    pub alarm_after_stale: Option<Vec<Text>>,
    pub lease_ttl: Option<Text>,
    pub warn_before_deletion: Option<Vec<Text>>,
    pub warn_before_expiry: Option<Vec<Text>>,
    pub rotation_max_age: Option<Text>,
    pub lost_version: Option<Text>,
    pub enforce: Option<bool>,
    pub unproven: Option<Text>,
    pub witness_grace: Option<Text>,
    pub flapping: Option<Flapping>,
    pub stated_alone: Option<Spanned<StatedAlone>>,
    #[serde(default)]
    pub on: BTreeMap<Text, Spanned<Confirm>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnlockAfter {
    pub rounds: Option<Int>,
    pub over: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flapping {
    pub after: Option<Text>,
    pub access: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatedAlone {
    pub looks: Option<Int>,
    pub of: Option<Int>,
    pub over: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirm {
    pub looks: Option<Int>,
    pub of: Option<Int>,
    pub over: Option<Text>,
    pub access: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Brake {
    pub accounts: Option<Int>,
    pub fraction: Option<Spanned<f64>>,
    pub most: Option<Int>,
    pub within: Option<Text>,
    pub release: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    pub class: Text,
}

/// A key as a person, a row of a file or a caller of the API writes it. The texts have no place:
/// a fault names its field, and the place is looked up where there is one.
#[derive(Clone, PartialEq, Eq, Deserialize, serde::Serialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Key {
    pub id: String,
    pub provider: String,
    pub key: String,
    #[serde(default)]
    pub workspaces: Vec<String>,
    pub policy: Option<String>,
    pub owner: Option<String>,
    pub wrap_operation: Option<String>,
    pub assume_role: Option<crate::key::AssumeRole>,
    pub reader_role: Option<String>,
    pub tenant: Option<String>,
    pub impersonate: Option<String>,
    #[serde(default)]
    pub encryption_context: BTreeMap<String, String>,
    pub additional_authenticated_data: Option<String>,
    pub algorithm: Option<String>,
    pub account: Option<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub notify_owner: bool,
}

/// The id only: a key reference that is not yet checked may have a password in its user part.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysFrom {
    pub path: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workspace {
    pub id: Text,
    pub needs: Option<Text>,
    #[serde(default)]
    pub features: BTreeMap<Text, Feature>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    pub kind: Text,
    pub provider: Text,
    pub poll_interval: Option<Text>,
    /// `sqs` only.
    pub queue_url: Option<Text>,
    /// `azure_monitor` only: the Log Analytics workspace.
    pub log_workspace: Option<Text>,
    /// `cloud_logging` only.
    pub project: Option<Text>,
    /// `cloudtrail`, `sqs`.
    pub region: Option<Text>,
    pub assume_role: Option<AssumeRole>,
    /// `cloud_logging`.
    pub impersonate: Option<Text>,
    /// `azure_monitor`.
    pub tenant: Option<Text>,
    pub subscription: Option<Text>,
    pub endpoint: Option<Text>,
    #[serde(default)]
    pub mask: Vec<Text>,
    pub look_now: Option<bool>,
    /// `sqs`.
    pub malformed: Option<Text>,
    /// `push`.
    pub auth: Option<Spanned<PushAuth>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushAuth {
    pub api_key: Option<Text>,
    pub sas_key: Option<Text>,
    pub oidc: Option<Oidc>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Oidc {
    pub audience: Text,
    pub issuer: Text,
    pub jwks: Text,
    pub subject: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Email {
    #[serde(rename = "kind")]
    pub _kind: String,
    pub fallback: Option<Text>,
    pub smtp: Text,
    pub from: Text,
    pub to: Spanned<Vec<Text>>,
    pub username: Option<Text>,
    pub password: Option<Text>,
    pub ca_file: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    #[serde(rename = "kind")]
    pub _kind: String,
    pub fallback: Option<Text>,
    pub url: Text,
    pub secret: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slack {
    #[serde(rename = "kind")]
    pub _kind: String,
    pub fallback: Option<Text>,
    pub url: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PagerDuty {
    #[serde(rename = "kind")]
    pub _kind: String,
    pub fallback: Option<Text>,
    pub routing_key: Text,
    pub url: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alertmanager {
    #[serde(rename = "kind")]
    pub _kind: String,
    pub fallback: Option<Text>,
    pub url: Text,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct LeverMatch {
    pub provider: Option<Text>,
    pub workspace: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaudeLever {
    #[serde(rename = "kind")]
    pub _kind: String,
    pub api_key: Text,
    pub base_url: Option<Text>,
    pub read_only: Option<bool>,
    #[serde(rename = "match", default)]
    pub matching: LeverMatch,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookLever {
    #[serde(rename = "kind")]
    pub _kind: String,
    pub url: Text,
    pub secret: Text,
    pub read_only: Option<bool>,
    #[serde(rename = "match", default)]
    pub matching: LeverMatch,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileLever {
    #[serde(rename = "kind")]
    pub _kind: String,
    pub path: Text,
    pub format: Option<Text>,
    pub read_only: Option<bool>,
    #[serde(rename = "match", default)]
    pub matching: LeverMatch,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    pub receivers: Spanned<Vec<Text>>,
    pub severity: Option<Text>,
    #[serde(rename = "match", default)]
    pub matching: Match,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Match {
    pub provider: Option<Text>,
    pub owner: Option<Text>,
    pub workspace: Option<Text>,
    pub key: Option<Text>,
    #[serde(rename = "type")]
    pub kind: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Notify {
    pub group_above: Option<Int>,
    pub group_within: Option<Text>,
    pub group_every: Option<Text>,
    pub per_hour: Option<Int>,
    pub quiet: Option<Quiet>,
    pub escalate: Option<Escalate>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quiet {
    pub from: Text,
    pub to: Text,
    pub timezone: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Escalate {
    pub after: Text,
    pub receivers: Spanned<Vec<Text>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    pub lease: Option<Text>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    pub url: Option<Text>,
    pub interval: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    pub cron: Text,
    pub timezone: Option<Text>,
    pub receivers: Spanned<Vec<Text>>,
}
