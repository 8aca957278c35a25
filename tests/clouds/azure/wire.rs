//! The REST shapes of Key Vault's key operations and of the sign-in service.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cmek_watchdog::time::Wall;
use serde_json::{Value, json};

use super::vault::{Action, Dates, Key, Kind, Refused, Vault, Version};
use super::{AuditRow, Fault, World};
use crate::https::{Asked, Reply};

const OBJECT: &str = "22222222-2222-2222-2222-222222222222";
const SIGN_IN: &str = "login.microsoftonline.com";

/// Who calls.
struct Caller {
    app: String,
    tenant: String,
    audience: String,
}

pub fn answer(world: &mut World, asked: &Asked) -> Reply {
    if asked.host == SIGN_IN {
        return sign_in(world, asked);
    }
    world.requests += 1;
    let request_id = format!("00000000-0000-4000-8000-{:012x}", world.requests);
    let date = azure_core::time::OffsetDateTime::from_unix_timestamp(world.now.0.div_euclid(1000)).unwrap();
    let reply = vault_call(world, asked, &request_id);
    reply
        .with("x-ms-request-id", &request_id)
        .with("x-ms-keyvault-service-version", "1.9.3019.1")
        .with("date", &azure_core::time::to_rfc7231(&date))
}

fn form(body: &[u8]) -> BTreeMap<String, String> {
    url::form_urlencoded::parse(body).into_owned().collect()
}

fn sign_in(world: &World, asked: &Asked) -> Reply {
    let fields = form(&asked.body);
    let field = |name: &str| fields.get(name).cloned().unwrap_or_default();
    let app = field("client_id");
    if let Some(body) = world.sign_in_refusals.get(&app) {
        return Reply::json(401, body);
    }
    let tenant = asked.path.split('/').nth(1).unwrap_or_default();
    let audience = field("scope").trim_end_matches("/.default").to_owned();
    let claims = json!({
        "aud": audience, "iss": format!("https://sts.windows.net/{tenant}/"), "appid": app, "oid": OBJECT, "tid": tenant,
        "azpacr": "1", "ver": "1.0",
    });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let token = format!("{}.{}.c2lnbmF0dXJl", part(&json!({"alg": "RS256", "typ": "JWT"})), part(&claims));
    Reply::json(200, &json!({"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": token}))
}

fn caller(world: &World, token: &str) -> Option<Caller> {
    if let Some(app) = world.static_tokens.get(token) {
        return Some(Caller { app: app.clone(), tenant: String::new(), audience: String::new() });
    }
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&payload).ok()?;
    let text = |name: &str| claims[name].as_str().map(str::to_owned);
    Some(Caller { app: text("appid")?, tenant: text("tid")?, audience: text("aud")? })
}

fn refusal(refused: &Refused) -> Reply {
    let mut error = json!({"code": refused.code, "message": refused.message});
    if let Some(inner) = refused.inner {
        error["innererror"] = json!({"code": inner});
    }
    let reply = Reply::json(refused.status, &json!({"error": error}));
    if refused.status == 429 { reply.with("Retry-After", "7") } else { reply }
}

fn unauthorized(vault: &Vault, message: &str) -> Reply {
    let resource = vault.host.split_once('.').map_or("vault.azure.net", |(_, rest)| rest);
    let challenge = format!("Bearer authorization=\"https://{SIGN_IN}/{}\", resource=\"https://{resource}\"", vault.tenant);
    let body = json!({"error": {"code": "Unauthorized", "message": message}});
    Reply::json(401, &body).with("WWW-Authenticate", &challenge)
}

/// Signed in for this vault, or the answer that says why not.
fn authenticate(world: &World, vault: &Vault, asked: &Asked) -> Result<Caller, Reply> {
    let Some(token) = asked.header("authorization").and_then(|value| value.strip_prefix("Bearer ")) else {
        return Err(unauthorized(vault, "AKV10000: Request is missing a Bearer or PoP token."));
    };
    let Some(caller) = caller(world, token) else {
        return Err(unauthorized(vault, "AKV10009: Error validating token."));
    };
    let expected = format!("https://{}", vault.host.split_once('.').map_or("", |(_, rest)| rest));
    if !caller.audience.is_empty() && caller.audience != expected {
        return Err(unauthorized(vault, &format!("AKV10022: Invalid audience. Expected {expected}, found: {}.", caller.audience)));
    }
    if !caller.tenant.is_empty() && caller.tenant != vault.tenant {
        let (own, found) = (&vault.tenant, &caller.tenant);
        let text =
            format!("AKV10032: Invalid issuer. Expected one of https://sts.windows.net/{own}/, found https://sts.windows.net/{found}/.");
        return Err(unauthorized(vault, &text));
    }
    Ok(caller)
}

