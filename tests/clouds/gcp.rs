//! A fake of Google Cloud at wire level: Cloud KMS and Cloud Logging (REST), the token endpoints and
//! the metadata server. Refusals have the shapes that Google documents; the official Python client is
//! the referee of that. Permissions are all granted until one is denied.
#![allow(dead_code, reason = "shared by several test binaries, none of which uses all of it")]

#[path = "gcp/keys.rs"]
pub mod keys;
#[path = "gcp/logging.rs"]
pub mod logging;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cmek_watchdog::time::Wall;
use serde_json::{Value, json};

use keys::{Keys, Outcome, Status};
use logging::{Act, Log};

/// 2026-11-25T08:00:00Z
const START: Wall = Wall(1_795_593_600_000);
/// The service account that the metadata server stands for.
pub const MACHINE: &str = "machine@watchdog-prod.iam.gserviceaccount.com";

/// What a request told about its sender.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mark {
    pub method: String,
    pub path: String,
    pub principal: String,
    pub user_agent: String,
    pub reason: String,
    pub aad: Option<String>,
}

/// A fault put in the way of requests whose path has the text.
#[derive(Clone, Debug)]
pub struct Fault {
    pub path: String,
    pub times: u32,
    pub what: Trouble,
}

#[derive(Clone, Debug)]
pub enum Trouble {
    Answer {
        status: u16,
        body: String,
    },
    Delay(Duration),
    /// The answer breaks off in the middle.
    Reset,
}

pub struct World {
    pub keys: Keys,
    pub log: Log,
    /// Principal, permission, resource; `*` stands for any.
    denied: BTreeSet<(String, String, String)>,
    faults: Vec<Fault>,
    marks: Vec<Mark>,
    made: u32,
}

/// A running fake. Stops with the runtime that it was started on.
#[derive(Clone)]
pub struct Gcp {
    pub endpoint: String,
    world: Arc<Mutex<World>>,
}

impl Gcp {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let world =
            World { keys: Keys::new(START), log: Log::default(), denied: BTreeSet::new(), faults: Vec::new(), marks: Vec::new(), made: 0 };
        let world = Arc::new(Mutex::new(world));
        let app = axum::Router::new().fallback(serve).with_state(Arc::clone(&world));
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { endpoint, world }
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// A new key with one enabled version.
    pub fn make_key(&self) -> String {
        let mut world = self.world();
        world.made += 1;
        let ring = format!("projects/acme-keys/locations/us-east1/keyRings/cmek-{}", world.made);
        let name = format!("{ring}/cryptoKeys/ws-key");
        world.keys.create_ring(&ring).unwrap();
        world.keys.create_key(&name, &json!({"purpose": "ENCRYPT_DECRYPT"})).unwrap();
        name
    }

    pub fn deny(&self, principal: &str, permission: &str, resource: &str) {
        self.world().denied.insert((principal.to_owned(), permission.to_owned(), resource.to_owned()));
    }
    pub fn allow(&self, principal: &str, permission: &str, resource: &str) {
        self.world().denied.remove(&(principal.to_owned(), permission.to_owned(), resource.to_owned()));
    }
    pub fn fault(&self, path: &str, times: u32, what: Trouble) {
        self.world().faults.push(Fault { path: path.to_owned(), times, what });
    }
    pub fn advance(&self, by: Duration) {
        self.world().keys.advance(i64::try_from(by.as_millis()).unwrap());
    }
    pub fn marks(&self) -> Vec<Mark> {
        self.world().marks.clone()
    }
}

impl World {
    fn check(&self, principal: &str, permission: &str, resource: &str) -> Outcome<()> {
        let fits = |rule: &str, found: &str| rule == "*" || rule == found;
        // A rule on a key holds for its versions too.
        let covers = |rule: &str| rule == "*" || resource == rule || resource.starts_with(&format!("{rule}/"));
        let denied = self.denied.iter().any(|(who, what, on)| fits(who, principal) && fits(what, permission) && covers(on));
        let domain = if permission.starts_with("iam.") { "iam.googleapis.com" } else { "cloudkms.googleapis.com" };
        if denied { Err(Status::denied(permission, resource, domain)) } else { Ok(()) }
    }

