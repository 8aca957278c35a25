//! inside
//! Names of things: registered keys, providers, workspaces, key references of the three clouds.
//! Parses identifiers and says which account owns a key; it must never guess an owner.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::words::ProviderKind;

/// An identifier that does not have the allowed form.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadName {
    #[error("{what} `{text}` is empty or longer than 128 characters")]
    Length { what: &'static str, text: String },
    #[error("{what} `{text}` has the character `{found}`; allowed are letters, digits and {allowed}")]
    Character { what: &'static str, text: String, found: char, allowed: &'static str },
    #[error("`{text}` is not a key of provider kind {kind}: {why}")]
    KeyRef { text: String, kind: ProviderKind, why: &'static str },
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $extra:literal, $allowed:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(Arc<str>);

        impl $name {
            /// # Errors
            /// If the text is empty, longer than 128 characters, or has a character outside the allowed set.
            pub fn new(text: &str) -> Result<Self, BadName> {
                check_name($what, text, $extra, $allowed)?;
                Ok(Self(text.into()))
            }
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl std::str::FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                Self::new(text)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

fn check_name(what: &'static str, text: &str, extra: &str, allowed: &'static str) -> Result<(), BadName> {
    if text.is_empty() || text.len() > 128 {
        return Err(BadName::Length { what, text: text.chars().take(140).collect() });
    }
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && !extra.contains(*c)) {
        Some(found) => Err(BadName::Character { what, text: text.to_owned(), found, allowed }),
        None => Ok(()),
    }
}

name!(
    /// Our id of a registered key.
    KeyId, "key id", "._-", "`._-`"
);
name!(
    /// Our name of a provider.
    ProviderId, "provider", "._-", "`._-`"
);
name!(
    /// A workspace of the operator.
    WorkspaceId, "workspace", "._-:", "`._-:`"
);
name!(
    /// A receiver of notices.
    ReceiverId, "receiver", "._-", "`._-`"
);
name!(
    /// A configured lever.
    LeverId, "lever", "._-", "`._-`"
);
name!(
    /// A named policy.
    PolicyId, "policy", "._-", "`._-`"
);

/// One generation of a key's material, in the provider's own words.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyVersion(pub Arc<str>);

impl KeyVersion {
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for KeyVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a key is addressed, by provider kind.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Resource {
    /// `arn:PARTITION:kms:REGION:ACCOUNT:key/ID` or `...:alias/NAME`.
    Aws { region: Box<str>, account: Box<str>, alias: bool },
    /// `projects/P/locations/L/keyRings/R/cryptoKeys/K`, without a version.
    Gcp { project: Box<str>, location: Box<str>, key_ring: Box<str>, key: Box<str> },
    /// `https://VAULT/keys/NAME`, without a version.
    Azure { host: Box<str>, port: Option<u16>, name: Box<str> },
    /// A key of the embedded software KMS.
    Local { name: Box<str> },
}

/// A key as the owner names it, parsed. The text is kept as written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeyRef {
    pub text: Arc<str>,
    pub resource: Resource,
}

impl KeyRef {
    /// Parses a key reference of the given provider kind.
    ///
    /// # Errors
    /// If the text does not have the form of that provider; the error says what is missing.
    pub fn parse(kind: ProviderKind, text: &str) -> Result<Self, BadName> {
        let parsed = match kind {
            ProviderKind::Aws => parse_aws(text),
            ProviderKind::Gcp => parse_gcp(text),
            ProviderKind::Azure => parse_azure(text),
            ProviderKind::Local => parse_local(text),
        };
        match parsed {
            Ok(resource) => Ok(Self { text: text.into(), resource }),
            Err(why) => Err(BadName::KeyRef { text: text.to_owned(), kind, why }),
        }
    }

    /// The account that owns the key as far as its name tells: AWS account, Google project, Azure
    /// vault host (the tenant is not in the name), local key name.
    #[must_use]
    pub fn account(&self) -> &str {
        match &self.resource {
            Resource::Aws { account, .. } => account,
            Resource::Gcp { project, .. } => project,
            Resource::Azure { host, .. } => host,
            Resource::Local { name } => name,
        }
    }
}

impl KeyRef {
    /// What the provider counts calls by: AWS region, Google location, Azure vault.
    #[must_use]
    pub fn region(&self) -> &str {
        match &self.resource {
            Resource::Aws { region, .. } => region,
            Resource::Gcp { location, .. } => location,
            Resource::Azure { host, .. } => host,
            Resource::Local { .. } => "",
        }
    }
}

fn parse_aws(text: &str) -> Result<Resource, &'static str> {
    let mut parts = text.splitn(6, ':');
    if parts.next() != Some("arn") {
        return Err("expected a full ARN, arn:aws:kms:REGION:ACCOUNT:key/ID or .../alias/NAME");
    }
    let partition = parts.next().unwrap_or("");
    if !partition.starts_with("aws") {
        return Err("the partition must be aws, aws-cn, aws-us-gov or the like");
    }
    if parts.next() != Some("kms") {
        return Err("the service of the ARN must be kms");
    }
    let region = parts.next().unwrap_or("");
    if region.is_empty() || !region.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-') {
        return Err("the region is missing or malformed");
    }
    let account = parts.next().unwrap_or("");
    if account.len() != 12 || !account.chars().all(|c| c.is_ascii_digit()) {
        return Err("the account must be 12 digits");
    }
    let resource = parts.next().unwrap_or("");
    let (alias, id) = match resource.split_once('/') {
        Some(("key", id)) => (false, id),
        Some(("alias", id)) => (true, id),
        Some(_) | None => return Err("the resource must be key/ID or alias/NAME"),
    };
    let shaped = |c: char| c.is_ascii_alphanumeric() || "-_/".contains(c);
    if id.is_empty() || id.len() > 256 || !id.chars().all(shaped) {
        return Err("the key id or alias is empty or malformed");
    }
    Ok(Resource::Aws { region: region.into(), account: account.into(), alias })
}

