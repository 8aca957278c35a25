//! inside
//! One registered key, wherever it is written: the file, a `keys_from` file, the API. One way of
//! judging for all. It must never let a key lead our token to a host that nobody named.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::raw;
use crate::config::sheet::unknown_value;
use crate::config::{AzureCredentials, Key, Provider, ProviderDetail, SecretRef, Source, values};
use crate::key::{AssumeRole, KeyId, KeyRef, KeyTarget, PolicyId, ProviderId, Resource, WorkspaceId, WrapOperation};
use crate::policy::Policy;
use crate::words::ProviderKind;

pub type Providers = BTreeMap<ProviderId, Provider>;
pub type Policies = BTreeMap<PolicyId, Arc<Policy>>;

const AZURE_ALGORITHMS: [&str; 5] = ["RSA-OAEP-256", "RSA-OAEP", "A128KW", "A192KW", "A256KW"];

/// What is wrong with a key: the field and the sentence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    pub field: &'static str,
    pub message: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// A key reference that this provider may be asked about.
///
/// # Errors
/// If it is not of the provider's kind, or its host is not one that our token may be sent to.
pub fn reference(provider: &Provider, text: &str) -> Result<KeyRef, String> {
    let kind = provider.kind();
    let reference = KeyRef::parse(kind, text).map_err(|fault| match fault {
        crate::key::BadName::KeyRef { why, .. } => format!("not a key of provider kind {kind}: {why}"),
        crate::key::BadName::Length { .. } | crate::key::BadName::Character { .. } => format!("not a key of provider kind {kind}"),
    })?;
    if let (ProviderDetail::Azure { credentials, verify_challenge_resource, host_suffixes, .. }, Resource::Azure { host, port, .. }) =
        (&provider.detail, &reference.resource)
        && !values::is_loopback(host)
    {
        if matches!(credentials, AzureCredentials::StaticToken(_)) {
            return Err("a provider with `static_token` is an emulator: the host must be a loopback address".to_owned());
        }
        if !verify_challenge_resource {
            return Err(
                "a provider with `verify_challenge_resource = false` is an emulator: the host must be a loopback address".to_owned()
            );
        }
        if port.is_some() {
            return Err("a port is allowed only with a loopback address".to_owned());
        }
        let below = |suffix: &String| host.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'));
        if !host_suffixes.iter().any(below) {
            return Err(format!("the host is not below one of host_suffixes: {}", host_suffixes.join(", ")));
        }
    }
    Ok(reference)
}

/// A role of AWS by form; a `file:` of the external id is joined with `base_dir`.
///
/// # Errors
/// If the ARN is not one of a role, or the external id is a malformed reference.
pub fn role(raw: &AssumeRole, base_dir: &str) -> Result<AssumeRole, String> {
    role_arn(&raw.arn)?;
    let external_id = match raw.external_id.as_deref() {
        Some(text) if text.starts_with("env:") || text.starts_with("file:") || text.starts_with("credential:") => {
            Some(match values::secret_ref(text, base_dir).map_err(|why| format!("external_id: {why}"))? {
                SecretRef::Env(name) => format!("env:{name}"),
                SecretRef::File(path) => format!("file:{path}"),
                SecretRef::Credential(name) => format!("credential:{name}"),
            })
        }
        other => other.map(str::to_owned),
    };
    Ok(AssumeRole { arn: raw.arn.clone(), external_id })
}

fn role_arn(text: &str) -> Result<(), String> {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    match parts.as_slice() {
        ["arn", partition, "iam", "", account, role]
            if partition.starts_with("aws")
                && account.len() == 12
                && account.chars().all(|c| c.is_ascii_digit())
                && role.strip_prefix("role/").is_some_and(|name| !name.is_empty() && !name.contains(char::is_whitespace)) =>
        {
            Ok(())
        }
        _ => Err("expected a role, arn:aws:iam::ACCOUNT:role/NAME".to_owned()),
    }
}