/// What a request is about: action, key, version.
fn route<'a>(method: &str, path: &'a [&'a str]) -> Option<(Action, &'a str, &'a str)> {
    Some(match (method, path) {
        ("GET", ["keys", name] | ["keys", name, "versions" | "rotationpolicy"] | ["deletedkeys", name]) => (Action::Read, *name, ""),
        ("GET", ["keys", name, version]) => (Action::Read, *name, *version),
        ("POST", ["keys", name, "create"]) => (Action::Create, *name, ""),
        ("POST", ["keys", name, "rotate"]) => (Action::Rotate, *name, ""),
        ("POST", ["keys", name, operation]) => (data_action(operation)?, *name, ""),
        ("POST", ["keys", name, version, operation]) => (data_action(operation)?, *name, *version),
        ("PATCH", ["keys", name]) => (Action::Update, *name, ""),
        ("PATCH", ["keys", name, version]) => (Action::Update, *name, *version),
        ("DELETE", ["keys", name]) => (Action::Delete, *name, ""),
        ("POST", ["deletedkeys", name, "recover"]) => (Action::Recover, *name, ""),
        ("DELETE", ["deletedkeys", name]) => (Action::Purge, *name, ""),
        _ => return None,
    })
}

fn data_action(operation: &str) -> Option<Action> {
    match operation {
        "wrapkey" => Some(Action::Wrap),
        "unwrapkey" => Some(Action::Unwrap),
        "encrypt" => Some(Action::Encrypt),
        "decrypt" => Some(Action::Decrypt),
        _ => None,
    }
}

fn vault_call(world: &mut World, asked: &Asked, request_id: &str) -> Reply {
    let host = if world.vaults.contains_key(&asked.host) { asked.host.clone() } else { world.by_address.clone() };
    let Some(vault) = world.vaults.get(&host) else { return Reply::Cut };
    let signed_in = authenticate(world, vault, asked);
    let path: Vec<&str> = asked.path.split('/').filter(|part| !part.is_empty()).collect();
    let Some((action, name, version)) = route(&asked.method, &path) else {
        return Reply::Http { status: 404, headers: vec![("content-type".into(), "text/html".into())], body: b"<html>404</html>".to_vec() };
    };
    let mut app = String::new();
    let reply = match signed_in {
        Err(reply) => reply,
        Ok(caller) => {
            app.clone_from(&caller.app);
            match take_fault(world, action) {
                Some(fault) => faulty(fault),
                None => permitted(world, &host, asked, &path, action, name, version, &caller.app),
            }
        }
    };
    if let Reply::Http { status, body, .. } = &reply {
        let json: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        let code = json["error"]["innererror"]["code"].as_str().or(json["error"]["code"].as_str()).unwrap_or_default();
        world.audit.push(AuditRow {
            time: world.now,
            operation: action.words().2,
            vault: host,
            key: name.to_owned(),
            version: version.to_owned(),
            app,
            status: *status,
            code: code.to_owned(),
            request_id: request_id.to_owned(),
            client_request_id: asked.header("x-ms-client-request-id").unwrap_or_default().to_owned(),
            user_agent: asked.header("user-agent").unwrap_or_default().to_owned(),
        });
    }
    reply
}

fn take_fault(world: &mut World, action: Action) -> Option<Fault> {
    let at = world.faults.iter().position(|(for_action, _)| for_action.is_none_or(|one| one == action))?;
    world.faults.remove(at).map(|(_, fault)| fault)
}

fn faulty(fault: Fault) -> Reply {
    match fault {
        Fault::Refuse(status, code, message) => refusal(&Refused { status, code, inner: None, message: message.to_owned() }),
        Fault::Page(status) => {
            let page = format!("<html><head><title>{status}</title></head><body><h1>{status}</h1></body></html>");
            Reply::Http { status, headers: vec![("content-type".into(), "text/html".into())], body: page.into_bytes() }
        }
        Fault::Hang => Reply::Hang,
        Fault::Cut => Reply::Cut,
    }
}

#[allow(clippy::too_many_arguments, reason = "one request, taken apart")]
fn permitted(world: &mut World, host: &str, asked: &Asked, path: &[&str], action: Action, name: &str, version: &str, app: &str) -> Reply {
    let now = world.now;
    let Some(vault) = world.vaults.get_mut(host) else { return Reply::Cut };
    let done = vault.admit(app, OBJECT, name, action, now).and_then(|()| perform(vault, asked, path, action, name, version, now));
    done.unwrap_or_else(|refused| refusal(&refused))
}

