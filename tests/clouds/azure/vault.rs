//! State of one vault or managed HSM, and its rules. Knows nothing of HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cmek_watchdog::time::{Span, Wall};

use super::rsa::Rsa;

/// How rights are kept, which decides how a refusal reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    VaultWithRbac,
    VaultWithPolicies,
    ManagedHsm,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Action {
    Read,
    Wrap,
    Unwrap,
    Encrypt,
    Decrypt,
    Create,
    Update,
    Rotate,
    Delete,
    Recover,
    Purge,
}

impl Action {
    /// In a role: `wrap/action`. In an access policy: `wrapKey`. In the audit log: `KeyWrap`.
    pub fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Read => ("read", "get", "KeyGet"),
            Self::Wrap => ("wrap/action", "wrapKey", "KeyWrap"),
            Self::Unwrap => ("unwrap/action", "unwrapKey", "KeyUnwrap"),
            Self::Encrypt => ("encrypt/action", "encrypt", "KeyEncrypt"),
            Self::Decrypt => ("decrypt/action", "decrypt", "KeyDecrypt"),
            Self::Create => ("create/action", "create", "KeyCreate"),
            Self::Update => ("update/action", "update", "KeyUpdate"),
            Self::Rotate => ("rotate/action", "rotate", "KeyRotate"),
            Self::Delete => ("delete", "delete", "KeyDelete"),
            Self::Recover => ("recover/action", "recover", "KeyRecover"),
            Self::Purge => ("purge/action", "purge", "KeyPurge"),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Network {
    Open,
    /// Our address is not on the list.
    Firewall,
    /// Public access is off.
    PrivateOnly,
}

/// Validity dates of a key's current version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dates {
    pub not_before: Option<Wall>,
    pub expires: Option<Wall>,
}

/// A refusal: status, code, inner code, message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    pub status: u16,
    pub code: &'static str,
    pub inner: Option<&'static str>,
    pub message: String,
}

fn refuse<T>(status: u16, code: &'static str, inner: Option<&'static str>, message: String) -> Result<T, Refused> {
    Err(Refused { status, code, inner, message })
}

pub struct Version {
    pub id: String,
    pub rsa: Arc<Rsa>,
    pub enabled: bool,
    pub dates: Dates,
    pub created: Wall,
    pub updated: Wall,
}

pub struct Key {
    /// Oldest first; the last is current.
    pub versions: Vec<Version>,
    pub operations: Vec<String>,
    /// The trigger of rotation by the vault, `timeAfterCreate` or `timeBeforeExpiry`, and its duration.
    pub rotates: Option<(&'static str, &'static str)>,
}

impl Key {
    pub fn version(&self, id: &str) -> Option<&Version> {
        if id.is_empty() { self.versions.last() } else { self.versions.iter().find(|version| version.id == id) }
    }
}

pub struct Deleted {
    pub key: Key,
    pub at: Wall,
    pub purge_at: Wall,
}

pub struct Vault {
    pub host: String,
    pub tenant: String,
    pub kind: Kind,
    pub network: Network,
    pub recoverable: Span,
    pub keys: BTreeMap<String, Key>,
    pub deleted: BTreeMap<String, Deleted>,
    /// Rights that are missing: on one key, or on all.
    pub denied: BTreeSet<(Option<String>, Action)>,
    limit: Option<u32>,
    window: Wall,
    calls: u32,
    made: u64,
}

const LIMIT_WINDOW: Span = Span::from_secs(10);

impl Vault {
    /// `first` numbers the material, so that no two vaults of a cloud share any.
    pub fn new(host: &str, tenant: &str, kind: Kind, first: u64) -> Self {
        Self {
            host: host.to_owned(),
            tenant: tenant.to_owned(),
            kind,
            network: Network::Open,
            recoverable: Span::from_days(90),
            keys: BTreeMap::new(),
            deleted: BTreeMap::new(),
            denied: BTreeSet::new(),
            limit: None,
            window: Wall(0),
            calls: 0,
            made: first,
        }
    }

    /// The first label of the host.
    pub fn name(&self) -> &str {
        self.host.split('.').next().unwrap_or_default()
    }

    fn not_found<T>(name: &str) -> Result<T, Refused> {
        let text = format!(
            "A key with (name/id) {name} was not found in this key vault. If you recently deleted this key you may be able to recover it \
             using the correct recovery command. For help resolving this issue, please see https://go.microsoft.com/fwlink/?linkid=2125182"
        );
        refuse(404, "KeyNotFound", None, text)
    }

    fn fresh_version(&mut self, now: Wall) -> Version {
        self.made += 1;
        let id = format!("{:016x}{:016x}", now.0, self.made);
        Version { id, rsa: Rsa::numbered(self.made), enabled: true, dates: Dates::default(), created: now, updated: now }
    }

