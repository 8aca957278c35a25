//! inside
//! Gathers the keys of the file and of the `keys_from` files. A bad row of such a file is that key,
//! shown as misconfigured; it must never take other keys with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeValue;

use super::keys::{Policies, Providers, key_of};
use crate::config::raw;
use crate::config::sheet::{Place, Sheet, read_table};
use crate::config::{Key, Source};
use crate::key::{KeyId, KeyRef, KeyTarget, ProviderId, Resource, WorkspaceId};

/// A file that `[[keys_from]]` or `features_from` led to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeysFile {
    /// What errors call it.
    pub name: String,
    pub rows: Rows,
}

/// What such a file holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rows {
    /// TOML with `[[keys]]`.
    Toml(String),
    /// Rows of a table that was read outside.
    Table(Vec<Row>),
    /// TOML with `[features]`.
    Features(String),
}

/// One row of a table.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Row {
    /// From 1.
    pub line: usize,
    pub key: raw::Key,
    /// Why the row could not be read whole.
    pub fault: Option<String>,
}

/// Keys by id while they are gathered, with the place that each came from.
struct Gathered<'a> {
    providers: &'a Providers,
    policies: &'a Policies,
    base_dir: &'a str,
    keys: BTreeMap<KeyId, (Key, Place)>,
    /// Which id first registered a provider's key.
    references: BTreeMap<(ProviderId, Arc<str>), KeyId>,
}

/// Keys of the file, then those of the `keys_from` files.
pub fn keys(sheet: &mut Sheet<'_>, providers: &Providers, policies: &Policies, files: &[KeysFile]) -> BTreeMap<KeyId, Key> {
    let mut gathered = Gathered { providers, policies, base_dir: sheet.base_dir(), keys: BTreeMap::new(), references: BTreeMap::new() };
    for (index, element) in sheet.elements("keys").iter().enumerate() {
        if let Some(raw) = sheet.read::<raw::Key>(element) {
            own_key(sheet, element, index, &raw, &mut gathered);
        }
    }
    for file in files {
        match &file.rows {
            Rows::Toml(text) => toml_rows(sheet, &file.name, text, &mut gathered),
            Rows::Features(_) => {}
            Rows::Table(rows) => {
                for row in rows {
                    let place = Place { file: file.name.clone(), line: row.line, column: 1, path: String::new() };
                    foreign_key(sheet, &row.key, place, row.fault.clone(), &mut gathered);
                }
            }
        }
    }
    gathered.keys.into_iter().map(|(id, (key, _))| (id, key)).collect()
}

/// A key of the configuration file itself: a fault refuses the file.
fn own_key<'a>(sheet: &mut Sheet<'a>, element: &Spanned<DeValue<'a>>, index: usize, raw: &raw::Key, gathered: &mut Gathered<'_>) {
    let key = match key_of(raw, gathered.providers, gathered.policies, Source::File, gathered.base_dir) {
        Ok(key) => key,
        Err(faults) => {
            for fault in faults {
                sheet.error(field_of(element, fault.field), fault.message);
            }
            return;
        }
    };
    let place = sheet.place_of(&field_of(element, "id"), format!("keys[{index}]"));
    if let Some((_, first)) = gathered.keys.get(&key.id) {
        let message = format!("key `{}` is also at line {}", key.id, first.line);
        sheet.error(field_of(element, "id"), message);
        return;
    }
    if let Some(other) = gathered.references.get(&(key.provider.clone(), key.target.reference.text.clone())) {
        let message = format!("the same key of the same provider is already registered as `{other}`");
        sheet.error(field_of(element, "key"), message);
        return;
    }
    if let Some(control) = gathered.providers.get(&key.provider).and_then(|provider| provider.control_key.as_ref())
        && control.reference.text == key.target.reference.text
    {
        sheet.warn(&field_of(element, "key"), "this key is also the control_key of its provider: its own fault would look like ours");
    }
    gathered.references.insert((key.provider.clone(), key.target.reference.text.clone()), key.id.clone());
    gathered.keys.insert(key.id.clone(), (key, place));
}

/// Where a field of a table stands; the table itself if the field is absent.
fn field_of(element: &Spanned<DeValue<'_>>, field: &str) -> core::ops::Range<usize> {
    let table = element.get_ref().as_table();
    table.and_then(|table| table.get(field)).map_or_else(|| element.span(), Spanned::span)
}

