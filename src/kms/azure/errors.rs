//! outside
//! What Azure's refusals mean: tables from codes, then sentences, to failure kinds and `stated`.
//! Translates only; a status alone never says that a key is gone, and doubt is never stated.

use azure_core::error::{Error, ErrorKind};
use serde_json::Value;

use super::wire::{NameFault, Oversized};
use crate::kms::KmsError;
use crate::words::FailureKind;

/// What we asked for: only a refusal of the data itself can be a stated withdrawal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// wrapKey or unwrapKey
    Data,
    /// get, list, deletedkeys
    Metadata,
    /// A token for ourselves.
    Token,
}

/// What the classifier must know about a call beyond the answer.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    pub asked: Asked,
    /// The tenant that we sign in to is the customer's, not one of ours.
    pub their_tenant: bool,
    /// The vault's name last resolved to private addresses only.
    pub private_endpoint: bool,
}

/// The answer of a vault that is not a success.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Refusal {
    pub status: u16,
    pub code: Option<String>,
    /// Innermost code.
    pub inner: Option<String>,
    pub message: String,
}

/// No token for us.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SignInFault {
    #[error("{host} answered {status}: {code} {message}")]
    Refused { host: String, status: u16, code: String, message: String },
    #[error("{host} did not answer: {why}")]
    Unreached { host: String, why: String },
}

impl SignInFault {
    /// Reads a refusal of Entra ID or of the machine's metadata service.
    #[must_use]
    pub fn refused(host: &str, status: u16, body: &[u8]) -> Self {
        let json: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        let text = |name: &str| json.get(name).and_then(Value::as_str).map(str::to_owned);
        let number = json.get("error_codes").and_then(|codes| codes.get(0)).and_then(Value::as_u64);
        let message = text("error_description").unwrap_or_default();
        // Entra writes its code in front of the text too: `AADSTS700016: ...`.
        let named = message.split(':').next().filter(|word| word.starts_with("AADSTS")).map(str::to_owned);
        let code = number.map(|n| format!("AADSTS{n}")).or(named).or_else(|| text("error")).unwrap_or_else(|| format!("http_{status}"));
        Self::Refused { host: host.to_owned(), status, code, message }
    }
}

/// What a code or a sentence says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Meaning {
    Is(FailureKind),
    /// The key's own state, told by the service.
    States(FailureKind),
    /// A right is missing; which one decides.
    Denied,
}

use FailureKind as K;
use Meaning::{Denied, Is, States};

/// Innermost and outer codes of vaults and managed HSMs.
const CODES: &[(&str, Meaning)] = &[
    ("KeyDisabled", States(K::Disabled)),
    ("KeyExpired", Is(K::Expired)),
    ("KeyNotYetValid", Is(K::Expired)),
    ("ObjectIsBeingDeleted", States(K::PendingDeletion)),
    ("ObjectIsDeletedButRecoverable", States(K::PendingDeletion)),
    ("ObjectIsBeingRecovered", Is(K::Unclassified)),
    ("KeyNotFound", Is(K::Destroyed)),
    ("ForbiddenByRbac", Denied),
    ("ForbiddenByPolicy", Denied),
    ("AccessDenied", Denied),
    ("ForbiddenByFirewall", Is(K::NetworkBlocked)),
    ("ForbiddenByConnection", Is(K::NetworkBlocked)),
    ("ForbiddenByNetworkSecurityPerimeter", Is(K::NetworkBlocked)),
    ("KeyOperationForbidden", Is(K::Misconfigured)),
    ("BadParameter", Is(K::Misconfigured)),
    ("Unauthorized", Is(K::Credentials)),
    ("Throttled", Is(K::Throttled)),
    ("TooManyRequests", Is(K::Throttled)),
    ("ServiceUnavailable", Is(K::ProviderFault)),
    ("InternalError", Is(K::ProviderFault)),
    ("InternalServerError", Is(K::ProviderFault)),
    ("BadGateway", Is(K::ProviderFault)),
    ("GatewayTimeout", Is(K::ProviderFault)),
    ("RequestTimeout", Is(K::ProviderFault)),
];

