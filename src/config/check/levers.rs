//! inside
//! Levers: what each kind needs, and which workspaces it acts on. It must never keep a secret, and
//! never let an Admin key travel in the clear.

use std::collections::{BTreeMap, BTreeSet};

use toml::Spanned;
use toml::de::DeValue;

use super::keys::unknown_reference;
use super::notices::{secret, url};
use super::providers::word_of;
use crate::config::raw::{self, LeverMatch, Text};
use crate::config::sheet::Sheet;
use crate::config::values;
use crate::config::{LeverConfig, LeverDetail, ListFormat, Match, Provider};
use crate::key::{LeverId, ProviderId};

#[derive(Clone, Copy)]
enum Kind {
    Claude,
    Webhook,
    File,
}

const KINDS: [(&str, Kind); 3] = [("claude", Kind::Claude), ("webhook", Kind::Webhook), ("file", Kind::File)];
const FORMATS: [(&str, ListFormat); 3] = [("lines", ListFormat::Lines), ("json", ListFormat::Json), ("nginx", ListFormat::Nginx)];
const CLAUDE: &str = "https://api.anthropic.com";

type Providers = BTreeMap<ProviderId, Provider>;
type Read = (LeverDetail, Option<bool>, LeverMatch);

/// Every lever of the file that could be read.
pub fn levers(sheet: &mut Sheet<'_>, providers: &Providers) -> BTreeMap<LeverId, LeverConfig> {
    let mut levers = BTreeMap::new();
    let mut files = BTreeSet::new();
    for (name, value) in sheet.entries("levers") {
        let id = sheet.name::<LeverId>(&name);
        let Some(kind) = word_of(sheet, &value, "kind", &KINDS) else { continue };
        let Some((detail, read_only, matching)) = read(sheet, kind, &value) else { continue };
        if let LeverDetail::File { path, .. } = &detail
            && !files.insert(path.clone())
        {
            sheet.error(value.span(), "two levers write the same file");
        }
        let matching = matching_of(sheet, matching, providers);
        if let Some(id) = id {
            levers.insert(id.clone(), LeverConfig { id, detail, read_only: read_only.unwrap_or(false), matching });
        }
    }
    levers
}

fn read<'a>(sheet: &mut Sheet<'a>, kind: Kind, value: &Spanned<DeValue<'a>>) -> Option<Read> {
    match kind {
        Kind::Claude => {
            let raw: raw::ClaudeLever = sheet.read(value)?;
            let base_url = raw.base_url.as_ref().map_or_else(|| Some(CLAUDE.to_owned()), |text| base_url(sheet, text));
            let api_key = secret(sheet, &raw.api_key);
            Some((LeverDetail::Claude { base_url: base_url?, api_key: api_key? }, raw.read_only, raw.matching))
        }
        Kind::Webhook => {
            let raw: raw::WebhookLever = sheet.read(value)?;
            let (url, secret) = (url(sheet, &raw.url), secret(sheet, &raw.secret));
            Some((LeverDetail::Webhook { url: url?, secret: secret? }, raw.read_only, raw.matching))
        }
        Kind::File => {
            let raw: raw::FileLever = sheet.read(value)?;
            let format = raw.format.as_ref().map_or(Some(ListFormat::Lines), |text| sheet.choice(text, &FORMATS));
            let path = sheet.path(&raw.path);
            Some((LeverDetail::File { path: path?, format: format? }, raw.read_only, raw.matching))
        }
    }
}

/// The Admin key goes there: https, or a loopback address for a rehearsal.
fn base_url(sheet: &mut Sheet<'_>, text: &Text) -> Option<String> {
    match values::authority(text.get_ref(), &["http", "https"], "http://, https://") {
        Ok(at) if at.scheme == "https" || values::is_loopback(&at.host) => Some(text.get_ref().trim_end_matches('/').to_owned()),
        Ok(_) => {
            sheet.error(text.span(), "the Admin key would travel unencrypted; use https://, or a loopback address");
            None
        }
        Err(why) => {
            sheet.error(text.span(), why.to_string());
            None
        }
    }
}

fn matching_of(sheet: &mut Sheet<'_>, raw: LeverMatch, providers: &Providers) -> Match {
    if let Some(text) = &raw.provider
        && !text.get_ref().contains('*')
        && !providers.contains_key(text.get_ref().as_str())
    {
        let names: Vec<&str> = providers.keys().map(ProviderId::as_str).collect();
        sheet.error(text.span(), unknown_reference("provider", text.get_ref(), &names));
    }
    let text = |text: Option<Text>| text.map(Spanned::into_inner);
    Match { provider: text(raw.provider), workspace: text(raw.workspace), ..Match::default() }
}
