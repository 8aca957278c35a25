//! outside
//! Commands that only the running daemon can carry out, over its control socket. If it is not there,
//! nothing is done and that is said; an order is never left lying for later.

use std::path::{Path, PathBuf};

use axum::http::Method;
use serde_json::{Value, json};

use super::exit::{CliError, REVOKED};
use super::show::{self, Shown, row, table};
use super::{BrakeAct, Command, KeyAct, NoticesAct, ReceiversAct, VaultAct, VersionAct};
use crate::config::load::{self, LoadError};
use crate::http::client::{self, ClientError, segment};
use crate::http::socket;
use crate::run::LastGood;
use crate::time::Span;

const LONGEST_OVERRIDE: Span = Span::from_hours(24);

/// One question to the daemon.
struct Request {
    method: Method,
    path: String,
    body: Option<Value>,
    /// What is true when the daemon never got it.
    otherwise: &'static str,
    /// What a good answer means, in a few words.
    done: String,
}

/// # Errors
/// If the daemon cannot be reached, refuses, or the configuration that names its socket is faulty.
pub async fn ask(config: &Path, command: &Command) -> Result<Shown, CliError> {
    let request = request(command)?;
    let (run_dir, faulty) = run_dir(config)?;
    let answer = client::call(&run_dir.join(socket::NAME), request.method, &request.path, request.body).await;
    let faulty = match (&answer, faulty) {
        // Nobody is there to act on an older configuration: the file's own faults are the news.
        (Err(ClientError::Unreachable { .. }), Some(faulty)) => return Err(faulty.into()),
        (_, faulty) => faulty.filter(|_| !matches!(command, Command::Reload)),
    };
    if let Some(faulty) = faulty {
        show::to_stderr(&[format!("the configuration file is faulty; the running daemon does not use it:\n{faulty}")]);
    }
    let (status, body) = answer.map_err(|source| {
        let consequence = match &source {
            ClientError::Unreachable { .. } | ClientError::Malformed(_) => request.otherwise,
            ClientError::Broken(_) | ClientError::Late | ClientError::Unreadable | ClientError::NotJson(_) => UNCERTAIN,
        };
        CliError::Client { source, consequence }
    })?;
    if status >= 400 {
        return Err(CliError::Problem { status, body });
    }
    match command {
        Command::Status { exit_code } => shown_status(status, body, *exit_code),
        Command::Lock { .. } | Command::Unlock { .. } => Ok(shown_workspace(body)),
        Command::Drill { target, .. } => {
            let text: String = match target {
                Some(_) => drill_text(&body),
                None => items(&body, "items").iter().map(drill_text).collect(),
            };
            Ok(Shown::good(body, if text.is_empty() { "no drills\n".to_owned() } else { text }))
        }
        Command::Notices { act: NoticesAct::List { .. } } => Ok(shown_notices(body)),
        Command::Brake { .. } | Command::Notices { act: NoticesAct::Resend { .. } } => {
            let released = body.get("released").and_then(Value::as_u64).unwrap_or(0);
            Ok(Shown::good(body, format!("{}: {released}\n", request.done)))
        }
        Command::Vault { act: VaultAct::Status } => Ok(shown_vault(body)),
        Command::Vault { act: VaultAct::Rewrap { .. } } => {
            let (failed, left) = (number(&body, "failed"), number(&body, "left"));
            let text = format!("{}: {}, failed {failed}, left {left}\n", request.done, number(&body, "rewrapped"));
            Ok(Shown::good(body, text))
        }
        _ => Ok(Shown::good(body, format!("{}\n", request.done))),
    }
}

/// Where the daemon's socket lies. A mistake in the file must not keep an operator from locking: the
/// folder is then read on its own, or from the configuration that the daemon kept as the last good one.
fn run_dir(config: &Path) -> Result<(PathBuf, Option<LoadError>), CliError> {
    match load::load(config) {
        Ok(loaded) => Ok((PathBuf::from(&loaded.config.server.run_dir), None)),
        Err(faulty) => {
            let last_good = || LastGood::beside(config).load().map(|loaded| PathBuf::from(&loaded.config.server.run_dir));
            match load::run_dir(config).or_else(last_good) {
                Some(run_dir) => Ok((run_dir, Some(faulty))),
                None => Err(faulty.into()),
            }
        }
    }
}

const UNCERTAIN: &str = "; it may have been carried out: look at `status` before asking again";
const NO_LOCK: &str = "; NOTHING WAS LOCKED: start the daemon and give the order again";
const NO_CHANGE: &str = "; nothing was changed";