fn perform(
    vault: &mut Vault,
    asked: &Asked,
    path: &[&str],
    action: Action,
    name: &str,
    version: &str,
    now: Wall,
) -> Result<Reply, Refused> {
    match action {
        Action::Read if path[0] == "deletedkeys" => vault.find_deleted(name).map(|_| Reply::json(200, &deleted_json(vault, name))),
        Action::Read if path.get(2) == Some(&"versions") => versions_page(vault, asked, name),
        Action::Read if path.get(2) == Some(&"rotationpolicy") => {
            let (key, _) = vault.find(name, "")?;
            let notify = json!({"trigger": {"timeBeforeExpiry": "P30D"}, "action": {"type": "Notify"}});
            let rotate = key.rotates.map(|(trigger, duration)| json!({"trigger": {trigger: duration}, "action": {"type": "Rotate"}}));
            let actions: Vec<Value> = [notify].into_iter().chain(rotate).collect();
            let id = format!("https://{}/keys/{name}/rotationpolicy", vault.name());
            Ok(Reply::json(200, &json!({"id": id, "lifetimeActions": actions, "attributes": {"created": 1, "updated": 1}})))
        }
        Action::Read => bundle(vault, name, version),
        Action::Wrap | Action::Unwrap | Action::Encrypt | Action::Decrypt => {
            let body = asked.json();
            let value = URL_SAFE_NO_PAD.decode(body["value"].as_str().unwrap_or_default()).unwrap_or_default();
            let algorithm = body["alg"].as_str().unwrap_or_default();
            let (id, out) = vault.crypt(name, version, action, algorithm, &value, now)?;
            Ok(Reply::json(200, &json!({"kid": kid(vault, name, &id), "value": URL_SAFE_NO_PAD.encode(out)})))
        }
        Action::Create => {
            vault.create(name, now)?;
            bundle(vault, name, "")
        }
        Action::Rotate => {
            vault.rotate(name, now)?;
            bundle(vault, name, "")
        }
        Action::Update => {
            let body = asked.json();
            if let Some(enabled) = body["attributes"]["enabled"].as_bool() {
                vault.find(name, version)?;
                vault.set_enabled(name, (!version.is_empty()).then_some(version), enabled, now)?;
            }
            let time = |field: &str| body["attributes"][field].as_i64().map(|seconds| Wall(seconds * 1000));
            if time("exp").is_some() || time("nbf").is_some() {
                vault.set_dates(name, Dates { not_before: time("nbf"), expires: time("exp") }, now)?;
            }
            bundle(vault, name, version)
        }
        Action::Delete => {
            vault.delete(name, now)?;
            Ok(Reply::json(200, &deleted_json(vault, name)))
        }
        Action::Recover => {
            vault.recover(name)?;
            bundle(vault, name, "")
        }
        Action::Purge => {
            vault.purge(name)?;
            Ok(Reply::Http { status: 204, headers: Vec::new(), body: Vec::new() })
        }
    }
}

fn kid(vault: &Vault, name: &str, version: &str) -> String {
    format!("https://{}/keys/{name}/{version}", vault.host)
}

fn attributes(vault: &Vault, version: &Version) -> Value {
    let mut all = json!({
        "enabled": version.enabled, "created": version.created.0 / 1000, "updated": version.updated.0 / 1000,
        "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": vault.recoverable.0 / 86_400_000, "exportable": false,
    });
    for (field, time) in [("exp", version.dates.expires), ("nbf", version.dates.not_before)] {
        if let Some(time) = time {
            all[field] = json!(time.0 / 1000);
        }
    }
    all
}

fn jwk(vault: &Vault, name: &str, key: &Key, version: &Version) -> Value {
    json!({
        "kid": kid(vault, name, &version.id), "kty": if vault.kind == Kind::ManagedHsm { "RSA-HSM" } else { "RSA" },
        "key_ops": key.operations, "n": URL_SAFE_NO_PAD.encode(&version.rsa.n), "e": URL_SAFE_NO_PAD.encode(&version.rsa.e),
    })
}

fn bundle(vault: &Vault, name: &str, version: &str) -> Result<Reply, Refused> {
    let (key, one) = vault.find(name, version)?;
    Ok(Reply::json(200, &json!({"key": jwk(vault, name, key, one), "attributes": attributes(vault, one)})))
}

fn deleted_json(vault: &Vault, name: &str) -> Value {
    let Some(deleted) = vault.deleted.get(name) else { return Value::Null };
    let Some(one) = deleted.key.version("") else { return Value::Null };
    json!({
        "recoveryId": format!("https://{}/deletedkeys/{name}", vault.host),
        "deletedDate": deleted.at.0 / 1000, "scheduledPurgeDate": deleted.purge_at.0 / 1000,
        "key": jwk(vault, name, &deleted.key, one), "attributes": attributes(vault, one),
    })
}

/// Pages of `maxresults`, in no order of time (by version id, newest last or not).
fn versions_page(vault: &Vault, asked: &Asked, name: &str) -> Result<Reply, Refused> {
    let (key, _) = vault.find(name, "")?;
    let query = form(asked.query.as_bytes());
    let number = |field: &str, otherwise: usize| query.get(field).and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    let (size, skip) = (number("maxresults", 25).clamp(1, 25), number("$skiptoken", 0));
    let row = |version: &Version| json!({"kid": kid(vault, name, &version.id), "attributes": attributes(vault, version)});
    let page: Vec<Value> = key.versions.iter().skip(skip).take(size).map(row).collect();
    let next = (skip + size < key.versions.len()).then(|| {
        let port = asked.header("host").and_then(|host| host.split_once(':')).map_or(String::new(), |(_, port)| format!(":{port}"));
        format!("https://{}{port}/keys/{name}/versions?maxresults={size}&$skiptoken={}", asked.host, skip + size)
    });
    Ok(Reply::json(200, &json!({"value": page, "nextLink": next})))
}
