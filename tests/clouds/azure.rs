//! A Key Vault and Managed HSM of our own, over https: vaults, keys, versions, dates, soft deletion with
//! a scheduled purge on a virtual clock, rights, firewall, throttling, faults and an audit log.
//! It also plays the sign-in service. The crate root must have `mod https` (tests/support/https.rs).
#![allow(dead_code, reason = "shared by several test binaries")]

#[path = "azure/rsa.rs"]
mod rsa;
#[path = "azure/vault.rs"]
mod vault;
#[path = "azure/wire.rs"]
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use cmek_watchdog::time::{Span, Wall};

use vault::Vault;
pub use vault::{Action, Dates, Kind, Network};

/// An answer that takes the place of the vault's own.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Status, code and message of a JSON refusal.
    Refuse(u16, &'static str, &'static str),
    /// A page that some proxy wrote.
    Page(u16),
    Hang,
    Cut,
}

/// One row of the audit log, in the words of Azure Monitor's `AuditEvent` category.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuditRow {
    pub time: Wall,
    /// `KeyUnwrap`, `KeyGet`, ...
    pub operation: &'static str,
    pub vault: String,
    pub key: String,
    pub version: String,
    /// Application of the caller, empty before it is known.
    pub app: String,
    pub status: u16,
    pub code: String,
    pub request_id: String,
    pub client_request_id: String,
    pub user_agent: String,
}

impl AuditRow {
    /// The row as the diagnostic setting writes it.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "time": self.time.to_string(),
            "category": "AuditEvent",
            "operationName": self.operation,
            "resultType": if self.status < 300 { "Success" } else { "Failed" },
            "resultSignature": self.code,
            "httpStatusCode": self.status,
            "correlationId": self.client_request_id,
            "identity": {"claim": {"appid": self.app}},
            "properties": {
                "id": format!("https://{}/keys/{}/{}", self.vault, self.key, self.version),
                "clientInfo": self.user_agent,
                "requestUri": format!("https://{}/keys/{}", self.vault, self.key),
                "httpStatusCode": self.status,
            },
        })
    }
}

struct World {
    now: Wall,
    vaults: BTreeMap<String, Vault>,
    /// Vault that is meant when the server is called by its address.
    by_address: String,
    faults: VecDeque<(Option<Action>, Fault)>,
    static_tokens: BTreeMap<String, String>,
    /// Refusals of the sign-in service: application -> body.
    sign_in_refusals: BTreeMap<String, serde_json::Value>,
    audit: Vec<AuditRow>,
    requests: u64,
}

/// The running fake; it stops when dropped.
pub struct AzureCloud {
    world: Arc<Mutex<World>>,
    server: crate::https::Server,
}

impl AzureCloud {
    /// Starts with one vault in access of everybody who has a token of its tenant.
    pub async fn start(host: &str, tenant: &str, kind: Kind) -> Self {
        let world = Arc::new(Mutex::new(World {
            now: "2026-11-25T12:00:00Z".parse().unwrap(),
            vaults: BTreeMap::from([(host.to_owned(), Vault::new(host, tenant, kind, 0))]),
            by_address: host.to_owned(),
            faults: VecDeque::new(),
            static_tokens: BTreeMap::new(),
            sign_in_refusals: BTreeMap::new(),
            audit: Vec::new(),
            requests: 0,
        }));
        let names = ["*.vault.azure.net", "*.managedhsm.azure.net", "login.microsoftonline.com"];
        let shared = Arc::clone(&world);
        let server =
            crate::https::https(&names, crate::https::handler(move |asked| wire::answer(&mut shared.lock().unwrap(), &asked))).await;
        Self { world, server }
    }

    pub fn addr(&self) -> SocketAddr {
        self.server.addr
    }
    pub fn ca_pem(&self) -> &str {
        &self.server.ca_pem
    }
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Does something with a vault at the present virtual time.
    fn at<T>(&self, host: &str, act: impl FnOnce(&mut Vault, Wall) -> T) -> T {
        let mut world = self.world();
        let now = world.now;
        act(world.vaults.get_mut(host).unwrap_or_else(|| panic!("no vault {host}")), now)
    }