fn post(path: String, body: Option<Value>, otherwise: &'static str, done: String) -> Request {
    Request { method: Method::POST, path, body, otherwise, done }
}

fn request(command: &Command) -> Result<Request, CliError> {
    Ok(match command {
        Command::Lock { workspace, why } => {
            post(format!("/v1/workspaces/{}/lock", segment(workspace)), Some(json!({ "reason": why.reason })), NO_LOCK, String::new())
        }
        Command::Unlock { workspace, why, overriding, until } => {
            let mut body = json!({ "reason": why.reason });
            if let (true, Some(until), Some(fields)) = (*overriding, until, body.as_object_mut()) {
                if *until == Span::ZERO || *until > LONGEST_OVERRIDE {
                    return Err(CliError::Usage(format!("--until {until} is not between 1ms and {LONGEST_OVERRIDE}")));
                }
                fields.insert("override".to_owned(), json!(true));
                fields.insert("until".to_owned(), json!(until.to_string()));
            }
            post(format!("/v1/workspaces/{}/unlock", segment(workspace)), Some(body), NO_CHANGE, String::new())
        }
        Command::Drill { target: Some(id), end: true, reason, .. } => {
            post(format!("/v1/drills/{}/end", segment(id)), Some(json!({ "reason": reason })), NO_CHANGE, String::new())
        }
        Command::Drill { target: Some(target), length, cut, reason, .. } => {
            let body = json!({ "target": target, "for": length.to_string(), "cut": cut, "reason": reason });
            post("/v1/drills".to_owned(), Some(body), "; no drill was begun", String::new())
        }
        Command::Drill { target: None, .. } => {
            Request { method: Method::GET, path: "/v1/drills".to_owned(), body: None, otherwise: "", done: String::new() }
        }
        Command::Reload => post("/v1/reload".to_owned(), None, NO_CHANGE, "reloaded".to_owned()),
        Command::Brake { act: BrakeAct::Release { provider, lock, drop, why } } => {
            let done = if *lock { "held locks released to lock" } else { "held locks dropped" };
            let body = json!({ "lock": lock, "drop": drop, "reason": why.reason });
            post(format!("/v1/providers/{}/brake", segment(provider)), Some(body), NO_CHANGE, done.to_owned())
        }
        Command::Version { act: VersionAct::Retire { key, version, why } } => {
            let path = format!("/v1/keys/{}/versions/{}/retire", segment(key), segment(version));
            post(path, Some(json!({ "reason": why.reason })), NO_CHANGE, format!("version {version} of key {key} is retired"))
        }
        Command::Key { act: KeyAct::Retire { key, why } } => {
            let path = format!("/v1/keys/{}/retire", segment(key));
            post(path, Some(json!({ "reason": why.reason })), NO_CHANGE, format!("key {key} is retired"))
        }
        Command::Vault { act: VaultAct::Status } => {
            Request { method: Method::GET, path: "/v1/vault".to_owned(), body: None, otherwise: "", done: String::new() }
        }
        Command::Vault { act: VaultAct::Rewrap { all } } => {
            post(format!("/v1/vault/rewrap?all={all}"), None, NO_CHANGE, "data keys wrapped anew".to_owned())
        }
        Command::Receivers { act: ReceiversAct::Test { name } } => post(
            format!("/v1/receivers/{}/test", segment(name)),
            None,
            "; nothing was sent",
            format!("a test notice is on its way to {name}"),
        ),
        Command::Notices { act: NoticesAct::List { state } } => {
            let path = format!("/v1/notices?limit=1000&state={}", segment(state));
            Request { method: Method::GET, path, body: None, otherwise: "", done: String::new() }
        }
        Command::Notices { act: NoticesAct::Ack { id } } => {
            post(format!("/v1/notices/{}/ack", segment(id)), None, NO_CHANGE, format!("notice {id} is acknowledged"))
        }
        Command::Notices { act: NoticesAct::Resend { id, .. } } => {
            let path = id.as_ref().map_or_else(|| "/v1/notices/resend".to_owned(), |id| format!("/v1/notices/{}/resend", segment(id)));
            post(path, None, "; nothing was sent", "notices on their way again".to_owned())
        }
        _ => Request { method: Method::GET, path: "/v1/status".to_owned(), body: None, otherwise: "", done: String::new() },
    })
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value.get(name).and_then(Value::as_str).unwrap_or("-")
}

fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or(0)
}

