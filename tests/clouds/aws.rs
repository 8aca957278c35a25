//! AWS KMS and STS as far as a watchdog meets them, over HTTP on 127.0.0.1: key states, material per
//! rotation, encryption context, denials by policy layer, roles, deletion on a clock that only moves
//! when told, and injected faults. The owner's hands are plain methods.
#![allow(dead_code, reason = "shared by several test binaries, each using its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};

use super::wire::{Ask, Reply, Wire};

/// Whose account we are.
pub const OURS: &str = "111122223333";
/// The access key of the base identity; any secret is accepted.
pub const ACCESS_KEY: &str = "AKIDWATCHDOG";
const BASE: &str = "arn:aws:iam::111122223333:user/watchdog";
const DAY: i64 = 86_400_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Enabled,
    Disabled,
    PendingDeletion,
    PendingImport,
    Unavailable,
}

struct Material {
    id: String,
    key: [u8; 32],
    /// Unix milliseconds.
    made: i64,
}

struct Key {
    state: State,
    created: i64,
    deletion_at: Option<i64>,
    imported: bool,
    /// Every 365 days.
    rotates: bool,
    materials: Vec<Material>,
    /// Operation (`Decrypt`) to the reason that ends the refusal's sentence.
    denied: BTreeMap<String, String>,
}

/// A fault to give instead of an answer.
struct Injected {
    operation: Option<String>,
    /// `None` = until cleared.
    left: Option<usize>,
    reply: Reply,
}

struct Role {
    external_id: Option<String>,
    trusted: bool,
}

#[derive(Default)]
struct World {
    /// Unix milliseconds.
    now: i64,
    /// By key ARN.
    keys: BTreeMap<String, Key>,
    /// Alias ARN to key ARN.
    aliases: BTreeMap<String, String>,
    roles: BTreeMap<String, Role>,
    /// Access key to caller ARN.
    callers: BTreeMap<String, String>,
    /// Access keys whose sessions are over.
    expired: BTreeSet<String>,
    faults: Vec<Injected>,
    count: u64,
}

pub struct FakeAws {
    wire: Wire,
    world: Arc<Mutex<World>>,
}