fn parse_gcp(text: &str) -> Result<Resource, &'static str> {
    let parts: Vec<&str> = text.split('/').collect();
    let shaped = |s: &&str| !s.is_empty() && s.len() <= 128 && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c));
    match parts.as_slice() {
        ["projects", project, "locations", location, "keyRings", key_ring, "cryptoKeys", key] => {
            if [project, location, key_ring, key].into_iter().all(shaped) {
                Ok(Resource::Gcp {
                    project: (*project).into(),
                    location: (*location).into(),
                    key_ring: (*key_ring).into(),
                    key: (*key).into(),
                })
            } else {
                Err("a part of the resource name is empty or malformed")
            }
        }
        [.., "cryptoKeyVersions", _] => Err("name the key without a version; versions are watched by themselves"),
        _ => Err("expected projects/P/locations/L/keyRings/R/cryptoKeys/K"),
    }
}

fn parse_azure(text: &str) -> Result<Resource, &'static str> {
    let rest = text.strip_prefix("https://").ok_or("expected https://VAULT/keys/NAME")?;
    let (authority, path) = rest.split_once('/').ok_or("expected https://VAULT/keys/NAME")?;
    if authority.contains('@') {
        return Err("a user part in the address is refused");
    }
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, Some(port.parse::<u16>().map_err(|_| "the port is not a number")?)),
        None => (authority, None),
    };
    if host.is_empty() || !host.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c)) {
        return Err("the vault host is empty or malformed");
    }
    let shaped = |s: &str| !s.is_empty() && s.len() <= 127 && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    match path.split('/').collect::<Vec<_>>().as_slice() {
        ["keys", name] if shaped(name) => Ok(Resource::Azure { host: host.to_ascii_lowercase().into(), port, name: (*name).into() }),
        ["keys", _, _] => Err("name the key without a version; versions are watched by themselves"),
        _ => Err("expected https://VAULT/keys/NAME"),
    }
}

fn parse_local(text: &str) -> Result<Resource, &'static str> {
    check_name("local key", text, "._-", "`._-`").map_err(|_| "a local key name has 1 to 128 letters, digits or `._-`")?;
    Ok(Resource::Local { name: text.into() })
}