fn items<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn is(value: &Value, name: &str) -> bool {
    value.get(name).and_then(Value::as_bool).unwrap_or(false)
}

fn shown_vault(body: Value) -> Shown {
    let mut out = format!("the vault is {}\n", if is(&body, "readable") { "readable" } else { "NOT READABLE" });
    for key in items(&body, "keys") {
        let health = if is(key, "healthy") { "works" } else { text(key, "failure_kind") };
        out.push_str(&table("  ", &[row(&[text(key, "role"), text(key, "provider"), text(key, "key"), health, text(key, "since")])]));
    }
    let part = |name: &str| body.get(name).cloned().unwrap_or_default();
    let (counts, keys) = (part("counts"), part("data_keys"));
    out.push_str(&format!("  {} records, {} preservations\n", number(&counts, "records"), number(&counts, "preservations")));
    out.push_str(&format!("  {} data keys, {} to wrap anew\n", number(&keys, "all"), number(&keys, "to_rewrap")));
    Shown::good(body, out)
}

/// One drill: what, until when, and when each stage happened.
fn drill_text(drill: &Value) -> String {
    let workspaces: Vec<&str> = items(drill, "workspaces").iter().filter_map(Value::as_str).collect();
    let how = if is(drill, "cut") { "access cut" } else { "nothing cut" };
    let state = match drill.get("ended_by").and_then(Value::as_str) {
        Some(by) => format!("ended {} ({by})", text(drill, "ended_at")),
        None => format!("until {}", text(drill, "until")),
    };
    let mut rows = vec![
        row(&["workspaces", &workspaces.join(" ")]),
        row(&["reason", text(drill, "reason")]),
        row(&["ordered", text(drill, "ordered_at")]),
        row(&["journal", text(drill, "stored_at")]),
        row(&["gate", text(drill, "applied_at")]),
    ];
    for (receiver, at) in drill.get("notices").and_then(Value::as_object).into_iter().flatten() {
        rows.push(row(&[&format!("told {receiver}"), at.as_str().unwrap_or("not yet")]));
    }
    format!("DRILL {}: {how}, {state}\n{}", text(drill, "id"), table("  ", &rows))
}

fn shown_workspace(body: Value) -> Shown {
    let mut out = format!("{} is {}", text(&body, "workspace"), text(&body, "access"));
    if let Some(by) = body.get("by").and_then(Value::as_str) {
        out.push_str(&format!(" ({by}, {} since {})", text(&body, "cause"), text(&body, "since")));
    }
    out.push('\n');
    for lock in items(&body, "locks") {
        let by = format!("{} {}", text(lock, "by"), text(lock, "access"));
        out.push_str(&table("  ", &[row(&[&by, text(lock, "cause"), text(lock, "key"), text(lock, "since"), text(lock, "reason")])]));
    }
    for held in items(&body, "overrides") {
        out.push_str(&format!("  override of key {} ({}) until {}\n", text(held, "key"), text(held, "kind"), text(held, "until")));
    }
    for lever in items(&body, "levers") {
        let left: Vec<&str> = items(lever, "left").iter().filter_map(Value::as_str).collect();
        let state = format!("{} {}", text(lever, "act"), text(lever, "state"));
        out.push_str(&table("  ", &[row(&["lever", text(lever, "lever"), &state, text(lever, "error"), &left.join("; ")])]));
    }
    if let Some(step) = body.get("next_step").and_then(Value::as_str) {
        out.push_str(&format!("  {step}\n"));
    }
    if body.get("durable").and_then(Value::as_bool) == Some(false) {
        out.push_str("  NOT YET STORED: the store is late or failing\n");
    }
    Shown::good(body, out)
}