    fn next_trouble(&mut self, path: &str) -> Option<Trouble> {
        let fault = self.faults.iter_mut().find(|fault| fault.times > 0 && path.contains(&fault.path))?;
        fault.times -= 1;
        Some(fault.what.clone())
    }
}

async fn serve(State(world): State<Arc<Mutex<World>>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let path = uri.path().trim_start_matches('/').to_owned();
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    let principal = text("authorization").strip_prefix("Bearer principal:").unwrap_or("anonymous").to_owned();
    let json: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let query: BTreeMap<String, String> = url::form_urlencoded::parse(uri.query().unwrap_or("").as_bytes()).into_owned().collect();
    let aad = json["additionalAuthenticatedData"].as_str().and_then(|text| decode(text).ok());
    let mark = Mark {
        method: method.to_string(),
        path: path.clone(),
        principal,
        user_agent: text("user-agent"),
        reason: text("x-goog-request-reason"),
        aad: aad.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
    };
    let trouble = {
        let mut world = world.lock().unwrap();
        world.marks.push(mark.clone());
        world.next_trouble(&path)
    };
    match trouble {
        Some(Trouble::Answer { status, body }) => {
            return (StatusCode::from_u16(status).unwrap(), [("content-type", "application/json")], body).into_response();
        }
        Some(Trouble::Delay(delay)) => tokio::time::sleep(delay).await,
        Some(Trouble::Reset) => {
            let broken = futures_util::stream::iter([Ok(Bytes::from_static(b"{")), Err(std::io::Error::other("cut"))]);
            return Response::new(Body::from_stream(broken));
        }
        None => {}
    }
    let mut world = world.lock().unwrap();
    let outcome = world.route(&method, &path, &query, &json, &mark);
    match outcome {
        Ok(Value::String(plain)) => plain.into_response(),
        Ok(value) => axum::Json(value).into_response(),
        Err(status) => (StatusCode::from_u16(status.http).unwrap(), axum::Json(status.body())).into_response(),
    }
}

/// Clients send either alphabet.
fn decode(text: &str) -> Outcome<Vec<u8>> {
    BASE64_STANDARD.decode(text.replace('-', "+").replace('_', "/")).map_err(|_| Status::invalid("Invalid value (Base64)"))
}

/// A field of bytes, checked against its checksum if one was sent.
fn bytes_of(body: &Value, field: &str, snake: &str) -> Outcome<(Vec<u8>, bool)> {
    let bytes = decode(body[field].as_str().unwrap_or(""))?;
    let sent = match &body[format!("{field}Crc32c")] {
        Value::String(text) => text.parse::<u32>().ok(),
        Value::Number(number) => number.as_u64().and_then(|number| u32::try_from(number).ok()),
        _ => return Ok((bytes, false)),
    };
    if sent != Some(crc32c::crc32c(&bytes)) {
        let text = format!("The checksum in field {snake}_crc32c did not match the data in field {snake}.");
        return Err(Status::invalid(text));
    }
    Ok((bytes, true))
}

impl World {
    fn route(&mut self, method: &Method, path: &str, query: &BTreeMap<String, String>, body: &Value, mark: &Mark) -> Outcome<Value> {
        if let Some(found) = self.identity(path, body, &mark.principal) {
            return found;
        }
        match path {
            "v2/entries:list" => return self.log.list(body),
            "v2/entries:write" => return self.log.write(self.keys.now, body),
            _ => {}
        }
        if let Some(order) = path.strip_prefix("_fake/") {
            return self.control(order, body);
        }
        let name = path.strip_prefix("v1/").ok_or_else(|| Status::new(404, "NOT_FOUND", "Method not found."))?;
        let (resource, verb) = name.rsplit_once(':').unwrap_or((name, ""));
        let (permission, logged) = rights(method, resource, verb).ok_or_else(|| Status::new(501, "UNIMPLEMENTED", "Method not found."))?;
        let outcome = match self.check(&mark.principal, permission, resource) {
            Ok(()) => self.act(method, resource, verb, query, body),
            Err(denied) => Err(denied),
        };
        let act = Act {
            method: logged,
            resource,
            principal: &mark.principal,
            user_agent: &mark.user_agent,
            reason: &mark.reason,
            refused: outcome.as_ref().err(),
            data_access: matches!(verb, "encrypt" | "decrypt") || method == Method::GET,
        };
        self.log.record(self.keys.now, &act);
        outcome
    }

