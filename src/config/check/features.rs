//! inside
//! Features and their classes, common to all and of single workspaces. Safety metadata is always
//! among them and always readable: nothing that a file says may change that.

use std::collections::{BTreeMap, BTreeSet};

use toml::de::DeValue;

use super::gather::{KeysFile, Rows};
use crate::config::raw::{self, Text};
use crate::config::sheet::{Sheet, unknown_value};
use crate::config::{Key, Needs};
use crate::gate::Features;
use crate::key::{KeyId, WorkspaceId};
use crate::words::FeatureClass;

const SAFETY_METADATA: &str = "safety_metadata";
/// The flag of a workspace as a whole, beside those of its features.
pub const WORKSPACE_USABLE: &str = "workspace_usable";

/// The path of `features_from`, as written. Nothing if the text is faulty; `parse` tells why.
#[must_use]
pub fn features_from(text: &str) -> Option<String> {
    let sheet = Sheet::new(text, "", "");
    let named = sheet.root().get("features_from")?.get_ref().as_str()?;
    (!named.is_empty()).then(|| named.to_owned())
}

/// The features of the contract unless the file has a table of its own or names a file of them. What
/// the table says stands above what the file says.
pub fn features(sheet: &mut Sheet<'_>, files: &[KeysFile]) -> Features {
    let mut features = BTreeMap::from([(SAFETY_METADATA.to_owned(), FeatureClass::SafetyMetadata)]);
    let mut named = false;
    if let Some(value) = sheet.root().get("features_from").cloned() {
        named = true;
        match value.get_ref() {
            DeValue::String(path) if !path.is_empty() => {}
            DeValue::String(_) => sheet.error(value.span(), "the path is empty"),
            other => {
                let found = other.type_str();
                sheet.error(value.span(), format!("expected the path of a file with a table [features], found {found}"));
            }
        }
    }
    for file in files {
        if let Rows::Features(text) = &file.rows {
            let mut own = Sheet::new(text, &file.name, "");
            if own.errors.is_empty() {
                own.refuse_unknown(&["features"]);
                table(&mut own, &mut features);
            }
            sheet.errors.append(&mut own.errors);
        }
    }
    if !table(sheet, &mut features) && !named {
        for (name, class) in [
            ("messages", FeatureClass::Content),
            ("files", FeatureClass::Content),
            ("batch", FeatureClass::Write),
            ("models", FeatureClass::Control),
        ] {
            features.insert(name.to_owned(), class);
        }
    }
    Features(features)
}

/// Reads the table `[features]`; false if there is none or an empty one.
fn table(sheet: &mut Sheet<'_>, features: &mut BTreeMap<String, FeatureClass>) -> bool {
    let entries = sheet.entries("features");
    let any = !entries.is_empty();
    for (name, value) in entries {
        sheet.label(&name);
        if name.get_ref() == WORKSPACE_USABLE {
            sheet.error(name.span(), "this name is the flag of the workspace as a whole; call the feature otherwise");
        }
        let Some(raw) = sheet.read::<raw::Feature>(&value) else { continue };
        if let Some(class) = class(sheet, name.get_ref(), &raw.class) {
            features.insert(name.into_inner(), class);
        }
    }
    any
}

fn class(sheet: &mut Sheet<'_>, name: &str, text: &Text) -> Option<FeatureClass> {
    let classes: Vec<(&str, FeatureClass)> = FeatureClass::ALL.iter().map(|class| (class.as_str(), *class)).collect();
    let class = sheet.choice(text, &classes)?;
    if name == SAFETY_METADATA && class != FeatureClass::SafetyMetadata {
        sheet.error(text.span(), "safety metadata stays readable in every state: its class is safety_metadata");
        return None;
    }
    Some(class)
}

/// Workspaces with what they need, and the classes that some have of their own.
type Workspaces = (BTreeMap<WorkspaceId, Needs>, BTreeMap<WorkspaceId, Features>);

/// Every workspace that a key names, and what `[[workspaces]]` says of it.
pub fn workspaces(sheet: &mut Sheet<'_>, keys: &BTreeMap<KeyId, Key>, features: &Features) -> Workspaces {
    let mut known: BTreeMap<WorkspaceId, Needs> =
        keys.values().flat_map(|key| key.workspaces.iter().cloned()).map(|id| (id, Needs::All)).collect();
    let mut own = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for element in sheet.elements("workspaces") {
        let Some(raw) = sheet.read::<raw::Workspace>(&element) else { continue };
        let needs = raw.needs.as_ref().and_then(|text| sheet.choice(text, &[("all", Needs::All), ("any", Needs::Any)]));
        let differing = differing(sheet, &raw, features);
        let Some(id) = sheet.name::<WorkspaceId>(&raw.id) else { continue };
        if !seen.insert(id.clone()) {
            sheet.error(raw.id.span(), format!("workspace `{id}` is here twice"));
        }
        if !known.contains_key(&id) {
            sheet.warn(&raw.id.span(), format!("no key of the configuration names workspace `{id}`"));
        }
        if !differing.0.is_empty() {
            own.insert(id.clone(), differing);
        }
        known.insert(id, needs.unwrap_or(Needs::All));
    }
    (known, own)
}

/// The classes of one workspace that are not the common ones.
fn differing(sheet: &mut Sheet<'_>, raw: &raw::Workspace, features: &Features) -> Features {
    let mut own = BTreeMap::new();
    for (name, feature) in &raw.features {
        let Some(common) = features.0.get(name.get_ref()) else {
            let names: Vec<&str> = features.0.keys().map(String::as_str).collect();
            sheet.error(name.span(), unknown_value(name.get_ref(), &names));
            continue;
        };
        if let Some(class) = class(sheet, name.get_ref(), &feature.class)
            && class != *common
        {
            own.insert(name.get_ref().clone(), class);
        }
    }
    Features(own)
}
