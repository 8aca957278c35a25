//! inside
//! Providers: one struct per kind, chosen by reading `kind` first, so that a fault keeps its own
//! line. It must never let a token reach a host that the operator did not name.

use std::collections::BTreeMap;
use std::sync::Arc;

use toml::Spanned;
use toml::de::DeValue;

use super::keys::reference;
use crate::config::raw::{self, Int, Text};
use crate::config::sheet::Sheet;
use crate::config::{AzureCredentials, GcpCredentials, Provider, ProviderDetail, values};
use crate::key::{AssumeRole, KeyTarget, ProviderId};
use crate::time::Wall;
use crate::words::ProviderKind;

/// Azure's own hosts and their sovereign twins.
const AZURE_HOSTS: [&str; 7] = [
    "vault.azure.net",
    "managedhsm.azure.net",
    "vault.azure.cn",
    "vault.usgovcloudapi.net",
    "vault.microsoftazure.de",
    "managedhsm.azure.cn",
    "managedhsm.usgovcloudapi.net",
];

/// Every provider of the file that could be read.
pub fn providers(sheet: &mut Sheet<'_>) -> (BTreeMap<ProviderId, Provider>, BTreeMap<ProviderId, Wall>) {
    let (mut providers, mut expiries) = (BTreeMap::new(), BTreeMap::new());
    for (name, value) in sheet.entries("providers") {
        let id = sheet.name::<ProviderId>(&name);
        let Some(kind) = kind_of(sheet, &value) else { continue };
        let read = match kind {
            ProviderKind::Aws => aws(sheet, &value),
            ProviderKind::Gcp => gcp(sheet, &value),
            ProviderKind::Azure => azure(sheet, &value),
            ProviderKind::Local => local(sheet, &value),
        };
        if let (Some(id), Some(read)) = (id, read) {
            if let Some(at) = read.credentials_expire_at.as_ref().and_then(|text| expiry(sheet, text)) {
                expiries.insert(id.clone(), at);
            }
            let provider = finish(sheet, id.clone(), kind, read, &value);
            providers.insert(id, provider);
        }
    }
    (providers, expiries)
}

/// A day (its first moment counts, to be early rather than late) or a time.
fn expiry(sheet: &mut Sheet<'_>, text: &Text) -> Option<Wall> {
    let written = text.get_ref();
    let whole = if written.len() == 10 { format!("{written}T00:00:00Z") } else { written.clone() };
    let found = whole.parse().ok();
    if found.is_none() {
        sheet.error(text.span(), "expected a day such as \"2027-01-31\" or an RFC 3339 time such as \"2027-01-31T12:00:00Z\"");
    }
    found
}

struct Read {
    detail: ProviderDetail,
    control_key: Option<Text>,
    calls_per_second: Option<Int>,
    credentials_expire_at: Option<Text>,
}

/// The kind of a table, read before the table itself.
fn kind_of<'a>(sheet: &mut Sheet<'a>, value: &Spanned<DeValue<'a>>) -> Option<ProviderKind> {
    let kinds: Vec<(&str, ProviderKind)> = ProviderKind::ALL.iter().map(|kind| (kind.as_str(), *kind)).collect();
    word_of(sheet, value, "kind", &kinds)
}

/// One word of a table out of a closed set; a fault is noted.
pub fn word_of<'a, T: Copy>(sheet: &mut Sheet<'a>, value: &Spanned<DeValue<'a>>, field: &str, words: &[(&str, T)]) -> Option<T> {
    let allowed: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    let allowed = allowed.join(", ");
    let DeValue::Table(table) = value.get_ref() else {
        sheet.error(value.span(), format!("expected a table with `{field}`, one of: {allowed}"));
        return None;
    };
    let Some(found) = table.get(field) else {
        sheet.error(value.span(), format!("missing field {field}, expected one of: {allowed}"));
        return None;
    };
    match found.get_ref().as_str() {
        Some(text) => sheet.choice(&Spanned::new(found.span(), text.to_owned()), words),
        None => {
            sheet.error(found.span(), format!("expected a string, one of: {allowed}"));
            None
        }
    }
}