    fn act(&mut self, method: &Method, name: &str, verb: &str, query: &BTreeMap<String, String>, body: &Value) -> Outcome<Value> {
        let id = |field: &str| query.get(field).cloned().ok_or_else(|| Status::invalid(format!("{field} is required")));
        let collection = name.rsplit('/').next().unwrap_or("");
        match (method.as_str(), verb, collection) {
            ("POST", "encrypt", _) => self.encrypt(name, body),
            ("POST", "decrypt", _) => self.decrypt(name, body),
            ("POST", "destroy", _) => self.keys.destroy(name),
            ("POST", "restore", _) => self.keys.restore(name),
            ("POST", "updatePrimaryVersion", _) => self.keys.set_primary(name, body["cryptoKeyVersionId"].as_str().unwrap_or("")),
            ("POST", "", "keyRings") => self.keys.create_ring(&format!("{name}/{}", id("keyRingId")?)),
            ("POST", "", "cryptoKeys") => self.keys.create_key(&format!("{name}/{}", id("cryptoKeyId")?), body),
            ("POST", "", "cryptoKeyVersions") => self.keys.create_version(name.trim_end_matches("/cryptoKeyVersions")),
            ("PATCH", "", _) if name.contains("/cryptoKeyVersions/") => self.keys.set_state(name, &body["state"]),
            ("GET", "", "cryptoKeyVersions") => self.list(name.trim_end_matches("/cryptoKeyVersions"), query),
            ("GET", "", _) if name.contains("/cryptoKeyVersions/") => self.keys.show_version(name),
            ("GET", "", _) if name.contains("/cryptoKeys/") => self.keys.show_key(name),
            _ => Err(Status::new(501, "UNIMPLEMENTED", "Method not found.")),
        }
    }

    fn encrypt(&self, name: &str, body: &Value) -> Outcome<Value> {
        let (plain, checked) = bytes_of(body, "plaintext", "plaintext")?;
        let (aad, aad_checked) = bytes_of(body, "additionalAuthenticatedData", "additional_authenticated_data")?;
        let (version, sealed) = self.keys.encrypt(name, &plain, &aad)?;
        let mut answer = json!({
            "name": version, "ciphertext": BASE64_STANDARD.encode(&sealed), "ciphertextCrc32c": crc32c::crc32c(&sealed).to_string(),
            "protectionLevel": "SOFTWARE",
        });
        // proto3 JSON leaves false out.
        for (field, checked) in [("verifiedPlaintextCrc32c", checked), ("verifiedAdditionalAuthenticatedDataCrc32c", aad_checked)] {
            if checked {
                answer[field] = json!(true);
            }
        }
        Ok(answer)
    }

    fn decrypt(&self, name: &str, body: &Value) -> Outcome<Value> {
        let (sealed, _) = bytes_of(body, "ciphertext", "ciphertext")?;
        let (aad, _) = bytes_of(body, "additionalAuthenticatedData", "additional_authenticated_data")?;
        let (plain, primary) = self.keys.decrypt(name, &sealed, &aad)?;
        let mut answer = json!({
            "plaintext": BASE64_STANDARD.encode(&plain), "plaintextCrc32c": crc32c::crc32c(&plain).to_string(), "protectionLevel": "SOFTWARE",
        });
        if primary {
            answer["usedPrimary"] = json!(true);
        }
        Ok(answer)
    }

    fn list(&self, name: &str, query: &BTreeMap<String, String>) -> Outcome<Value> {
        let names = self.keys.version_names(name)?;
        let number =
            |field: &str, default: usize| query.get(field).and_then(|text| text.parse().ok()).filter(|n| *n > 0).unwrap_or(default);
        let (from, size) = (number("pageToken", 0), number("pageSize", 100).min(1000));
        let page = names.iter().skip(from).take(size).map(|name| self.keys.show_version(name)).collect::<Outcome<Vec<_>>>()?;
        let mut answer = json!({"cryptoKeyVersions": page, "totalSize": names.len()});
        if from + size < names.len() {
            answer["nextPageToken"] = json!((from + size).to_string());
        }
        Ok(answer)
    }