/// Judges one key as written.
///
/// # Errors
/// Everything wrong with it.
pub fn key_of(raw: &raw::Key, providers: &Providers, policies: &Policies, source: Source, base_dir: &str) -> Result<Key, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut note = |field: &'static str, message: String| faults.push(Fault { field, message });
    let id = KeyId::new(&raw.id).map_err(|why| note("id", why.to_string())).ok();
    let provider = providers.get(raw.provider.as_str());
    if provider.is_none() {
        let names: Vec<&str> = providers.keys().map(ProviderId::as_str).collect();
        note("provider", unknown_reference("provider", &raw.provider, &names));
    }
    let policy_name = raw.policy.as_deref().unwrap_or("default");
    let policy = policies.get_key_value(policy_name).map(|(id, _)| id.clone());
    if policy.is_none() {
        let names: Vec<&str> = policies.keys().map(PolicyId::as_str).collect();
        note("policy", unknown_reference("policy", policy_name, &names));
    }
    let mut workspaces = Vec::new();
    for text in &raw.workspaces {
        match WorkspaceId::new(text) {
            Ok(workspace) if workspaces.contains(&workspace) => note("workspaces", format!("workspace `{workspace}` is named twice")),
            Ok(workspace) => workspaces.push(workspace),
            Err(why) => note("workspaces", why.to_string()),
        }
    }
    if raw.owner.as_deref().is_some_and(|owner| owner.is_empty() || owner.len() > 256 || owner.chars().any(char::is_control)) {
        note("owner", "an owner has 1 to 256 characters and no line break".to_owned());
    }
    let target = provider.and_then(|provider| target_of(raw, provider, base_dir, &mut note));
    if raw.notify_owner && raw.owner.as_deref().is_none_or(|owner| values::mail(owner).is_err()) {
        note("notify_owner", "needs a mail address as `owner`".to_owned());
    }
    match (id, provider, policy, target) {
        (Some(id), Some(provider), Some(policy), Some(target)) if faults.is_empty() => Ok(Key {
            id,
            provider: provider.id.clone(),
            workspaces,
            policy,
            owner: raw.owner.clone(),
            // The tenant of an Azure vault is not in its name.
            account: raw.account.clone().or_else(|| raw.tenant.clone()).unwrap_or_else(|| target.reference.account().to_owned()),
            target: Arc::new(target),
            labels: raw.labels.clone(),
            notify_owner: raw.notify_owner,
            source,
            refused: None,
        }),
        (Some(_) | None, Some(_) | None, Some(_) | None, Some(_) | None) => Err(faults),
    }
}

pub fn unknown_reference(what: &str, found: &str, names: &[&str]) -> String {
    let shown: String = found.chars().take(128).collect();
    if names.is_empty() {
        return format!("unknown {what} \"{}\"; none is configured", shown.escape_debug());
    }
    format!("unknown {what} \"{}\", expected one of: {}", shown.escape_debug(), names.join(", "))
}

/// The options of a key, each only where its provider knows it.
fn target_of(raw: &raw::Key, provider: &Provider, base_dir: &str, note: &mut impl FnMut(&'static str, String)) -> Option<KeyTarget> {
    use ProviderKind::{Aws, Azure, Gcp, Local};
    let kind = provider.kind();
    for (field, present, kinds) in [
        ("wrap_operation", raw.wrap_operation.is_some(), &[Aws][..]),
        ("assume_role", raw.assume_role.is_some(), &[Aws]),
        ("reader_role", raw.reader_role.is_some(), &[Aws]),
        ("tenant", raw.tenant.is_some(), &[Azure]),
        ("algorithm", raw.algorithm.is_some(), &[Azure]),
        ("impersonate", raw.impersonate.is_some(), &[Gcp]),
        ("additional_authenticated_data", raw.additional_authenticated_data.is_some(), &[Gcp, Local]),
        ("encryption_context", !raw.encryption_context.is_empty(), &[Aws, Gcp, Local]),
    ] {
        if present && !kinds.contains(&kind) {
            let names: Vec<&str> = kinds.iter().map(|kind| kind.as_str()).collect();
            note(field, format!("is known only to providers of kind {}; this one is {kind}", names.join(", ")));
        }
    }
    let wrap_operation = match raw.wrap_operation.as_deref() {
        None | Some("encrypt") => WrapOperation::Encrypt,
        Some("generate_data_key") => WrapOperation::GenerateDataKey,
        Some(other) => {
            note("wrap_operation", unknown_value(other, &["encrypt", "generate_data_key"]));
            WrapOperation::Encrypt
        }
    };
    if let Some(algorithm) = raw.algorithm.as_deref().filter(|algorithm| !AZURE_ALGORITHMS.contains(algorithm)) {
        note("algorithm", unknown_value(algorithm, &AZURE_ALGORITHMS));
    }
    let assume_role = raw.assume_role.as_ref().and_then(|raw| role(raw, base_dir).map_err(|why| note("assume_role", why)).ok());
    if let Some(Err(why)) = raw.reader_role.as_deref().map(role_arn) {
        note("reader_role", why);
    }
    let reference = reference(provider, &raw.key).map_err(|why| note("key", why)).ok()?;
    Some(KeyTarget {
        reference,
        pinned: None,
        encryption_context: raw.encryption_context.clone(),
        additional_authenticated_data: raw.additional_authenticated_data.clone(),
        wrap_operation,
        algorithm: raw.algorithm.clone(),
        assume_role,
        reader_role: raw.reader_role.clone(),
        tenant: raw.tenant.clone(),
        impersonate: raw.impersonate.clone(),
    })
}
