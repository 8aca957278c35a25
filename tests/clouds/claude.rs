//! Claude's Admin API as far as a lever meets it: API keys of workspaces, pages of two, the Admin key,
//! and injected faults. What others do in the Console are plain methods.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::wire::{Ask, Reply, Wire};

/// What the API accepts.
pub const ADMIN: &str = "sk-ant-admin01-test";
const PAGE: usize = 2;

#[derive(Default)]
struct World {
    /// Id to workspace and status.
    keys: BTreeMap<String, (String, String)>,
    /// Answers to be given instead, to which method.
    faults: VecDeque<(String, Reply)>,
}

/// A running fake.
pub struct Claude {
    pub wire: Wire,
    world: Arc<Mutex<World>>,
}

fn error(status: u16, kind: &str, message: &str) -> Reply {
    Reply::json(status, &json!({ "type": "error", "error": { "type": kind, "message": message } }).to_string())
}

impl Claude {
    pub async fn start(keys: &[(&str, &str, &str)]) -> Self {
        let world = World {
            keys: keys.iter().map(|(id, ws, status)| ((*id).to_owned(), ((*ws).to_owned(), (*status).to_owned()))).collect(),
            faults: VecDeque::new(),
        };
        let world = Arc::new(Mutex::new(world));
        let shared = Arc::clone(&world);
        Self { wire: Wire::serve(move |ask| answer(&mut shared.lock().unwrap(), ask)).await, world }
    }

    pub fn set(&self, id: &str, workspace: &str, status: &str) {
        self.world.lock().unwrap().keys.insert(id.to_owned(), (workspace.to_owned(), status.to_owned()));
    }

    pub fn remove(&self, id: &str) {
        self.world.lock().unwrap().keys.remove(id);
    }

    pub fn status(&self, id: &str) -> String {
        self.world.lock().unwrap().keys[id].1.clone()
    }

    /// The next request with this method is answered so.
    pub fn fault(&self, method: &str, reply: Reply) {
        self.world.lock().unwrap().faults.push_back((method.to_owned(), reply));
    }

    /// Number of changes asked for.
    pub fn changes(&self) -> usize {
        self.wire.asked().iter().filter(|ask| ask.method == "POST").count()
    }
}

fn key(id: &str, (workspace, status): &(String, String)) -> Value {
    json!({ "type": "api_key", "id": id, "name": "n", "partial_key_hint": "sk-ant-api03-R2D...igAA", "workspace_id": workspace,
        "status": status, "created_at": "2026-01-01T00:00:00Z", "created_by": { "id": "user_1", "type": "user" } })
}

fn answer(world: &mut World, ask: &Ask) -> Reply {
    if let Some(at) = world.faults.iter().position(|(method, _)| *method == ask.method) {
        return world.faults.remove(at).unwrap().1;
    }
    if ask.headers.get("x-api-key").map(String::as_str) != Some(ADMIN) {
        return error(401, "authentication_error", "invalid x-api-key");
    }
    if ask.headers.get("anthropic-version").map(String::as_str) != Some("2023-06-01") {
        return error(400, "invalid_request_error", "anthropic-version: header is required");
    }
    let (path, query) = ask.path.split_once('?').unwrap_or((&ask.path, ""));
    let Some(rest) = path.strip_prefix("/v1/organizations/api_keys") else { return error(404, "not_found_error", "no such path") };
    if rest.is_empty() {
        return list(world, query);
    }
    let id = rest.trim_start_matches('/');
    let Some(found) = world.keys.get_mut(id) else { return error(404, "not_found_error", "API key not found") };
    if ask.method == "POST" {
        match ask.json()["status"].as_str() {
            Some(status @ ("active" | "inactive" | "archived")) => found.1 = status.to_owned(),
            _ => return error(400, "invalid_request_error", "status: unexpected value"),
        }
    }
    Reply::json(200, &key(id, found).to_string())
}

fn list(world: &World, query: &str) -> Reply {
    let of = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}="))).map(str::to_owned);
    let (workspace, status, after) = (of("workspace_id"), of("status"), of("after_id"));
    let fits = |(id, (ws, is)): &(&String, &(String, String))| {
        workspace.as_ref().is_none_or(|want| want == ws)
            && status.as_ref().is_none_or(|want| want == is)
            && after.as_ref().is_none_or(|after| *id > after)
    };
    let all: Vec<(&String, &(String, String))> = world.keys.iter().filter(fits).collect();
    let page: Vec<Value> = all.iter().take(PAGE).map(|(id, of)| key(id, of)).collect();
    let (first, last) = (page.first().map(|key| key["id"].clone()), page.last().map(|key| key["id"].clone()));
    let body = json!({ "data": page, "has_more": all.len() > PAGE, "first_id": first, "last_id": last });
    Reply::json(200, &body.to_string())
}