    pub fn create(&mut self, name: &str, now: Wall) -> Result<String, Refused> {
        if self.deleted.contains_key(name) {
            let text = format!(
                "Key {name} is currently in a deleted but recoverable state, and its name cannot be reused; in this state, the key can only \
                 be recovered or purged."
            );
            return refuse(409, "Conflict", Some("ObjectIsDeletedButRecoverable"), text);
        }
        let version = self.fresh_version(now);
        let id = version.id.clone();
        let operations = ["encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"].map(str::to_owned).to_vec();
        self.keys.entry(name.to_owned()).or_insert(Key { versions: Vec::new(), operations, rotates: None }).versions.push(version);
        Ok(id)
    }

    pub fn rotate(&mut self, name: &str, now: Wall) -> Result<String, Refused> {
        if self.keys.contains_key(name) { self.create(name, now) } else { Self::not_found(name) }
    }

    fn living(&mut self, name: &str) -> Result<&mut Key, Refused> {
        match self.keys.get_mut(name) {
            Some(key) => Ok(key),
            None => Self::not_found(name),
        }
    }

    pub fn set_enabled(&mut self, name: &str, version: Option<&str>, enabled: bool, now: Wall) -> Result<(), Refused> {
        let mut found = false;
        for one in self.living(name)?.versions.iter_mut().filter(|one| version.is_none_or(|id| one.id == id)) {
            (one.enabled, one.updated, found) = (enabled, now, true);
        }
        if found { Ok(()) } else { Self::not_found(&format!("{name}/{}", version.unwrap_or_default())) }
    }

    pub fn set_dates(&mut self, name: &str, dates: Dates, now: Wall) -> Result<(), Refused> {
        if let Some(current) = self.living(name)?.versions.last_mut() {
            (current.dates, current.updated) = (dates, now);
        }
        Ok(())
    }

    pub fn set_operations(&mut self, name: &str, operations: &[&str]) -> Result<(), Refused> {
        self.living(name)?.operations = operations.iter().map(|one| (*one).to_owned()).collect();
        Ok(())
    }

    pub fn delete(&mut self, name: &str, now: Wall) -> Result<(), Refused> {
        let Some(key) = self.keys.remove(name) else { return Self::not_found(name) };
        let purge_at = now.plus(self.recoverable);
        self.deleted.insert(name.to_owned(), Deleted { key, at: now, purge_at });
        Ok(())
    }

    pub fn recover(&mut self, name: &str) -> Result<(), Refused> {
        let Some(deleted) = self.deleted.remove(name) else {
            return refuse(404, "KeyNotFound", None, format!("Deleted Key not found: {name}"));
        };
        self.keys.insert(name.to_owned(), deleted.key);
        Ok(())
    }

    pub fn purge(&mut self, name: &str) -> Result<(), Refused> {
        match self.deleted.remove(name) {
            Some(_) => Ok(()),
            None => refuse(404, "KeyNotFound", None, format!("Deleted Key not found: {name}")),
        }
    }

    pub fn purge_due(&mut self, now: Wall) {
        self.deleted.retain(|_, deleted| deleted.purge_at > now);
    }

    pub fn set_limit(&mut self, limit: Option<u32>, now: Wall) {
        (self.limit, self.window, self.calls) = (limit, now, 0);
    }

    pub fn find_deleted(&self, name: &str) -> Result<&Deleted, Refused> {
        match self.deleted.get(name) {
            Some(deleted) => Ok(deleted),
            None => refuse(404, "KeyNotFound", None, format!("Deleted Key not found: {name}")),
        }
    }

    pub fn find(&self, name: &str, version: &str) -> Result<(&Key, &Version), Refused> {
        let found = self.keys.get(name).and_then(|key| key.version(version).map(|one| (key, one)));
        found.map_or_else(|| Self::not_found(&if version.is_empty() { name.to_owned() } else { format!("{name}/{version}") }), Ok)
    }

    pub fn material(&self, name: &str, version: &str) -> Option<Arc<Rsa>> {
        let living = self.keys.get(name);
        living.or_else(|| self.deleted.get(name).map(|deleted| &deleted.key))?.version(version).map(|one| Arc::clone(&one.rsa))
    }