fn shown_status(status: u16, body: Value, exit_code: bool) -> Result<Shown, CliError> {
    if !body.is_object() {
        return Err(CliError::Answer(status));
    }
    let ready = if is(&body, "ready") { "ready" } else { "STARTING: stored locks are not loaded yet" };
    let mut out = format!("cmek-watchdog {}, {ready}, up since {}\n", text(&body, "version"), text(&body, "started_at"));
    if let Some(flag) = body.get("config_flagged").and_then(Value::as_str) {
        out.push_str(&format!("CONFIGURATION NOT IN FORCE: {flag}\n"));
    }
    for (name, field, total) in [("keys", "keys", "keys_total"), ("workspaces", "workspaces", "workspaces_total")] {
        out.push_str(&format!("{name:<11} {}{}\n", number(&body, total), counts(body.get(field))));
    }
    for (field, what) in [("bugs", "impossible branches taken"), ("store_write_failures", "failed writes to the store")] {
        if number(&body, field) > 0 {
            out.push_str(&format!("{what}: {}\n", number(&body, field)));
        }
    }
    if number(&body, "would_lock_total") > 0 {
        out.push_str(&format!("would have locked in shadow mode: {}\n", number(&body, "would_lock_total")));
    }
    if number(&body, "locks_incomplete") > 0 {
        out.push_str(&format!("LOCKS INCOMPLETE, a lever failed: {}\n", number(&body, "locks_incomplete")));
    }
    for drill in items(&body, "drills") {
        out.push_str(&drill_text(drill));
    }
    out.push_str(&lowered(&body));
    out.push_str(&providers(&body));
    out.push_str(&receivers(&body));
    let code = if exit_code && number(&body, "lowered_total") > 0 { REVOKED } else { 0 };
    Ok(Shown::good(body, out).with_code(code))
}

fn counts(by_word: Option<&Value>) -> String {
    let some: Vec<String> = by_word
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(word, count)| count.as_u64().filter(|count| *count > 0).map(|count| format!("{count} {word}")))
        .collect();
    if some.is_empty() { String::new() } else { format!(": {}", some.join(", ")) }
}

fn lowered(body: &Value) -> String {
    let listed = items(body, "lowered");
    if listed.is_empty() {
        return String::new();
    }
    let mut rows = vec![row(&["WORKSPACE", "ACCESS", "CAUSE", "KEY", "BY", "SINCE"])];
    rows.extend(listed.iter().map(|ws| {
        row(&[text(ws, "workspace"), text(ws, "access"), text(ws, "cause"), text(ws, "key"), text(ws, "by"), text(ws, "since")])
    }));
    let mut out = format!("\n{}", table("", &rows));
    let more = number(body, "lowered_total").saturating_sub(u64::try_from(listed.len()).unwrap_or(u64::MAX));
    if more > 0 {
        out.push_str(&format!("and {more} more\n"));
    }
    out
}

fn providers(body: &Value) -> String {
    let listed = items(body, "providers");
    if listed.is_empty() {
        return String::new();
    }
    let mut rows = vec![row(&["PROVIDER", "KIND", "CONTROL KEY", "BRAKE", "CREDENTIALS", "MISSED WINDOWS"])];
    rows.extend(listed.iter().map(|provider| {
        let control = match (provider.get("control_key_healthy").and_then(Value::as_bool), provider.get("control_key")) {
            (Some(true), _) => "good",
            (Some(false), _) => "FAILING",
            (None, Some(Value::String(_))) => "not looked at yet",
            (None, _) => "none",
        };
        let held = items(provider, "held").len();
        let brake = if is(provider, "brake_engaged") { format!("ENGAGED, {held} held") } else { "-".to_owned() };
        let credentials = if is(provider, "credentials_failing") { "FAILING" } else { "good" };
        let missed = number(provider, "missed_windows").to_string();
        row(&[text(provider, "provider"), text(provider, "kind"), control, &brake, credentials, &missed])
    }));
    format!("\n{}", table("", &rows))
}

fn shown_notices(body: Value) -> Shown {
    let mut rows = vec![row(&["ID", "RECEIVER", "STATE", "TYPE", "SEVERITY", "SINCE", "TRIES", "LAST ERROR"])];
    rows.extend(items(&body, "items").iter().map(|one| {
        let tries = number(one, "attempts").to_string();
        let word = |name| text(one, name);
        row(&[word("id"), word("receiver"), word("state"), word("type"), word("severity"), word("created_at"), &tries, word("last_error")])
    }));
    let out = if rows.len() == 1 { "no notices\n".to_owned() } else { table("", &rows) };
    Shown::good(body, out)
}

fn receivers(body: &Value) -> String {
    let listed = items(body, "receivers");
    if listed.is_empty() {
        return String::new();
    }
    let mut rows = vec![row(&["RECEIVER", "STATE", "WAITING", "OLDEST", "DEAD", "LAST SUCCESS"])];
    rows.extend(listed.iter().map(|queue| {
        let state = if is(queue, "failing") { "FAILING" } else { "good" };
        let (depth, dead) = (number(queue, "depth").to_string(), number(queue, "dead").to_string());
        row(&[text(queue, "receiver"), state, &depth, text(queue, "oldest_at"), &dead, text(queue, "last_success_at")])
    }));
    format!("\n{}", table("", &rows))
}
