//! outside
//! Registration of keys by the API: the body is a `[[keys]]` entry in JSON. Reads what was sent and
//! nothing else; whether it is a good registration is the core's word.

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Doors;
use super::access::Operator;
use super::ask::perform;
use super::input::{Body, Filter, NoBody, Segments, key_id};
use super::problem::Problem;
use crate::config::raw;
use crate::operate::Action;

/// `PUT /v1/keys/{id}`: 201 for a new key, 200 for one that was registered already.
pub async fn put(
    operator: Operator,
    State(doors): State<Doors>,
    Segments(id): Segments<String>,
    Body(body): Body<Map<String, Value>>,
) -> Result<Response, Problem> {
    let id = key_id(&id)?;
    let key = Box::new(entry(id.as_str(), body)?);
    perform(&doors, operator.actor, Action::PutKey { key }).await
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteQuery {
    #[serde(default)]
    keep_lock: bool,
}

/// `DELETE /v1/keys/{id}`
pub async fn delete(
    operator: Operator,
    State(doors): State<Doors>,
    Segments(id): Segments<String>,
    Filter(query): Filter<DeleteQuery>,
    _: NoBody,
) -> Result<Response, Problem> {
    let action = Action::DeleteKey { key: key_id(&id)?, keep_lock: query.keep_lock };
    perform(&doors, operator.actor, action).await
}

/// The entry under its id. A field that cannot be read is named.
fn entry(id: &str, mut body: Map<String, Value>) -> Result<raw::Key, Problem> {
    let named = body.insert("id".to_owned(), Value::from(id));
    if named.is_some_and(|named| named != *id) {
        return Err(Problem::invalid("id: the body names another key than the path"));
    }
    for field in ["provider", "key"] {
        if !body.contains_key(field) {
            return Err(Problem::invalid(format!("{field}: missing")));
        }
    }
    match serde_json::from_value::<raw::Key>(Value::Object(body.clone())) {
        Ok(key) => Ok(key),
        Err(whole) => {
            let least = || Map::from_iter(["id", "provider", "key"].map(|field| (field.to_owned(), Value::from("x"))));
            let fault = body.into_iter().find_map(|(field, value)| {
                let mut alone = least();
                alone.insert(field.clone(), value);
                let error = serde_json::from_value::<raw::Key>(Value::Object(alone)).err()?;
                Some(format!("{}: {error}", field.chars().take(100).collect::<String>()))
            });
            Err(Problem::invalid(fault.unwrap_or_else(|| whole.to_string())))
        }
    }
}