    /// Network, then the limit, then rights: the order in which a vault refuses.
    pub fn admit(&mut self, app: &str, oid: &str, key: &str, action: Action, now: Wall) -> Result<(), Refused> {
        let caller =
            format!("Caller: appid={app};oid={oid};iss=https://sts.windows.net/{}/\r\nVault: {};location=eastus", self.tenant, self.name());
        match self.network {
            Network::Open => {}
            Network::Firewall => {
                let text = format!(
                    "Client address is not authorized and caller is not a trusted service.\r\nClient address: 192.0.2.44\r\n{caller}"
                );
                return refuse(403, "Forbidden", Some("ForbiddenByFirewall"), text);
            }
            Network::PrivateOnly => {
                let text = "Public network access is disabled and request is not from a trusted service nor via an approved private link.";
                return refuse(403, "Forbidden", Some("ForbiddenByConnection"), format!("{text}\r\n{caller}"));
            }
        }
        if now.since(self.window) >= LIMIT_WINDOW {
            (self.window, self.calls) = (now, 0);
        }
        self.calls += 1;
        if self.limit.is_some_and(|limit| self.calls > limit) {
            let text = "Request was not processed because too many requests were received. Reason: VaultRequestTypeLimitReached";
            return refuse(429, "Throttled", None, text.to_owned());
        }
        if self.denied.contains(&(None, action)) || self.denied.contains(&(Some(key.to_owned()), action)) {
            return self.deny(app, oid, key, action);
        }
        Ok(())
    }

    fn deny(&self, app: &str, oid: &str, key: &str, action: Action) -> Result<(), Refused> {
        let (role, policy, _) = action.words();
        let issuer = format!("https://sts.windows.net/{}/", self.tenant);
        match self.kind {
            Kind::VaultWithRbac => {
                let name = self.name();
                let text = format!(
                    "Caller is not authorized to perform action on resource.\r\nIf role assignments, deny assignments or role definitions were \
                     changed recently, please observe propagation time.\r\nCaller: appid={app};oid={oid};iss={issuer}\r\nAction: \
                     'Microsoft.KeyVault/vaults/keys/{role}'\r\nResource: '/subscriptions/33333333-3333-3333-3333-333333333333/resourcegroups/\
                     acme-rg/providers/microsoft.keyvault/vaults/{name}/keys/{key}'\r\nAssignment: (not found)\r\nDenyAssignmentId: null\r\n\
                     DecisionReason: 'DeniedWithNoValidRBAC' \r\nVault: {name};location=eastus\r\n"
                );
                refuse(403, "Forbidden", Some("ForbiddenByRbac"), text)
            }
            Kind::VaultWithPolicies => {
                let text = format!(
                    "The user, group or application 'appid={app};oid={oid};iss={issuer}' does not have keys {policy} permission on key vault \
                     '{};location=eastus'. For help resolving this issue, please see https://go.microsoft.com/fwlink/?linkid=2125287",
                    self.name()
                );
                refuse(403, "Forbidden", Some("ForbiddenByPolicy"), text)
            }
            Kind::ManagedHsm => {
                let role = if role.ends_with("/action") { role.to_owned() } else { format!("{role}/action") };
                let text = format!(
                    "Not authorized to access Microsoft.KeyVault/managedHsm/keys/{role} on /keys/{key} (Activity ID: \
                     00000000-0000-4000-8000-00000000000e)"
                );
                refuse(403, "AccessDenied", None, text)
            }
        }
    }

    /// A call on data: state first, then operations, then dates (for what makes new data only), then the bytes.
    pub fn crypt(
        &self,
        name: &str,
        version: &str,
        action: Action,
        algorithm: &str,
        value: &[u8],
        now: Wall,
    ) -> Result<(String, Vec<u8>), Refused> {
        let (key, one) = self.find(name, version)?;
        let operation = action.words().1;
        if !one.enabled {
            let text = format!("Operation {operation} is not allowed on a disabled key.");
            return refuse(403, "Forbidden", Some("KeyDisabled"), text);
        }
        if !key.operations.iter().any(|has| has == operation) {
            let text = format!("Operation {operation} is not permitted on this key.");
            return refuse(403, "Forbidden", Some("KeyOperationForbidden"), text);
        }
        let forward = matches!(action, Action::Wrap | Action::Encrypt);
        if forward && one.dates.expires.is_some_and(|end| end <= now) {
            let text = format!("Operation {operation} is not allowed on an expired key.");
            return refuse(403, "Forbidden", Some("KeyExpired"), text);
        }
        if forward && one.dates.not_before.is_some_and(|start| start > now) {
            let text = format!("Operation {operation} is not allowed on a key that is not yet valid.");
            return refuse(403, "Forbidden", Some("KeyNotYetValid"), text);
        }
        let out = if forward { one.rsa.encrypt(algorithm, value) } else { one.rsa.decrypt(algorithm, value) };
        match out {
            Some(bytes) => Ok((one.id.clone(), bytes)),
            None if matches!(algorithm, "RSA-OAEP" | "RSA-OAEP-256") => {
                refuse(400, "BadParameter", None, "The parameter is incorrect.\r\n".to_owned())
            }
            None => {
                let text = format!("Property 'alg' has invalid value: Key of type RSA does not support algorithm {algorithm}.\r\n");
                refuse(400, "BadParameter", None, text)
            }
        }
    }
}