impl FakeAws {
    pub async fn start() -> Self {
        let world =
            World { now: 1_795_000_000_000, callers: BTreeMap::from([(ACCESS_KEY.to_owned(), BASE.to_owned())]), ..World::default() };
        let world = Arc::new(Mutex::new(world));
        let seen = Arc::clone(&world);
        let wire = Wire::serve(move |ask| seen.lock().unwrap().answer(ask)).await;
        Self { wire, world }
    }
    pub fn url(&self) -> String {
        self.wire.url()
    }
    /// Every request so far.
    pub fn asked(&self) -> Vec<Ask> {
        self.wire.asked()
    }
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }
    fn change<T>(&self, arn: &str, change: impl FnOnce(&mut Key) -> T) -> T {
        change(self.world().keys.get_mut(arn).unwrap_or_else(|| panic!("no key {arn}")))
    }

    /// Makes a key; returns its ARN.
    pub fn create_key(&self, region: &str, account: &str) -> String {
        self.create(region, account, false)
    }
    /// Makes a key whose material its owner brought along.
    pub fn create_imported_key(&self, region: &str, account: &str) -> String {
        self.create(region, account, true)
    }
    fn create(&self, region: &str, account: &str, imported: bool) -> String {
        let mut world = self.world();
        world.count += 1;
        let arn = format!("arn:aws:kms:{region}:{account}:key/00000000-0000-4000-8000-{:012}", world.count);
        let key = Key {
            state: State::Enabled,
            created: world.now,
            deletion_at: None,
            imported,
            materials: vec![new_material(world.now)],
            rotates: false,
            denied: BTreeMap::new(),
        };
        world.keys.insert(arn.clone(), key);
        arn
    }
    pub fn alias(&self, alias_arn: &str, key_arn: &str) {
        self.world().aliases.insert(alias_arn.to_owned(), key_arn.to_owned());
    }
    pub fn set_state(&self, arn: &str, state: State) {
        self.change(arn, |k| k.state = state);
    }
    pub fn disable(&self, arn: &str) {
        self.set_state(arn, State::Disabled);
    }
    pub fn enable(&self, arn: &str) {
        self.change(arn, |k| {
            assert!(matches!(k.state, State::Enabled | State::Disabled), "enable needs a key that is not {:?}", k.state);
            k.state = State::Enabled;
        });
    }
    pub fn schedule_deletion(&self, arn: &str, days: i64) {
        assert!((7..=30).contains(&days));
        let at = self.world().now + days * DAY;
        self.change(arn, |k| (k.state, k.deletion_at) = (State::PendingDeletion, Some(at)));
    }
    pub fn cancel_deletion(&self, arn: &str) {
        self.change(arn, |k| (k.state, k.deletion_at) = (State::Disabled, None));
    }
    pub fn rotate(&self, arn: &str) {
        let now = self.world().now;
        self.change(arn, |k| k.materials.push(new_material(now)));
    }
    pub fn enable_rotation(&self, arn: &str) {
        self.change(arn, |k| k.rotates = true);
    }
    /// The owner deletes the material that he brought along.
    pub fn delete_imported_material(&self, arn: &str) {
        self.change(arn, |k| {
            assert!(k.imported);
            k.state = State::PendingImport;
        });
    }
    pub fn import_again(&self, arn: &str) {
        self.set_state(arn, State::Enabled);
    }
    /// Denies an operation (`Decrypt`) by the key policy.
    pub fn deny(&self, arn: &str, operation: &str) {
        self.deny_because(arn, operation, "with an explicit deny in a resource-based policy");
    }
    /// Denies with another ending of the sentence, such as `because no identity-based policy allows the kms:Decrypt action`.
    pub fn deny_because(&self, arn: &str, operation: &str, why: &str) {
        self.change(arn, |k| k.denied.insert(operation.to_owned(), why.to_owned()));
    }
    pub fn allow(&self, arn: &str, operation: &str) {
        self.change(arn, |k| k.denied.remove(operation));
    }
    /// Moves the clock; keys whose time has come are gone.
    pub fn advance(&self, ms: i64) {
        let mut world = self.world();
        world.now += ms;
        let now = world.now;
        world.keys.retain(|_, k| k.deletion_at.is_none_or(|at| at > now));
    }
    /// Answers an operation (or all) with something else, `times` times or until cleared.
    pub fn inject(&self, operation: Option<&str>, times: Option<usize>, reply: Reply) {
        self.world().faults.push(Injected { operation: operation.map(str::to_owned), left: times, reply });
    }
    pub fn clear_faults(&self) {
        self.world().faults.clear();
    }
    pub fn trust_role(&self, arn: &str, external_id: Option<&str>) {
        self.world().roles.insert(arn.to_owned(), Role { external_id: external_id.map(str::to_owned), trusted: true });
    }
    pub fn withdraw_trust(&self, arn: &str) {
        self.world().roles.get_mut(arn).unwrap().trusted = false;
    }
    /// Ends the session of an access key.
    pub fn expire(&self, access_key: &str) {
        self.world().expired.insert(access_key.to_owned());
    }
    /// Opens a ciphertext as the owner may, whatever the key's state.
    pub fn open(&self, arn: &str, blob: &[u8], context: &Value) -> Option<Vec<u8>> {
        self.world().keys.get(arn)?.open(arn, blob, context).map(|(plain, _)| plain)
    }
}

/// An error in AWS's JSON form.
pub fn refuse(status: u16, code: &str, message: &str) -> Reply {
    Reply::json(status, &json!({"__type": code, "message": message}).to_string())
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    bytes
}

fn new_material(made: i64) -> Material {
    Material { made, id: random::<32>().iter().map(|b| format!("{b:02x}")).collect(), key: random() }
}