    pub fn add_vault(&self, host: &str, tenant: &str, kind: Kind) {
        let mut world = self.world();
        let first = 1000 * u64::try_from(world.vaults.len()).unwrap();
        world.vaults.insert(host.to_owned(), Vault::new(host, tenant, kind, first));
    }
    /// Moves the virtual clock; what is due for purging is purged.
    pub fn advance(&self, span: Span) {
        let mut world = self.world();
        world.now = world.now.plus(span);
        let now = world.now;
        world.vaults.values_mut().for_each(|vault| vault.purge_due(now));
    }
    pub fn now(&self) -> Wall {
        self.world().now
    }

    /// Makes a key and returns its first version.
    pub fn create_key(&self, host: &str, name: &str) -> String {
        self.at(host, |vault, now| vault.create(name, now).unwrap())
    }
    pub fn rotate(&self, host: &str, name: &str) -> String {
        self.at(host, |vault, now| vault.rotate(name, now).unwrap())
    }
    /// Sets `enabled` of one version, or of all.
    pub fn set_enabled(&self, host: &str, name: &str, version: Option<&str>, enabled: bool) {
        self.at(host, |vault, now| vault.set_enabled(name, version, enabled, now).unwrap());
    }
    pub fn set_dates(&self, host: &str, name: &str, dates: Dates) {
        self.at(host, |vault, now| vault.set_dates(name, dates, now).unwrap());
    }
    pub fn set_operations(&self, host: &str, name: &str, operations: &[&str]) {
        self.at(host, |vault, _| vault.set_operations(name, operations).unwrap());
    }
    /// The vault makes new versions by itself.
    pub fn rotate_by_itself(&self, host: &str, name: &str, trigger: &'static str, duration: &'static str) {
        self.at(host, |vault, _| vault.keys.get_mut(name).unwrap().rotates = Some((trigger, duration)));
    }
    /// Soft deletion.
    pub fn delete(&self, host: &str, name: &str) {
        self.at(host, |vault, now| vault.delete(name, now).unwrap());
    }
    pub fn recover(&self, host: &str, name: &str) {
        self.at(host, |vault, _| vault.recover(name).unwrap());
    }
    pub fn purge(&self, host: &str, name: &str) {
        self.at(host, |vault, _| vault.purge(name).unwrap());
    }
    /// Withdraws a right on one key, or on the whole vault.
    pub fn deny(&self, host: &str, name: Option<&str>, action: Action) {
        self.at(host, |vault, _| vault.denied.insert((name.map(str::to_owned), action)));
    }
    pub fn allow(&self, host: &str, name: Option<&str>, action: Action) {
        self.at(host, |vault, _| vault.denied.remove(&(name.map(str::to_owned), action)));
    }
    pub fn set_network(&self, host: &str, network: Network) {
        self.at(host, |vault, _| vault.network = network);
    }
    /// At most so many calls in ten seconds of virtual time.
    pub fn set_limit(&self, host: &str, limit: Option<u32>) {
        self.at(host, |vault, now| vault.set_limit(limit, now));
    }
    /// The next request for `action` (or for anything) gets this instead; faults queue up.
    pub fn fault(&self, action: Option<Action>, fault: Fault) {
        self.world().faults.push_back((action, fault));
    }
    /// A token that is good without signing in, and the application that it stands for.
    pub fn accept_token(&self, token: &str, app: &str) {
        self.world().static_tokens.insert(token.to_owned(), app.to_owned());
    }
    /// The sign-in service refuses this application; `None` ends it.
    pub fn refuse_sign_in(&self, app: &str, body: Option<serde_json::Value>) {
        let mut world = self.world();
        match body {
            Some(body) => world.sign_in_refusals.insert(app.to_owned(), body),
            None => world.sign_in_refusals.remove(app),
        };
    }
    pub fn audit(&self) -> Vec<AuditRow> {
        self.world().audit.clone()
    }
    /// Opens wrapped bytes with the private key, past every rule.
    pub fn open(&self, host: &str, name: &str, version: &str, algorithm: &str, wrapped: &[u8]) -> Option<Vec<u8>> {
        self.at(host, |vault, _| vault.material(name, version).and_then(|rsa| rsa.decrypt(algorithm, wrapped)))
    }
}