/// Sentences that are finer than the code above them; looked for before the codes.
const FINER: &[(&str, Meaning)] = &[("Access denied to first party service", Is(K::Credentials))];

/// Sentences that name the customer's own key manager behind a managed HSM. What it answers is
/// passed through under ordinary codes, so the sentence must come first.
const EXTERNAL: &[&str] = &["External HSM", "external HSM", "EKM proxy", "EKM Proxy", "external key manager"];

/// Sentences of older answers that carry no inner code.
const SENTENCES: &[(&str, Meaning)] = &[
    ("is not allowed on a disabled key", States(K::Disabled)),
    ("is not allowed on an expired key", Is(K::Expired)),
    ("is not yet valid", Is(K::Expired)),
    ("is currently being deleted", States(K::PendingDeletion)),
    ("in a deleted but recoverable state", States(K::PendingDeletion)),
    ("Client address is not authorized", Is(K::NetworkBlocked)),
    ("Public network access is disabled", Is(K::NetworkBlocked)),
    ("not allowed by NSP rules", Is(K::NetworkBlocked)),
    ("is not permitted on this key", Is(K::Misconfigured)),
    ("does not have keys ", Denied),
    ("Caller is not authorized to perform action", Denied),
    ("Not authorized to access ", Denied),
];

/// What the SDK itself says before anything is sent.
const CLIENT: &[(&str, K)] = &[
    ("challenge resource", K::Misconfigured),
    ("non-TLS protected endpoints", K::Misconfigured),
    ("no scope or resource", K::Unclassified),
];

/// Entra ID codes that are the tenant's own decision about our application: withdrawn, never
/// consented, disabled, or kept out by Conditional Access.
const TENANTS_DECISION: &[&str] = &[
    "AADSTS700016",
    "AADSTS7000229",
    "AADSTS7000112",
    "AADSTS65001",
    "AADSTS500011",
    "AADSTS50105",
    "AADSTS53000",
    "AADSTS53001",
    "AADSTS53002",
    "AADSTS53003",
    "AADSTS53004",
    "AADSTS530035",
];

/// Entra ID codes for a tenant that does not exist or is not named rightly.
const WRONG_TENANT: &[&str] = &["AADSTS90002", "AADSTS900021", "AADSTS900023", "AADSTS900382", "AADSTS50059"];

/// Places where a refusal names the missing right: text before it, text after it.
const RIGHTS: &[(&str, &str)] = &[("Action: '", "'"), ("Not authorized to access ", " on "), ("does not have keys ", " permission")];

/// Rights that the data calls need.
const DATA_RIGHTS: &[&str] = &["wrap", "unwrap", "wrapkey", "unwrapkey", "encrypt", "decrypt"];
/// Rights that only describing needs.
const METADATA_RIGHTS: &[&str] = &["read", "get", "list"];

fn find<T: Copy>(table: &[(&str, T)], matches: impl Fn(&str) -> bool) -> Option<T> {
    table.iter().find(|(text, _)| matches(text)).map(|(_, meaning)| *meaning)
}

/// The right that a refusal names, such as `unwrap`, `read`, `create`.
fn missing_right(message: &str) -> Option<String> {
    RIGHTS.iter().find_map(|(before, after)| {
        let named = message.split_once(before)?.1.split_once(after)?.0;
        // `Microsoft.KeyVault/vaults/keys/unwrap/action`, or the bare word of an access policy.
        let right = named.trim_end_matches("/action").rsplit('/').next()?;
        Some(right.to_ascii_lowercase())
    })
}

fn denied(asked: Asked, message: &str) -> (K, bool) {
    match missing_right(message) {
        Some(right) if DATA_RIGHTS.contains(&right.as_str()) => (K::AccessDenied, true),
        // A right to look is no right to use: the unwrap decides.
        Some(right) if METADATA_RIGHTS.contains(&right.as_str()) => (K::AccessDenied, false),
        // A right that a probe never needs.
        Some(_) => (K::Misconfigured, false),
        None => (K::AccessDenied, asked == Asked::Data),
    }
}