fn finish<'a>(sheet: &mut Sheet<'a>, id: ProviderId, kind: ProviderKind, read: Read, value: &Spanned<DeValue<'a>>) -> Provider {
    let usual = match kind {
        ProviderKind::Aws | ProviderKind::Gcp => 50,
        // The quota is the customer's own, and it is counted per vault.
        ProviderKind::Azure => 2,
        ProviderKind::Local => 1000,
    };
    let calls_per_second = read.calls_per_second.and_then(|n| sheet.int(&n, 1, 100_000)).unwrap_or(usual);
    let mut provider = Provider { id, detail: read.detail, control_key: None, calls_per_second };
    match read.control_key {
        Some(text) => match reference(&provider, text.get_ref()) {
            Ok(reference) => provider.control_key = Some(Arc::new(KeyTarget::plain(reference))),
            Err(why) => sheet.error(text.span(), why),
        },
        None => sheet.warn(&value.span(), "no control_key: a denial cannot be told from trouble of our own identity"),
    }
    provider
}

fn local<'a>(sheet: &mut Sheet<'a>, value: &Spanned<DeValue<'a>>) -> Option<Read> {
    let raw: raw::LocalProvider = sheet.read(value)?;
    let path = raw.path.as_ref().and_then(|text| sheet.path(text));
    let path = path.unwrap_or_else(|| crate::config::sheet::join(sheet.base_dir(), "local-kms.json"));
    Some(Read {
        detail: ProviderDetail::Local { path },
        control_key: raw.control_key,
        calls_per_second: raw.calls_per_second,
        credentials_expire_at: None,
    })
}

fn aws<'a>(sheet: &mut Sheet<'a>, value: &Spanned<DeValue<'a>>) -> Option<Read> {
    let raw: raw::AwsProvider = sheet.read(value)?;
    let region = raw.region.get_ref();
    if region.is_empty() || !region.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-') {
        sheet.error(raw.region.span(), "expected a region such as \"us-east-2\"");
    }
    let account = |text: &str| text.len() == 12 && text.chars().all(|c| c.is_ascii_digit());
    for text in raw.our_accounts.iter().filter(|text| !account(text.get_ref())) {
        sheet.error(text.span(), "an AWS account has 12 digits");
    }
    let detail = ProviderDetail::Aws {
        region: region.clone(),
        endpoint: endpoint(sheet, raw.endpoint.as_ref()),
        assume_role: raw.assume_role.as_ref().and_then(|role| assume_role(sheet, role)),
        our_accounts: plain(raw.our_accounts),
    };
    Some(Read {
        detail,
        control_key: raw.control_key,
        calls_per_second: raw.calls_per_second,
        credentials_expire_at: raw.credentials_expire_at,
    })
}

fn assume_role(sheet: &mut Sheet<'_>, raw: &raw::AssumeRole) -> Option<AssumeRole> {
    let role = AssumeRole { arn: raw.arn.get_ref().clone(), external_id: raw.external_id.as_ref().map(|text| text.get_ref().clone()) };
    match super::keys::role(&role, sheet.base_dir()) {
        Ok(role) => Some(role),
        Err(why) => {
            sheet.error(raw.arn.span(), why);
            None
        }
    }
}

fn gcp<'a>(sheet: &mut Sheet<'a>, value: &Spanned<DeValue<'a>>) -> Option<Read> {
    let raw: raw::GcpProvider = sheet.read(value)?;
    let mut credentials = GcpCredentials::Default;
    if let Some(text) = &raw.credentials {
        match (text.get_ref().as_str(), text.get_ref().strip_prefix("file:")) {
            ("default", _) => {}
            ("anonymous", _) => credentials = GcpCredentials::Anonymous,
            (_, Some(path)) if !path.is_empty() => credentials = GcpCredentials::File(crate::config::sheet::join(sheet.base_dir(), path)),
            (_, Some(_) | None) => {
                sheet.error(
                    text.span(),
                    "unknown credentials, expected one of: default, anonymous, file:PATH; what stands here is not shown",
                );
            }
        }
    }
    if let Some(text) = &raw.project_number
        && (text.get_ref().is_empty() || !text.get_ref().chars().all(|c| c.is_ascii_digit()))
    {
        sheet.error(text.span(), "a project number has digits only");
    }
    let detail = ProviderDetail::Gcp {
        endpoint: endpoint(sheet, raw.endpoint.as_ref()),
        credentials,
        project_number: raw.project_number.map(Spanned::into_inner),
        our_accounts: plain(raw.our_accounts),
    };
    Some(Read {
        detail,
        control_key: raw.control_key,
        calls_per_second: raw.calls_per_second,
        credentials_expire_at: raw.credentials_expire_at,
    })
}