impl Key {
    /// Both calls are for the key's own account, and only for symmetric keys.
    fn rotation(&self, operation: &str, arn: &str, body: &Value, caller: &str) -> Reply {
        if caller.split(':').nth(4) != arn.split(':').nth(4) {
            let text = format!("User: {caller} is not authorized to perform: kms:{operation} on resource: {arn}");
            return refuse(400, "AccessDeniedException", &text);
        }
        let seconds = |at: i64| at as f64 / 1000.0;
        let last = self.materials.last().map_or(self.created, |m| m.made);
        if operation == "GetKeyRotationStatus" {
            let mut status = json!({"KeyId": arn, "KeyRotationEnabled": self.rotates});
            if self.rotates {
                status["RotationPeriodInDays"] = 365.into();
                status["NextRotationDate"] = seconds(last + 365 * DAY).into();
            }
            return Reply::json(200, &status.to_string());
        }
        // Two a page at most, so that a second page is met.
        let from: usize = body["Marker"].as_str().map_or(0, |m| m.parse().unwrap());
        let all: Vec<Value> = self
            .materials
            .iter()
            .skip(1)
            .map(|m| json!({"KeyId": arn, "RotationDate": seconds(m.made), "RotationType": "ON_DEMAND"}))
            .collect();
        let page: Vec<Value> = all.iter().skip(from).take(2).cloned().collect();
        let more = from + page.len() < all.len();
        let mut answer = json!({"Rotations": page, "Truncated": more});
        if more {
            answer["NextMarker"] = (from + 2).to_string().into();
        }
        Reply::json(200, &answer.to_string())
    }
    fn cipher(material: &Material) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &material.key).unwrap())
    }
    /// Key id's last 12 characters, material's first 8, nonce, sealed bytes.
    fn seal(&self, arn: &str, plain: &[u8], context: &Value) -> Vec<u8> {
        let material = self.materials.last().unwrap();
        let nonce: [u8; 12] = random();
        let mut sealed = plain.to_vec();
        Self::cipher(material)
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(bound(context)), &mut sealed)
            .unwrap();
        [&arn.as_bytes()[arn.len() - 12..], &material.id.as_bytes()[..8], &nonce, &sealed].concat()
    }
    fn open(&self, arn: &str, blob: &[u8], context: &Value) -> Option<(Vec<u8>, String)> {
        let (head, sealed) = (blob.get(..32)?, blob.get(32..)?);
        if head[..12] != arn.as_bytes()[arn.len() - 12..] {
            return None;
        }
        let material = self.materials.iter().find(|m| m.id.as_bytes()[..8] == head[12..20])?;
        let nonce = Nonce::try_assume_unique_for_key(&head[20..32]).unwrap();
        let mut opened = sealed.to_vec();
        let plain = Self::cipher(material).open_in_place(nonce, Aad::from(bound(context)), &mut opened).ok()?.to_vec();
        Some((plain, material.id.clone()))
    }
    /// Why a data call cannot be served in this state.
    fn refusal(&self, arn: &str) -> Option<Reply> {
        let state = |text: &str| Some(refuse(400, "KMSInvalidStateException", &format!("{arn} is {text}.")));
        match self.state {
            State::Enabled => None,
            State::Disabled => Some(refuse(400, "DisabledException", &format!("{arn} is disabled."))),
            State::PendingDeletion => state("pending deletion"),
            State::PendingImport => state("pending import"),
            State::Unavailable => state("unavailable"),
        }
    }
    fn metadata(&self, arn: &str) -> Value {
        let seconds = |ms: i64| ms as f64 / 1000.0;
        let mut metadata = json!({
            "AWSAccountId": arn.split(':').nth(4), "Arn": arn, "KeyId": arn.rsplit('/').next(), "CreationDate": seconds(self.created),
            "Enabled": self.state == State::Enabled, "KeyState": format!("{:?}", self.state), "KeyUsage": "ENCRYPT_DECRYPT", "KeyManager": "CUSTOMER",
            "Origin": if self.imported { "EXTERNAL" } else { "AWS_KMS" }, "MultiRegion": false, "KeySpec": "SYMMETRIC_DEFAULT",
            "CurrentKeyMaterialId": self.materials.last().unwrap().id,
        });
        if let Some(at) = self.deletion_at {
            metadata["DeletionDate"] = json!(seconds(at));
        }
        json!({ "KeyMetadata": metadata })
    }
}

/// The context in one order, whatever order it came in.
fn bound(context: &Value) -> String {
    let pairs: BTreeMap<String, String> = serde_json::from_value(context.clone()).unwrap_or_default();
    serde_json::to_string(&pairs).unwrap()
}

impl World {
    fn answer(&mut self, ask: &Ask) -> Reply {
        let operation = ask.operation();
        if let Some(at) = self.faults.iter().position(|f| f.operation.as_ref().is_none_or(|o| *o == operation) && f.left != Some(0)) {
            let fault = &mut self.faults[at];
            fault.left = fault.left.map(|n| n - 1);
            return fault.reply.clone();
        }
        let access_key = ask.scope(0);
        let Some(caller) = self.callers.get(&access_key).cloned() else {
            return refuse(400, "UnrecognizedClientException", "The security token included in the request is invalid.");
        };
        if self.expired.contains(&access_key) {
            return refuse(400, "ExpiredTokenException", "The security token included in the request is expired");
        }
        match operation.as_str() {
            "GetCallerIdentity" => identity(&caller),
            "AssumeRole" => self.assume(ask, &caller),
            "Encrypt" | "Decrypt" | "GenerateDataKey" | "DescribeKey" | "GetKeyRotationStatus" | "ListKeyRotations" => {
                self.kms(&operation, &ask.json(), &ask.scope(2), &caller)
            }
            other => refuse(400, "UnknownOperationException", &format!("no operation {other}")),
        }
    }