/// By status, when neither code nor sentence is known. Only JSON that a vault wrote can deny.
fn by_status(status: u16, has_code: bool) -> K {
    match status {
        400 => K::Misconfigured,
        401 => K::Credentials,
        403 if has_code => K::AccessDenied,
        429 => K::Throttled,
        408 | 500..=599 => K::ProviderFault,
        _ => K::Unclassified,
    }
}

/// The customer's own key manager spoke, or could not be reached.
fn by_external(status: u16) -> K {
    match status {
        400 => K::Misconfigured,
        403 => K::AccessDenied,
        404 => K::Destroyed,
        429 => K::Throttled,
        _ => K::KeyStoreUnavailable,
    }
}

/// Kind and `stated` of a vault's refusal.
#[must_use]
pub fn judge(asked: Asked, refusal: &Refusal) -> (FailureKind, bool) {
    let message = refusal.message.as_str();
    if EXTERNAL.iter().any(|sentence| message.contains(sentence)) {
        return (by_external(refusal.status), false);
    }
    let by_code = |code: &Option<String>| code.as_deref().and_then(|code| find(CODES, |known| known == code));
    let meaning = find(FINER, |sentence| message.contains(sentence))
        .or_else(|| by_code(&refusal.inner))
        .or_else(|| by_code(&refusal.code))
        .or_else(|| find(SENTENCES, |sentence| message.contains(sentence)));
    match meaning {
        Some(Is(kind)) => (kind, false),
        Some(States(kind)) => (kind, true),
        Some(Denied) => denied(asked, message),
        None => (by_status(refusal.status, refusal.code.is_some()), false),
    }
}

/// Kind of a failed sign-in.
#[must_use]
pub fn judge_sign_in(their_tenant: bool, fault: &SignInFault) -> FailureKind {
    let SignInFault::Refused { host, status, code, .. } = fault else { return K::Credentials };
    let metadata_service = host.parse::<std::net::IpAddr>().is_ok();
    match code.as_str() {
        code if WRONG_TENANT.contains(&code) => K::Misconfigured,
        code if TENANTS_DECISION.contains(&code) && their_tenant => K::AccessDenied,
        _ if metadata_service => K::Credentials,
        _ if *status == 429 => K::Throttled,
        _ if *status >= 500 => K::ProviderFault,
        _ => K::Credentials,
    }
}

/// Reads a vault's error body.
#[must_use]
pub fn read_refusal(status: u16, body: &[u8]) -> Refusal {
    let json: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let Some(error) = json.get("error").filter(|error| error.is_object()) else {
        return Refusal { status, message: plain(body), ..Refusal::default() };
    };
    let code_of = |value: &Value| value.get("code").and_then(Value::as_str).map(str::to_owned);
    let mut inner = None;
    let mut at = error.get("innererror");
    // Nested as deep as the guidelines allow in practice; a longer chain is not followed.
    for _ in 0..4 {
        let Some(value) = at else { break };
        inner = code_of(value).or(inner);
        at = value.get("innererror");
    }
    let message = error.get("message").and_then(Value::as_str).unwrap_or_default().to_owned();
    Refusal { status, code: code_of(error), inner, message }
}