/// Which wrapping call AWS is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WrapOperation {
    #[default]
    Encrypt,
    GenerateDataKey,
}

/// Another identity to take on before calling.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssumeRole {
    pub arn: String,
    /// A secret reference (`env:`, `file:`, `credential:`) or plain text.
    pub external_id: Option<String>,
}

/// Everything an adapter needs to address one key: the parsed name and the key's own options.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyTarget {
    pub reference: KeyRef,
    /// What the alias pointed to when it was pinned; adapters address this when present.
    pub pinned: Option<Arc<str>>,
    /// AWS encryption context; Google additional authenticated data is derived from it unless set.
    pub encryption_context: BTreeMap<String, String>,
    pub additional_authenticated_data: Option<String>,
    pub wrap_operation: WrapOperation,
    /// Azure algorithm name, `RSA-OAEP-256` unless set.
    pub algorithm: Option<String>,
    pub assume_role: Option<AssumeRole>,
    pub reader_role: Option<String>,
    /// Azure tenant of the vault.
    pub tenant: Option<String>,
    /// Google service account to impersonate.
    pub impersonate: Option<String>,
}

impl KeyTarget {
    /// A target with the default options.
    #[must_use]
    pub fn plain(reference: KeyRef) -> Self {
        Self {
            reference,
            pinned: None,
            encryption_context: BTreeMap::new(),
            additional_authenticated_data: None,
            wrap_operation: WrapOperation::Encrypt,
            algorithm: None,
            assume_role: None,
            reader_role: None,
            tenant: None,
            impersonate: None,
        }
    }
    /// The name to send to the provider: the pinned one if there is one.
    #[must_use]
    pub fn address(&self) -> &str {
        self.pinned.as_deref().unwrap_or(&self.reference.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_references_of_every_kind_parse_and_name_their_owner() {
        for (kind, text, account) in [
            (ProviderKind::Aws, "arn:aws:kms:us-east-2:444455556666:key/1234abcd-12ab-34cd-56ef-1234567890ab", "444455556666"),
            (ProviderKind::Aws, "arn:aws-us-gov:kms:us-gov-west-1:444455556666:alias/acme/prod", "444455556666"),
            (ProviderKind::Gcp, "projects/acme-keys/locations/us-central1/keyRings/r/cryptoKeys/k", "acme-keys"),
            (ProviderKind::Azure, "https://Acme-kv.vault.azure.net/keys/k1", "acme-kv.vault.azure.net"),
            (ProviderKind::Local, "demo", "demo"),
        ] {
            assert_eq!(KeyRef::parse(kind, text).map(|k| k.account().to_owned()), Ok(account.to_owned()), "{text}");
        }
    }

    #[test]
    fn malformed_references_are_refused_with_a_reason() {
        for (kind, text) in [
            (ProviderKind::Aws, "1234abcd-12ab-34cd-56ef-1234567890ab"),
            (ProviderKind::Aws, "arn:aws:s3:us-east-2:444455556666:key/x"),
            (ProviderKind::Aws, "arn:aws:kms:us-east-2:4444:key/x"),
            (ProviderKind::Aws, "arn:aws:kms:us-east-2:444455556666:key/"),
            (ProviderKind::Gcp, "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1"),
            (ProviderKind::Gcp, "projects//locations/l/keyRings/r/cryptoKeys/k"),
            (ProviderKind::Azure, "http://v.vault.azure.net/keys/k"),
            (ProviderKind::Azure, "https://u@v.vault.azure.net/keys/k"),
            (ProviderKind::Azure, "https://v.vault.azure.net/keys/k/version"),
            (ProviderKind::Local, "a b"),
        ] {
            assert!(KeyRef::parse(kind, text).is_err(), "{text}");
        }
        assert_eq!(KeyId::new("a b").unwrap_err().to_string(), "key id `a b` has the character ` `; allowed are letters, digits and `._-`");
        assert!(WorkspaceId::new("a:b").is_ok() && KeyId::new("a:b").is_err() && KeyId::new("").is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,300}") {
            for kind in ProviderKind::ALL {
                let _ = KeyRef::parse(*kind, &text);
            }
        }
    }
}