    fn assume(&mut self, ask: &Ask, caller: &str) -> Reply {
        let arn = ask.form("RoleArn").unwrap_or_default();
        let good = self.roles.get(&arn).is_some_and(|r| r.trusted && r.external_id == ask.form("ExternalId"));
        if !good {
            let text = format!("User: {caller} is not authorized to perform: sts:AssumeRole on resource: {arn}");
            return Reply::xml(
                403,
                &format!(
                    "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>{text}</Message></Error></ErrorResponse>"
                ),
            );
        }
        self.count += 1;
        let access_key = format!("ASIA{:012}", self.count);
        let session = format!("{}/cmek-watchdog", arn.replace(":iam:", ":sts:").replace(":role/", ":assumed-role/"));
        self.callers.insert(access_key.clone(), session);
        Reply::xml(
            200,
            &format!(
                "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>{access_key}</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
            ),
        )
    }

    fn kms(&self, operation: &str, body: &Value, region: &str, caller: &str) -> Reply {
        let named = body["KeyId"].as_str().unwrap_or_default();
        let is_alias = named.contains(":alias/");
        let arn = if is_alias { self.aliases.get(named).map_or("", String::as_str) } else { named };
        let found = self.keys.get(arn).filter(|_| arn.split(':').nth(3) == Some(region));
        let Some(key) = found else {
            let what = if is_alias { format!("Alias {named} is not found.") } else { format!("Key '{named}' does not exist") };
            return refuse(400, "NotFoundException", &what);
        };
        if let Some(why) = key.denied.get(operation) {
            let text = format!("User: {caller} is not authorized to perform: kms:{operation} on resource: {arn} {why}");
            return refuse(400, "AccessDeniedException", &text);
        }
        if matches!(operation, "GetKeyRotationStatus" | "ListKeyRotations") {
            return key.rotation(operation, arn, body, caller);
        }
        if operation == "DescribeKey" {
            return Reply::json(200, &key.metadata(arn).to_string());
        }
        if let Some(refusal) = key.refusal(arn) {
            return refusal;
        }
        let bytes = |field: &str| BASE64_STANDARD.decode(body[field].as_str().unwrap_or_default()).unwrap();
        let context = &body["EncryptionContext"];
        let answer = match operation {
            "Encrypt" => json!({"KeyId": arn, "CiphertextBlob": BASE64_STANDARD.encode(key.seal(arn, &bytes("Plaintext"), context))}),
            "GenerateDataKey" => {
                let plain: [u8; 32] = random();
                json!({
                    "KeyId": arn, "Plaintext": BASE64_STANDARD.encode(plain), "KeyMaterialId": key.materials.last().unwrap().id,
                    "CiphertextBlob": BASE64_STANDARD.encode(key.seal(arn, &plain, context)),
                })
            }
            _ => {
                let blob = bytes("CiphertextBlob");
                match key.open(arn, &blob, context) {
                    Some((plain, id)) => json!({"KeyId": arn, "Plaintext": BASE64_STANDARD.encode(plain), "KeyMaterialId": id}),
                    None if self.keys.iter().any(|(a, k)| a != arn && k.open(a, &blob, context).is_some()) => {
                        return refuse(
                            400,
                            "IncorrectKeyException",
                            "The key ID in the request does not identify a CMK that can perform this operation.",
                        );
                    }
                    None => return Reply::json(400, r#"{"__type":"InvalidCiphertextException"}"#),
                }
            }
        };
        Reply::json(200, &answer.to_string())
    }
}

fn identity(caller: &str) -> Reply {
    let account = caller.split(':').nth(4).unwrap();
    let text = format!(
        "<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>{caller}</Arn><UserId>u</UserId><Account>{account}</Account></GetCallerIdentityResult></GetCallerIdentityResponse>"
    );
    Reply::xml(200, &text)
}