/// Markup and control characters out, for a page that some proxy wrote.
fn plain(body: &[u8]) -> String {
    let mut in_tag = false;
    let text: String = String::from_utf8_lossy(body)
        .chars()
        .filter_map(|c| match c {
            '<' => {
                in_tag = true;
                Some(' ')
            }
            '>' => {
                in_tag = false;
                None
            }
            _ if in_tag => None,
            _ => Some(c),
        })
        .collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Classifies any error of the SDK.
#[must_use]
pub fn classify(circumstances: Circumstances, error: &Error) -> KmsError {
    if let Some(fault) = in_chain::<SignInFault>(error) {
        let kind = judge_sign_in(circumstances.their_tenant, fault);
        return match fault {
            SignInFault::Refused { code, message, .. } => KmsError::new(kind, false, code, message),
            SignInFault::Unreached { .. } => KmsError::new(kind, false, "sign_in", &fault.to_string()),
        };
    }
    if matches!(error.kind(), ErrorKind::Credential) {
        return KmsError::new(K::Credentials, false, "sign_in", &deepest(error));
    }
    if let ErrorKind::HttpResponse { status, raw_response, .. } = error.kind() {
        let body: &[u8] = raw_response.as_ref().map(|raw| raw.body().as_ref()).unwrap_or_default();
        let refusal = read_refusal(u16::from(*status), body);
        let (kind, stated) = judge(circumstances.asked, &refusal);
        let code = refusal.inner.clone().or_else(|| refusal.code.clone()).unwrap_or_else(|| format!("http_{}", refusal.status));
        return KmsError::new(kind, stated, &code, &refusal.message);
    }
    transport(circumstances, error)
}

fn transport(circumstances: Circumstances, error: &Error) -> KmsError {
    let text = deepest(error);
    let (kind, code) = if circumstances.asked == Asked::Token {
        (K::Credentials, "sign_in")
    } else if let Some(fault) = in_chain::<NameFault>(error) {
        match fault {
            NameFault::Nonexistent => (K::Unreachable, "nxdomain"),
            NameFault::Unknown => (K::Unreachable, "dns"),
        }
    } else if in_chain::<Oversized>(error).is_some() {
        (K::Unclassified, "oversized")
    } else if let Some(tls) = in_chain::<rustls::Error>(error) {
        match tls {
            // Somebody between us and the vault speaks for it.
            rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer) => (K::NetworkBlocked, "tls_unknown_issuer"),
            _ => (K::Unreachable, "tls"),
        }
    } else if let Some(kind) = find(CLIENT, |sentence| error.to_string().contains(sentence)) {
        (kind, "client")
    } else {
        connection(circumstances.private_endpoint, error)
    };
    KmsError::new(kind, false, code, &text)
}

fn connection(private_endpoint: bool, error: &Error) -> (K, &'static str) {
    use std::io::ErrorKind as Io;
    let http = in_chain::<reqwest::Error>(error);
    let connecting = http.is_some_and(reqwest::Error::is_connect);
    let io = causes(error).filter_map(|cause| cause.downcast_ref::<std::io::Error>()).last().map(std::io::Error::kind);
    let no_way = matches!(io, Some(Io::NetworkUnreachable | Io::HostUnreachable | Io::TimedOut));
    let late = http.is_some_and(reqwest::Error::is_timeout);
    match (connecting, io) {
        // A private-link address that nothing routes to: the owner's network, not the vault.
        (true, _) if private_endpoint && (late || no_way) => (K::NetworkBlocked, "private_endpoint"),
        (true, _) if late => (K::Timeout, "connect_timeout"),
        (_, _) if late => (K::Timeout, "timeout"),
        (_, Some(Io::ConnectionRefused)) => (K::Unreachable, "refused"),
        (_, Some(Io::ConnectionReset | Io::ConnectionAborted | Io::BrokenPipe | Io::UnexpectedEof)) => (K::Unreachable, "reset"),
        (_, Some(Io::NetworkUnreachable | Io::HostUnreachable | Io::AddrNotAvailable)) => (K::Unreachable, "no_route"),
        (true, _) => (K::Unreachable, "connect"),
        (false, _) if matches!(error.kind(), ErrorKind::Io | ErrorKind::Connection) => (K::Unreachable, "reset"),
        (false, _) if matches!(error.kind(), ErrorKind::DataConversion) => (K::Unclassified, "undecodable"),
        (false, _) => (K::Unclassified, "client"),
    }
}

/// The causes of an error, itself first. An IO error names only what lies below what it carries, so it
/// is opened by hand.
fn causes(error: &Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |cause| match cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(carried) => Some(carried),
        None => cause.source(),
    })
}

fn in_chain<T: std::error::Error + 'static>(error: &Error) -> Option<&T> {
    causes(error).find_map(|cause| cause.downcast_ref::<T>())
}

/// The text of the first cause: what really happened, without the layers above it.
#[must_use]
pub fn deepest(error: &Error) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests;
