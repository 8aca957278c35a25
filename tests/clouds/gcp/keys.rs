//! Key rings, keys and versions of the fake Cloud KMS: the state machine of its documentation, under a
//! clock of its own. Knows nothing of HTTP.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rand;
use cmek_watchdog::time::Wall;
use serde_json::{Value, json};

/// A refusal in Google's shape.
#[derive(Clone, Debug)]
pub struct Status {
    pub http: u16,
    pub code: &'static str,
    pub message: String,
    pub details: Vec<Value>,
}

pub type Outcome<T> = Result<T, Status>;

impl Status {
    pub fn new(http: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { http, code, message: message.into(), details: Vec::new() }
    }
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, "INVALID_ARGUMENT", message)
    }
    fn not_found(what: &str, name: &str) -> Self {
        Self::new(404, "NOT_FOUND", format!("{what} {name} not found."))
    }
    pub fn denied(permission: &str, resource: &str, domain: &str) -> Self {
        let mut status = Self::new(
            403,
            "PERMISSION_DENIED",
            format!("Permission '{permission}' denied on resource '{resource}' (or it may not exist)."),
        );
        status.details.push(json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "IAM_PERMISSION_DENIED", "domain": domain,
            "metadata": {"permission": permission, "resource": resource},
        }));
        status
    }
    fn not_enabled(name: &str, state: &str) -> Self {
        let mut status = Self::new(400, "FAILED_PRECONDITION", format!("{name} is not enabled, current state is: {state}."));
        status.details.push(json!({
            "@type": "type.googleapis.com/google.rpc.PreconditionFailure",
            "violations": [{"type": format!("KEY_{state}"), "subject": name}],
        }));
        status
    }
    pub fn body(&self) -> Value {
        let mut error = json!({"code": self.http, "message": self.message, "status": self.code});
        if !self.details.is_empty() {
            error["details"] = Value::Array(self.details.clone());
        }
        json!({ "error": error })
    }
}

struct Version {
    state: &'static str,
    created: Wall,
    destroy_at: Option<Wall>,
    destroyed_at: Option<Wall>,
    /// Stands in each ciphertext, as Google's own mark does.
    mark: [u8; 16],
    material: Option<[u8; 32]>,
}

struct Key {
    created: Wall,
    purpose: String,
    primary: Option<u32>,
    versions: BTreeMap<u32, Version>,
    /// Milliseconds between the order to destroy and the destruction.
    destroy_after: i64,
    next_rotation: Option<String>,
}

/// All keys, and the time that they live in.
pub struct Keys {
    pub now: Wall,
    rings: BTreeSet<String>,
    keys: BTreeMap<String, Key>,
}

const STATES: &[&str] =
    &["", "ENABLED", "DISABLED", "DESTROYED", "DESTROY_SCHEDULED", "PENDING_GENERATION", "PENDING_IMPORT", "IMPORT_FAILED"];
const PURPOSES: &[&str] = &["", "ENCRYPT_DECRYPT", "", "", "", "ASYMMETRIC_SIGN", "ASYMMETRIC_DECRYPT"];
const DAY: i64 = 86_400_000;

/// Clients send an enum by number or by name.
fn enumerated(value: &Value, names: &'static [&'static str]) -> Option<&'static str> {
    match value {
        Value::Number(number) => names.get(usize::try_from(number.as_u64()?).ok()?).copied(),
        Value::String(name) => names.iter().find(|known| *known == name).copied(),
        _ => None,
    }
}

fn split_version(name: &str) -> (&str, Option<u32>) {
    match name.rsplit_once("/cryptoKeyVersions/") {
        Some((key, number)) => (key, Some(number.parse().unwrap_or(0))),
        None => (name, None),
    }
}

impl Keys {
    pub fn new(now: Wall) -> Self {
        Self { now, rings: BTreeSet::new(), keys: BTreeMap::new() }
    }

    /// Moves time on and destroys what is due.
    pub fn advance(&mut self, by_ms: i64) {
        self.now = Wall(self.now.0 + by_ms);
        for version in self.keys.values_mut().flat_map(|key| key.versions.values_mut()) {
            if version.state == "DESTROY_SCHEDULED" && version.destroy_at.is_some_and(|at| at <= self.now) {
                version.state = "DESTROYED";
                version.destroyed_at = version.destroy_at.take();
                version.material = None;
            }
        }
    }

    pub fn create_ring(&mut self, name: &str) -> Outcome<Value> {
        if !self.rings.insert(name.to_owned()) {
            return Err(Status::new(409, "ALREADY_EXISTS", format!("KeyRing {name} already exists.")));
        }
        Ok(json!({"name": name, "createTime": self.now.to_string()}))
    }