fn azure<'a>(sheet: &mut Sheet<'a>, value: &Spanned<DeValue<'a>>) -> Option<Read> {
    let raw: raw::AzureProvider = sheet.read(value)?;
    let credentials = raw.credentials.as_ref().and_then(|raw| azure_credentials(sheet, raw)).unwrap_or(AzureCredentials::Default);
    let usual = || AZURE_HOSTS.iter().map(|host| (*host).to_owned()).collect();
    let host_suffixes = match raw.host_suffixes {
        None => usual(),
        Some(texts) => {
            if texts.get_ref().is_empty() {
                sheet.error(texts.span(), "expected at least one host name");
            }
            // With a fault the usual hosts stand in, so that the keys have no faults that are not theirs.
            let found: Option<Vec<String>> = texts.get_ref().iter().map(|text| host_suffix(sheet, text)).collect();
            found.filter(|found| !found.is_empty()).unwrap_or_else(usual)
        }
    };
    let detail = ProviderDetail::Azure {
        credentials,
        ca_file: raw.ca_file.as_ref().and_then(|text| sheet.path(text)),
        verify_challenge_resource: raw.verify_challenge_resource.unwrap_or(true),
        host_suffixes,
        our_accounts: plain(raw.our_accounts),
    };
    Some(Read {
        detail,
        control_key: raw.control_key,
        calls_per_second: raw.calls_per_second,
        credentials_expire_at: raw.credentials_expire_at,
    })
}

/// A suffix of one label would match every host of a top-level domain.
fn host_suffix(sheet: &mut Sheet<'_>, text: &Text) -> Option<String> {
    let suffix = text.get_ref().trim_start_matches('.').to_ascii_lowercase();
    let label = |label: &str| !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if suffix.contains('.') && suffix.split('.').all(label) {
        return Some(suffix);
    }
    sheet.error(text.span(), "expected a host name of two labels or more, such as \"vault.azure.net\"");
    None
}

fn azure_credentials(sheet: &mut Sheet<'_>, raw: &Spanned<raw::AzureCredentials>) -> Option<AzureCredentials> {
    let (at, raw) = (raw.span(), raw.get_ref());
    match (&raw.client_secret, &raw.static_token) {
        (Some(client), None) => Some(AzureCredentials::ClientSecret {
            tenant: client.tenant.get_ref().clone(),
            client: client.client.get_ref().clone(),
            secret: super::notices::secret(sheet, &client.secret)?,
        }),
        (None, Some(token)) => Some(AzureCredentials::StaticToken(super::notices::secret(sheet, token)?)),
        (Some(_), Some(_)) | (None, None) => {
            sheet.error(at, "expected exactly one of: client_secret, static_token");
            None
        }
    }
}

fn endpoint(sheet: &mut Sheet<'_>, text: Option<&Text>) -> Option<String> {
    let text = text?;
    match values::authority(text.get_ref(), &["http", "https"], "http://, https://") {
        Ok(parts) => {
            if parts.scheme == "http" && !values::is_loopback(&parts.host) {
                sheet.warn(&text.span(), "calls and their credentials travel unencrypted to a host beyond loopback");
            }
            Some(text.get_ref().clone())
        }
        Err(why) => {
            sheet.error(text.span(), why.to_string());
            None
        }
    }
}

fn plain(texts: Vec<Text>) -> Vec<String> {
    texts.into_iter().map(Spanned::into_inner).collect()
}