/// Keys of a TOML file. A file that is no TOML at all refuses the configuration, because nobody can
/// tell which keys would be dropped with it.
fn toml_rows(sheet: &mut Sheet<'_>, name: &str, text: &str, gathered: &mut Gathered<'_>) {
    let mut own = Sheet::new(text, name, gathered.base_dir);
    if own.errors.is_empty() {
        own.refuse_unknown(&["keys"]);
        for (index, element) in own.elements("keys").iter().enumerate() {
            let path = format!("keys[{index}]");
            let place = own.place_of(&field_of(element, "id"), path.clone());
            let (raw, fault) = match read_table::<raw::Key>(element) {
                Ok(raw) => (raw, None),
                Err((at, why)) => (salvage(element), Some(format!("{}: {why}", own.place_in(&at, element, &path)))),
            };
            foreign_key(sheet, &raw, place, fault, gathered);
        }
    }
    sheet.errors.append(&mut own.errors);
}

/// What can still be read of a row that does not fit: enough to show it under its id.
fn salvage(element: &Spanned<DeValue<'_>>) -> raw::Key {
    let text = |field: &str| {
        let value = element.get_ref().as_table().and_then(|table| table.get(field)).and_then(|value| value.get_ref().as_str());
        value.unwrap_or_default().to_owned()
    };
    let workspaces = element.get_ref().as_table().and_then(|table| table.get("workspaces")).cloned();
    let workspaces = workspaces.and_then(|value| Vec::deserialize(toml::de::ValueDeserializer::from(value)).ok());
    raw::Key {
        id: text("id"),
        provider: text("provider"),
        key: text("key"),
        workspaces: workspaces.unwrap_or_default(),
        ..raw::Key::default()
    }
}

/// A key of a `keys_from` file: a fault refuses that key only.
fn foreign_key(sheet: &mut Sheet<'_>, raw: &raw::Key, place: Place, fault: Option<String>, gathered: &mut Gathered<'_>) {
    let Ok(id) = KeyId::new(&raw.id) else {
        let message = fault.unwrap_or_else(|| "a row without a usable id is left out".to_owned());
        sheet.warn_elsewhere(place, message);
        return;
    };
    if let Some((first, at)) = gathered.keys.get_mut(&id) {
        // Neither row may win by its place: which of them is meant is for a person to say.
        let message = format!("key `{id}` is registered in both {}:{} and {}:{}", at.file, at.line, place.file, place.line);
        sheet.warn_elsewhere(place, message.clone());
        first.refused = Some(message);
        return;
    }
    let judged = match fault {
        Some(fault) => Err(fault),
        None => key_of(raw, gathered.providers, gathered.policies, Source::File, gathered.base_dir).map_err(|faults| {
            let all: Vec<String> = faults.iter().map(ToString::to_string).collect();
            format!("{}:{}: {}", place.file, place.line, all.join("; "))
        }),
    };
    let judged = judged.and_then(|key| match gathered.references.get(&(key.provider.clone(), key.target.reference.text.clone())) {
        Some(other) => Err(format!("{}:{}: the same key of the same provider is already registered as `{other}`", place.file, place.line)),
        None => Ok(key),
    });
    match judged {
        Ok(key) => {
            gathered.references.insert((key.provider.clone(), key.target.reference.text.clone()), id.clone());
            gathered.keys.insert(id, (key, place));
        }
        Err(why) => {
            sheet.warn_elsewhere(place.clone(), format!("key `{id}` is refused: {why}"));
            if let Some(key) = refused_key(raw, id.clone(), why, gathered.providers, gathered.policies, Source::File) {
                gathered.keys.insert(id, (key, place));
            }
        }
    }
}

/// The stand-in for a refused row: it shows what was written and is never probed.
pub fn refused_key(raw: &raw::Key, id: KeyId, why: String, providers: &Providers, policies: &Policies, source: Source) -> Option<Key> {
    // A user part in an address could be a password.
    let shown: Arc<str> = if raw.key.contains('@') { "(not shown)".into() } else { raw.key.chars().take(512).collect::<String>().into() };
    let reference = match providers.get(raw.provider.as_str()).map(|provider| KeyRef::parse(provider.kind(), &raw.key)) {
        Some(Ok(reference)) => reference,
        Some(Err(_)) | None => KeyRef { text: shown.clone(), resource: Resource::Local { name: shown.as_ref().into() } },
    };
    let policy = raw.policy.as_deref().and_then(|name| policies.get_key_value(name));
    let policy = policy.or_else(|| policies.get_key_value("default")).map(|(id, _)| id.clone())?;
    Some(Key {
        id,
        provider: ProviderId::new(&raw.provider).or_else(|_| ProviderId::new("unknown")).ok()?,
        account: reference.account().to_owned(),
        target: Arc::new(KeyTarget::plain(reference)),
        workspaces: raw.workspaces.iter().filter_map(|text| WorkspaceId::new(text).ok()).collect(),
        policy,
        owner: raw.owner.clone(),
        labels: BTreeMap::new(),
        notify_owner: false,
        source,
        refused: Some(why),
    })
}