    pub fn create_key(&mut self, name: &str, body: &Value) -> Outcome<Value> {
        let ring = name.split("/cryptoKeys/").next().unwrap_or("");
        if !self.rings.contains(ring) {
            return Err(Status::not_found("KeyRing", ring));
        }
        if self.keys.contains_key(name) {
            return Err(Status::new(409, "ALREADY_EXISTS", format!("CryptoKey {name} already exists.")));
        }
        let purpose = enumerated(&body["purpose"], PURPOSES).ok_or_else(|| Status::invalid("The purpose is not specified."))?;
        let seconds = body["destroyScheduledDuration"].as_str().and_then(|text| text.trim_end_matches('s').parse::<i64>().ok());
        let key = Key {
            created: self.now,
            purpose: purpose.to_owned(),
            primary: None,
            versions: BTreeMap::new(),
            destroy_after: seconds.map_or(30 * DAY, |seconds| seconds * 1000),
            next_rotation: body["nextRotationTime"].as_str().map(str::to_owned),
        };
        self.keys.insert(name.to_owned(), key);
        self.create_version(name)?;
        if purpose == "ENCRYPT_DECRYPT" {
            self.key_mut(name)?.primary = Some(1);
        }
        self.show_key(name)
    }

    pub fn create_version(&mut self, name: &str) -> Outcome<Value> {
        let created = self.now;
        let key = self.key_mut(name)?;
        let number = key.versions.keys().next_back().copied().unwrap_or(0) + 1;
        let (mut mark, mut material) = ([0; 16], [0; 32]);
        rand::fill(&mut mark).unwrap();
        rand::fill(&mut material).unwrap();
        let version = Version { state: "ENABLED", created, destroy_at: None, destroyed_at: None, mark, material: Some(material) };
        key.versions.insert(number, version);
        self.show_version(&format!("{name}/cryptoKeyVersions/{number}"))
    }

    pub fn set_primary(&mut self, name: &str, number: &str) -> Outcome<Value> {
        let key = self.key_mut(name)?;
        let full = format!("{name}/cryptoKeyVersions/{number}");
        let number: u32 = number.parse().map_err(|_| Status::invalid("The version id is not a number."))?;
        let version = key.versions.get(&number).ok_or_else(|| Status::not_found("CryptoKeyVersion", &full))?;
        if version.state != "ENABLED" {
            return Err(Status::not_enabled(&full, version.state));
        }
        key.primary = Some(number);
        self.show_key(name)
    }

    /// Enables or disables a version.
    pub fn set_state(&mut self, name: &str, wanted: &Value) -> Outcome<Value> {
        let wanted = enumerated(wanted, STATES).filter(|state| matches!(*state, "ENABLED" | "DISABLED"));
        let wanted = wanted.ok_or_else(|| Status::invalid("The state must be ENABLED or DISABLED."))?;
        let version = self.version_mut(name)?;
        if !matches!(version.state, "ENABLED" | "DISABLED") {
            return Err(Status::not_enabled(name, version.state));
        }
        version.state = wanted;
        self.show_version(name)
    }

    pub fn destroy(&mut self, name: &str) -> Outcome<Value> {
        let (key, _) = split_version(name);
        let at = Wall(self.now.0 + self.key_mut(key)?.destroy_after);
        let version = self.version_mut(name)?;
        if matches!(version.state, "DESTROY_SCHEDULED" | "DESTROYED") {
            return Err(Status::not_enabled(name, version.state));
        }
        version.state = "DESTROY_SCHEDULED";
        version.destroy_at = Some(at);
        self.show_version(name)
    }

    /// A restored version is disabled and must be enabled by hand.
    pub fn restore(&mut self, name: &str) -> Outcome<Value> {
        let version = self.version_mut(name)?;
        if version.state != "DESTROY_SCHEDULED" {
            let text = format!("{name} is not scheduled for destruction, current state is: {}.", version.state);
            return Err(Status::new(400, "FAILED_PRECONDITION", text));
        }
        version.state = "DISABLED";
        version.destroy_at = None;
        self.show_version(name)
    }

