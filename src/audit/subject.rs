//! inside
//! One spelling for what an event is about and for what a key is called, so that the two can meet:
//! by ARN, key id, alias, resource name or vault. It must never guess an account.

use crate::key::{KeyRef, Resource};
use crate::words::ProviderKind;

/// Longest subject that is looked at.
const MOST: usize = 512;

/// Everything that a registered key is spoken of by: itself first, then what stands above it (key
/// ring and project, vault). `pinned` is the key behind an alias.
#[must_use]
pub fn of_key(reference: &KeyRef, pinned: Option<&str>) -> Vec<String> {
    match &reference.resource {
        Resource::Aws { .. } => std::iter::once(&*reference.text).chain(pinned).filter_map(aws_arn).collect(),
        Resource::Gcp { project, location, key_ring, key } => vec![
            format!("gcp:projects/{project}/locations/{location}/keyRings/{key_ring}/cryptoKeys/{key}"),
            format!("gcp:projects/{project}/locations/{location}/keyRings/{key_ring}"),
            format!("gcp:projects/{project}"),
        ],
        Resource::Azure { host, name, .. } => {
            let vault = azure_vault(host);
            vec![format!("{vault}/keys/{}", name.to_ascii_lowercase()), vault]
        }
        Resource::Local { name } => vec![format!("local:{name}")],
    }
}

/// Whether a subject names one key, not something above it.
#[must_use]
pub fn is_key(subject: &str) -> bool {
    match subject.split_once(':') {
        Some(("gcp", rest)) => rest.contains("/cryptoKeys/"),
        Some(("azure", rest)) => rest.contains("/keys/"),
        Some(_) | None => true,
    }
}

/// `arn:PARTITION:kms:REGION:ACCOUNT:key/ID` without its partition.
#[must_use]
pub fn aws_arn(arn: &str) -> Option<String> {
    if arn.len() > MOST {
        return None;
    }
    let mut parts = arn.splitn(6, ':');
    let head = (parts.next()?, parts.next()?, parts.next()?);
    let (region, account, resource) = (parts.next()?, parts.next()?, parts.next()?);
    let kms = head.0 == "arn" && head.2 == "kms" && (resource.starts_with("key/") || resource.starts_with("alias/"));
    (kms && !account.is_empty()).then(|| format!("aws:{region}:{account}:{resource}"))
}

/// What a request named: an ARN, a bare key id, or an alias, in the region and account of the event.
#[must_use]
pub fn aws_named(text: &str, region: &str, account: &str) -> Option<String> {
    if text.starts_with("arn:") {
        return aws_arn(text);
    }
    if text.is_empty() || text.len() > MOST || region.is_empty() || account.is_empty() {
        return None;
    }
    let resource = if text.starts_with("alias/") || text.starts_with("key/") { text.to_owned() } else { format!("key/{text}") };
    Some(format!("aws:{region}:{account}:{resource}"))
}

/// A Google resource name, its version taken off; `project` takes the place of a project number.
#[must_use]
pub fn gcp_named(name: &str, project: Option<&str>) -> Option<(String, Option<String>)> {
    let name = name.strip_prefix("//cloudkms.googleapis.com/").unwrap_or(name);
    if name.len() > MOST {
        return None;
    }
    let parts: Vec<&str> = name.split('/').collect();
    let (key, version) = match parts.as_slice() {
        [key @ .., "cryptoKeyVersions", version] => (key, Some((*version).to_owned())),
        whole => (whole, None),
    };
    let ["projects", own, rest @ ..] = key else { return None };
    let shaped = matches!(rest, [] | ["locations", _] | ["locations", _, "keyRings", _] | ["locations", _, "keyRings", _, "cryptoKeys", _]);
    if !shaped {
        return None;
    }
    let project = project.filter(|text| !text.is_empty()).unwrap_or(own);
    let tail: String = rest.iter().flat_map(|part| ["/", part]).collect();
    // A location alone is no level of its own for keys.
    let tail = if rest.len() == 2 { String::new() } else { tail };
    Some((format!("gcp:projects/{project}{tail}"), version))
}

/// The vault of a host: its first label, or the whole host where that is an address.
#[must_use]
pub fn azure_vault(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    let address = host.trim_matches(['[', ']']).parse::<core::net::IpAddr>().is_ok();
    let label = if address { &*host } else { host.split('.').next().unwrap_or(&host) };
    format!("azure:{label}")
}

/// `https://VAULT/keys/NAME[/VERSION]`, or any other address of the vault, which names the vault alone.
#[must_use]
pub fn azure_url(url: &str) -> Option<(String, Option<String>)> {
    if url.len() > MOST {
        return None;
    }
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let vault = azure_vault(host);
    let path = path.split('?').next().unwrap_or("");
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match parts.as_slice() {
        ["keys" | "deletedkeys", name, rest @ ..] => {
            let version = rest.first().filter(|v| v.len() == 32 && v.chars().all(|c| c.is_ascii_hexdigit()));
            Some((format!("{vault}/keys/{}", name.to_ascii_lowercase()), version.map(|v| (*v).to_owned())))
        }
        _ => Some((vault, None)),
    }
}

/// The vault in a resource id of Azure's control plane, wherever in it.
#[must_use]
pub fn azure_resource(id: &str) -> Option<String> {
    if id.len() > MOST.saturating_mul(2) {
        return None;
    }
    let lower = id.to_ascii_lowercase();
    let mut parts = lower.split('/');
    while let Some(part) = parts.next() {
        if ["vaults", "managedhsms", "deletedvaults", "deletedmanagedhsms"].contains(&part) {
            let vault = parts.next().filter(|name| !name.is_empty()).map(azure_vault)?;
            return match (parts.next(), parts.next()) {
                (Some("keys"), Some(key)) => Some(format!("{vault}/keys/{key}")),
                (Some(_) | None, Some(_) | None) => Some(vault),
            };
        }
    }
    None
}

/// The subject prefix of a provider kind.
#[must_use]
pub const fn prefix(kind: ProviderKind) -> &'static str {
    match kind {
        ProviderKind::Aws => "aws",
        ProviderKind::Gcp => "gcp",
        ProviderKind::Azure => "azure",
        ProviderKind::Local => "local",
    }
}