    /// Token endpoints and the metadata server; `None` if the path is none of theirs.
    fn identity(&self, path: &str, body: &Value, principal: &str) -> Option<Outcome<Value>> {
        let machine = "computeMetadata/v1/instance/service-accounts/default";
        let token = |who: &str| json!({"access_token": format!("principal:{who}"), "expires_in": 3600, "token_type": "Bearer"});
        if path == "token" {
            return Some(Ok(token(body["client_id"].as_str().unwrap_or("nobody"))));
        }
        if let Some(rest) = path.strip_prefix(machine) {
            return Some(match rest {
                "/token" => Ok(token(MACHINE)),
                "/email" => Ok(json!(MACHINE)),
                _ => Err(Status::new(404, "NOT_FOUND", "not found")),
            });
        }
        let target = path.strip_prefix("v1/projects/-/serviceAccounts/")?.strip_suffix(":generateAccessToken")?;
        let resource = format!("projects/-/serviceAccounts/{target}");
        let granted = self.check(principal, "iam.serviceAccounts.getAccessToken", &resource);
        Some(granted.map(|()| json!({"accessToken": format!("principal:{target}"), "expireTime": "2099-01-01T00:00:00Z"})))
    }

    /// Hands for those who reach the fake by HTTP only.
    fn control(&mut self, order: &str, body: &Value) -> Outcome<Value> {
        let text = |field: &str| body[field].as_str().unwrap_or("*").to_owned();
        let rule = (text("principal"), text("permission"), text("resource"));
        match order {
            "deny" => drop(self.denied.insert(rule)),
            "allow" => drop(self.denied.remove(&rule)),
            "advance" => self.keys.advance(body["seconds"].as_i64().unwrap_or(0) * 1000),
            "fault" => self.faults.push(Fault {
                path: body["path"].as_str().unwrap_or("").to_owned(),
                times: 1,
                what: Trouble::Answer {
                    status: u16::try_from(body["status"].as_u64().unwrap_or(500)).unwrap_or(500),
                    body: body["body"].to_string(),
                },
            }),
            _ => return Err(Status::new(404, "NOT_FOUND", "no such order")),
        }
        Ok(json!({}))
    }
}

/// The right that a call needs and the name under which it is logged.
fn rights(method: &Method, name: &str, verb: &str) -> Option<(&'static str, &'static str)> {
    let collection = name.rsplit('/').next().unwrap_or("");
    Some(match (method.as_str(), verb, collection) {
        ("POST", "encrypt", _) => ("cloudkms.cryptoKeyVersions.useToEncrypt", "Encrypt"),
        ("POST", "decrypt", _) => ("cloudkms.cryptoKeyVersions.useToDecrypt", "Decrypt"),
        ("POST", "destroy", _) => ("cloudkms.cryptoKeyVersions.destroy", "DestroyCryptoKeyVersion"),
        ("POST", "restore", _) => ("cloudkms.cryptoKeyVersions.restore", "RestoreCryptoKeyVersion"),
        ("POST", "updatePrimaryVersion", _) => ("cloudkms.cryptoKeys.update", "UpdateCryptoKeyPrimaryVersion"),
        ("POST", "", "keyRings") => ("cloudkms.keyRings.create", "CreateKeyRing"),
        ("POST", "", "cryptoKeys") => ("cloudkms.cryptoKeys.create", "CreateCryptoKey"),
        ("POST", "", "cryptoKeyVersions") => ("cloudkms.cryptoKeyVersions.create", "CreateCryptoKeyVersion"),
        ("PATCH", "", _) => ("cloudkms.cryptoKeyVersions.update", "UpdateCryptoKeyVersion"),
        ("GET", "", "cryptoKeyVersions") => ("cloudkms.cryptoKeyVersions.list", "ListCryptoKeyVersions"),
        ("GET", "", _) if name.contains("/cryptoKeyVersions/") => ("cloudkms.cryptoKeyVersions.get", "GetCryptoKeyVersion"),
        ("GET", "", _) => ("cloudkms.cryptoKeys.get", "GetCryptoKey"),
        _ => return None,
    })
}