    /// Seals under the named version, or the key's primary. Gives the version's name and the bytes.
    pub fn encrypt(&self, name: &str, plain: &[u8], aad: &[u8]) -> Outcome<(String, Vec<u8>)> {
        let (key_name, number) = split_version(name);
        let key = self.usable_key(key_name)?;
        let number = number
            .or(key.primary)
            .ok_or_else(|| Status::new(400, "FAILED_PRECONDITION", format!("CryptoKey {key_name} has no primary version.")))?;
        let full = format!("{key_name}/cryptoKeyVersions/{number}");
        let version = key.versions.get(&number).ok_or_else(|| Status::not_found("CryptoKeyVersion", &full))?;
        let cipher = cipher(&full, version)?;
        let mut nonce = [0; 12];
        rand::fill(&mut nonce).unwrap();
        let mut sealed = plain.to_vec();
        cipher.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut sealed).unwrap();
        Ok((full, [b"\n$".as_slice(), &version.mark, &nonce, &sealed].concat()))
    }

    /// Opens, and says whether the primary version did it.
    pub fn decrypt(&self, name: &str, sealed: &[u8], aad: &[u8]) -> Outcome<(Vec<u8>, bool)> {
        let key = self.usable_key(name)?;
        let damaged = || Status::invalid("Decryption failed: the ciphertext is invalid.");
        let (mark, rest) = sealed.strip_prefix(b"\n$").and_then(|rest| rest.split_at_checked(16)).ok_or_else(damaged)?;
        let (nonce, rest) = rest.split_at_checked(12).ok_or_else(damaged)?;
        let (number, version) = key
            .versions
            .iter()
            .find(|(_, version)| version.mark == mark)
            .ok_or_else(|| Status::invalid("Decryption failed: verify that 'name' refers to the correct CryptoKey."))?;
        let cipher = cipher(&format!("{name}/cryptoKeyVersions/{number}"), version)?;
        let mut opened = rest.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
        let plain = cipher.open_in_place(nonce, Aad::from(aad), &mut opened).map_err(|_| damaged())?;
        Ok((plain.to_vec(), key.primary == Some(*number)))
    }

    pub fn show_key(&self, name: &str) -> Outcome<Value> {
        let key = self.keys.get(name).ok_or_else(|| self.missing_key(name))?;
        let mut shown = json!({
            "name": name, "purpose": key.purpose, "createTime": key.created.to_string(),
            "versionTemplate": {"protectionLevel": "SOFTWARE", "algorithm": "GOOGLE_SYMMETRIC_ENCRYPTION"},
            "destroyScheduledDuration": format!("{}s", key.destroy_after / 1000),
        });
        if let Some(number) = key.primary {
            shown["primary"] = self.show_version(&format!("{name}/cryptoKeyVersions/{number}"))?;
        }
        if let Some(next) = &key.next_rotation {
            shown["nextRotationTime"] = json!(next);
        }
        Ok(shown)
    }

    pub fn show_version(&self, name: &str) -> Outcome<Value> {
        let (key, number) = split_version(name);
        let key = self.keys.get(key).ok_or_else(|| self.missing_key(key))?;
        let version = key.versions.get(&number.unwrap_or(0)).ok_or_else(|| Status::not_found("CryptoKeyVersion", name))?;
        let mut shown = json!({
            "name": name, "state": version.state, "createTime": version.created.to_string(),
            "protectionLevel": "SOFTWARE", "algorithm": "GOOGLE_SYMMETRIC_ENCRYPTION",
        });
        for (field, time) in [("destroyTime", version.destroy_at), ("destroyEventTime", version.destroyed_at)] {
            if let Some(time) = time {
                shown[field] = json!(time.to_string());
            }
        }
        Ok(shown)
    }

    /// Names of the versions of a key, oldest first.
    pub fn version_names(&self, name: &str) -> Outcome<Vec<String>> {
        let key = self.keys.get(name).ok_or_else(|| self.missing_key(name))?;
        Ok(key.versions.keys().map(|number| format!("{name}/cryptoKeyVersions/{number}")).collect())
    }

    fn usable_key(&self, name: &str) -> Outcome<&Key> {
        let key = self.keys.get(name).ok_or_else(|| self.missing_key(name))?;
        if key.purpose != "ENCRYPT_DECRYPT" {
            let text = format!("CryptoKey {name} has purpose {}. This operation requires ENCRYPT_DECRYPT.", key.purpose);
            return Err(Status::new(400, "FAILED_PRECONDITION", text));
        }
        Ok(key)
    }

    fn missing_key(&self, name: &str) -> Status {
        let ring = name.split("/cryptoKeys/").next().unwrap_or("");
        if self.rings.contains(ring) { Status::not_found("CryptoKey", name) } else { Status::not_found("KeyRing", ring) }
    }

    fn key_mut(&mut self, name: &str) -> Outcome<&mut Key> {
        let missing = self.missing_key(name);
        self.keys.get_mut(name).ok_or(missing)
    }

    fn version_mut(&mut self, name: &str) -> Outcome<&mut Version> {
        let (key, number) = split_version(name);
        let versions = &mut self.key_mut(key)?.versions;
        versions.get_mut(&number.unwrap_or(0)).ok_or_else(|| Status::not_found("CryptoKeyVersion", name))
    }
}

fn cipher(name: &str, version: &Version) -> Outcome<LessSafeKey> {
    let material = version.material.filter(|_| version.state == "ENABLED").ok_or_else(|| Status::not_enabled(name, version.state))?;
    Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &material).unwrap()))
}
