//! inside
//! What a refusal of Cloud KMS means: failure kind and whether the answer states it.
//! Judges by structured code first (precondition violation, error reason, status); words of a message
//! count only where they stand in [`PHRASES`], under the code they belong to. It must never guess whose
//! project is meant: only what the answer names as ours is our fault.

use crate::kms::KmsError;
use crate::words::FailureKind;
use FailureKind::{
    AccessDenied, Credentials, Destroyed, Disabled, KeyStoreUnavailable, Misconfigured, NetworkBlocked, PendingDeletion, ProviderFault,
    Throttled, Timeout, Unclassified, Unreachable,
};

/// Which projects are our own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OurProjects(Vec<String>);

impl OurProjects {
    #[must_use]
    pub fn new(project_number: Option<&str>, accounts: &[String]) -> Self {
        Self(project_number.map(str::to_owned).into_iter().chain(accounts.iter().cloned()).collect())
    }

    fn own(&self, project: &str) -> bool {
        self.0.iter().any(|ours| ours == project)
    }
}

/// A refusal in parts, whatever carried it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Refusal {
    pub http: Option<u16>,
    /// Name of the gRPC code, `PERMISSION_DENIED`; `None` if the body was no status of Google's.
    pub status: Option<String>,
    pub message: String,
    pub reason: Option<Reason>,
    /// Types of the violations of a `PreconditionFailure`.
    pub violations: Vec<String>,
}

/// `google.rpc.ErrorInfo`, as far as it is judged.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reason {
    pub reason: String,
    pub domain: String,
    pub consumer: Option<String>,
    pub permission: Option<String>,
}

/// What one row of a table says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Meaning {
    Is(FailureKind),
    Stated(FailureKind),
    /// The first kind if the answer names one of our projects. Otherwise the owner's doing or an
    /// accident on his side: ambiguous, which counts as a denial that is not stated.
    IfOurs(FailureKind),
    /// A missing right: on the key it is a denial, on service accounts or our quota project it is us.
    Permission,
    /// The message names the version's state.
    NamedState,
    /// The message tells (rows of [`PHRASES`] under this code), else this kind.
    Worded(FailureKind),
}
use Meaning::{IfOurs, Is, NamedState, Permission, Stated, Worded};

/// States of a key version that is not enabled, as they stand in answers, behind `KEY_` in violations
/// and in messages.
const STATES: &[(&str, Meaning)] = &[
    ("DISABLED", Stated(Disabled)),
    ("DESTROY_SCHEDULED", Stated(PendingDeletion)),
    ("PENDING_EXTERNAL_DESTRUCTION", Stated(PendingDeletion)),
    ("DESTROYED", Stated(Destroyed)),
    ("EXTERNAL_DESTRUCTION_FAILED", Stated(Destroyed)),
    // Material is still being made: passes by itself.
    ("PENDING_GENERATION", Is(KeyStoreUnavailable)),
    // Such a version never held material: a key registered too early, no revocation.
    ("PENDING_IMPORT", Is(Misconfigured)),
    ("IMPORT_FAILED", Is(Misconfigured)),
    ("GENERATION_FAILED", Is(Misconfigured)),
];

/// Violation types that name no state. The external key manager's come beside `KEY_ENABLED`.
const VIOLATIONS: &[(&str, Meaning)] = &[
    ("VPC_SERVICE_CONTROLS", Is(NetworkBlocked)),
    ("EXTERNAL_PERMISSION_DENIED", Worded(AccessDenied)),
    ("EXTERNAL_NOT_FOUND", Worded(KeyStoreUnavailable)),
    ("EXTERNAL_KEY_URI_INVALID", Is(Misconfigured)),
    ("EXTERNAL_KEY_HOST_NOT_WHITELISTED", Is(Misconfigured)),
    ("EXTERNAL_NOT_IMPLEMENTED", Is(Misconfigured)),
    ("DECRYPTION_FAILED", Is(Misconfigured)),
    ("EXTERNAL_RESOURCE_EXHAUSTED", Is(Throttled)),
    ("DNS", Is(KeyStoreUnavailable)),
    ("UNREACHABLE_NETWORK", Is(KeyStoreUnavailable)),
    ("OVERLOADED_EKM", Is(KeyStoreUnavailable)),
    ("TIMEOUT", Is(KeyStoreUnavailable)),
    ("REQUEST_CANCELLED", Is(KeyStoreUnavailable)),
    ("TLS_CERT", Is(KeyStoreUnavailable)),
    ("UNEXPECTED_RESPONSE", Is(KeyStoreUnavailable)),
    ("UNEXPECTED_ERROR", Is(KeyStoreUnavailable)),
    ("EXTERNAL_SERVER_ERROR", Is(KeyStoreUnavailable)),
];

/// Reasons of `google.rpc.ErrorInfo` (google/api/error_reason.proto and the older camel case ones).
const REASONS: &[(&str, Meaning)] = &[
    ("IAM_PERMISSION_DENIED", Permission),
    ("SERVICE_DISABLED", IfOurs(Misconfigured)),
    ("accessNotConfigured", IfOurs(Misconfigured)),
    ("BILLING_DISABLED", IfOurs(Misconfigured)),
    ("CONSUMER_INVALID", IfOurs(Misconfigured)),
    ("RESOURCE_PROJECT_INVALID", IfOurs(Misconfigured)),
    ("CONSUMER_SUSPENDED", IfOurs(Credentials)),
    ("GCP_SUSPENDED", IfOurs(Credentials)),
    ("SERVICE_NOT_VISIBLE", IfOurs(Misconfigured)),
    ("RESOURCE_USAGE_RESTRICTION_VIOLATED", IfOurs(Misconfigured)),
    ("LOCATION_ORG_POLICY_VIOLATED", IfOurs(Misconfigured)),
    ("LOCATION_POLICY_VIOLATED", IfOurs(Misconfigured)),
    ("TLS_ORG_POLICY_VIOLATED", IfOurs(Misconfigured)),
    ("LOCATION_TAX_POLICY_VIOLATED", IfOurs(Misconfigured)),
    ("SECURITY_POLICY_VIOLATED", Is(NetworkBlocked)),
    // Our own egress proxy adds the header that these two judge.
    ("ORG_RESTRICTION_VIOLATION", Is(Misconfigured)),
    ("ORG_RESTRICTION_HEADER_INVALID", Is(Misconfigured)),
    ("SYSTEM_PARAMETER_UNSUPPORTED", Is(Misconfigured)),
    ("RATE_LIMIT_EXCEEDED", Is(Throttled)),
    ("RESOURCE_QUOTA_EXCEEDED", Is(Throttled)),
    ("rateLimitExceeded", Is(Throttled)),
    ("userRateLimitExceeded", Is(Throttled)),
    ("quotaExceeded", Is(Throttled)),
    ("dailyLimitExceeded", Is(Throttled)),
    ("ACCESS_TOKEN_EXPIRED", Is(Credentials)),
    ("ACCESS_TOKEN_SCOPE_INSUFFICIENT", Is(Credentials)),
    ("ACCESS_TOKEN_TYPE_UNSUPPORTED", Is(Credentials)),
    ("ACCOUNT_STATE_INVALID", Is(Credentials)),
    ("CREDENTIALS_MISSING", Is(Credentials)),
    ("OVERLOADED_CREDENTIALS", Is(Credentials)),
    ("SESSION_COOKIE_INVALID", Is(Credentials)),
    ("USER_BLOCKED_BY_ADMIN", Is(Credentials)),
    // The project named in our own x-goog-user-project header.
    ("USER_PROJECT_DENIED", Is(Credentials)),
    ("API_KEY_INVALID", Is(Credentials)),
    ("API_KEY_SERVICE_BLOCKED", Is(Credentials)),
    ("API_KEY_IP_ADDRESS_BLOCKED", Is(Credentials)),
    ("API_KEY_HTTP_REFERRER_BLOCKED", Is(Credentials)),
    ("authError", Is(Credentials)),
];

/// gRPC codes, when nothing finer was said.
const CODES: &[(&str, Meaning)] = &[
    ("UNAUTHENTICATED", Worded(Credentials)),
    ("PERMISSION_DENIED", Worded(AccessDenied)),
    ("NOT_FOUND", Worded(Destroyed)),
    ("FAILED_PRECONDITION", Worded(Unclassified)),
    ("INVALID_ARGUMENT", Worded(Misconfigured)),
    ("OUT_OF_RANGE", Is(Misconfigured)),
    ("UNIMPLEMENTED", Is(Misconfigured)),
    ("RESOURCE_EXHAUSTED", Is(Throttled)),
    ("UNAVAILABLE", Is(ProviderFault)),
    ("INTERNAL", Is(ProviderFault)),
    ("DEADLINE_EXCEEDED", Is(ProviderFault)),
    ("ABORTED", Is(ProviderFault)),
    ("CANCELLED", Is(ProviderFault)),
    ("DATA_LOSS", Is(ProviderFault)),
];

/// The one place where words of a message count: code, words, meaning, and the code shown instead.
const PHRASES: &[(&str, &str, Meaning, Option<&str>)] = &[
    ("EXTERNAL_PERMISSION_DENIED", "when accessing the key", Stated(AccessDenied), None),
    ("EXTERNAL_NOT_FOUND", "Could not find a key", Is(Destroyed), None),
    ("FAILED_PRECONDITION", STATE_MARK, NamedState, None),
    ("FAILED_PRECONDITION", "This operation requires", Is(Misconfigured), Some("wrong_purpose")),
    ("FAILED_PRECONDITION", "API has not been used", IfOurs(Misconfigured), Some("SERVICE_DISABLED")),
    ("FAILED_PRECONDITION", "requires billing to be enabled", IfOurs(Misconfigured), Some("BILLING_DISABLED")),
    ("PERMISSION_DENIED", "API has not been used", IfOurs(Misconfigured), Some("SERVICE_DISABLED")),
    ("PERMISSION_DENIED", "requires billing to be enabled", IfOurs(Misconfigured), Some("BILLING_DISABLED")),
    ("PERMISSION_DENIED", "vpcServiceControlsUniqueIdentifier", Is(NetworkBlocked), Some("VPC_SERVICE_CONTROLS")),
    ("PERMISSION_DENIED", "prohibited by organization's policy", Is(NetworkBlocked), Some("SECURITY_POLICY_VIOLATED")),
    ("PERMISSION_DENIED", "insufficient authentication scopes", Is(Credentials), Some("ACCESS_TOKEN_SCOPE_INSUFFICIENT")),
    ("PERMISSION_DENIED", "permission to use project", IfOurs(Credentials), Some("USER_PROJECT_DENIED")),
    ("PERMISSION_DENIED", PERMISSION_MARK, Permission, None),
    ("NOT_FOUND", "The request concerns location", Is(Misconfigured), Some("wrong_location")),
    ("NOT_FOUND", "KeyRing ", Is(Misconfigured), None),
    ("NOT_FOUND", "Location ", Is(Misconfigured), None),
    ("INVALID_ARGUMENT", "The checksum in field", Is(Unreachable), Some("crc32c_mismatch")),
    ("INVALID_ARGUMENT", "API key not valid", Is(Credentials), Some("API_KEY_INVALID")),
    ("UNAUTHENTICATED", "reasonable timeframe", Is(Credentials), Some("clock")),
    ("TOKEN", "reasonable timeframe", Is(Credentials), Some("clock")),
    ("TOKEN", "invalid_grant", Is(Credentials), Some("invalid_grant")),
    ("TOKEN", PERMISSION_MARK, Is(Credentials), Some("IAM_PERMISSION_DENIED")),
    ("CLIENT", "No CA certificates", Is(Misconfigured), Some("tls_roots")),
    ("CONNECT", "dns error", Is(Unreachable), Some("dns")),
];
const STATE_MARK: &str = "current state is: ";
const PERMISSION_MARK: &str = "Permission '";

/// How a message names a project.
const PROJECT_MARKS: &[&str] = &["?project=", "project #", "project_number:", "projects/", "in project ", "use project "];

/// Judges a refusal that Google, or something in its place, answered.
#[must_use]
pub fn judge(refusal: &Refusal, ours: &OurProjects) -> KmsError {
    let judged = by_violation(refusal).or_else(|| by_reason(refusal)).or_else(|| by_code(refusal));
    match judged {
        Some((code, meaning)) => resolve(refusal, ours, code, meaning),
        None => by_http(refusal),
    }
}

/// Judges a failure that has no answer of Google's behind it by the words of the error chain.
/// `scope` is `TOKEN`, `CLIENT` or `CONNECT`; without a row it is `otherwise`.
#[must_use]
pub fn judge_words(scope: &'static str, otherwise: (FailureKind, &str), text: &str) -> KmsError {
    match phrase(scope, text) {
        Some((Is(kind), code)) => KmsError::new(kind, false, code.unwrap_or(otherwise.1), text),
        Some(_) | None => KmsError::new(otherwise.0, false, otherwise.1, text),
    }
}

/// What a version's state means when a control plane answer shows it; `None` when it is enabled.
#[must_use]
pub fn of_state(state: &str) -> Option<(FailureKind, bool)> {
    if state == "ENABLED" {
        return None;
    }
    match row(STATES, state) {
        Some((_, Stated(kind))) => Some((kind, true)),
        Some((_, Is(kind))) => Some((kind, false)),
        Some(_) | None => Some((Unclassified, false)),
    }
}

type Judged<'a> = (&'a str, Meaning);

fn row(table: &'static [(&'static str, Meaning)], code: &str) -> Option<Judged<'static>> {
    table.iter().find(|(name, _)| *name == code).copied()
}

fn phrase(code: &str, message: &str) -> Option<(Meaning, Option<&'static str>)> {
    let found = PHRASES.iter().find(|(scope, words, ..)| *scope == code && message.contains(words));
    found.map(|(_, _, meaning, shown)| (*meaning, *shown))
}

fn by_violation(refusal: &Refusal) -> Option<Judged<'_>> {
    let told = refusal.violations.iter().filter(|v| *v != "KEY_ENABLED");
    for violation in told.clone() {
        let state = violation.strip_prefix("KEY_").and_then(|state| row(STATES, state));
        if let Some((_, meaning)) = state.or_else(|| row(VIOLATIONS, violation)) {
            return Some((violation, meaning));
        }
    }
    // An enabled key with an error domain that is newer than the table: the external manager's.
    let enabled = refusal.violations.iter().any(|v| v == "KEY_ENABLED");
    told.into_iter().find(|v| enabled || v.starts_with("EXTERNAL_")).map(|v| (v.as_str(), Is(KeyStoreUnavailable)))
}

fn by_reason(refusal: &Refusal) -> Option<Judged<'static>> {
    refusal.reason.as_ref().and_then(|info| row(REASONS, &info.reason))
}

fn by_code(refusal: &Refusal) -> Option<Judged<'static>> {
    let named = refusal.status.as_deref().and_then(|status| row(CODES, status));
    // A body without a status name, or with `UNKNOWN`: the HTTP status stands in for it.
    named.or_else(|| match (refusal.status.as_ref(), refusal.http) {
        (Some(_), Some(401)) => row(CODES, "UNAUTHENTICATED"),
        (Some(_), Some(403)) => row(CODES, "PERMISSION_DENIED"),
        (Some(_), Some(404)) => row(CODES, "NOT_FOUND"),
        (Some(_), Some(400)) => row(CODES, "INVALID_ARGUMENT"),
        (Some(_) | None, _) => None,
    })
}

fn resolve(refusal: &Refusal, ours: &OurProjects, code: &str, meaning: Meaning) -> KmsError {
    let says = |kind, stated| KmsError::new(kind, stated, code, &refusal.message);
    match meaning {
        Is(kind) => says(kind, false),
        Stated(kind) => says(kind, true),
        IfOurs(kind) => says(if names_ours(refusal, ours) { kind } else { AccessDenied }, false),
        Permission => says(if right_on_key(refusal) { AccessDenied } else { Credentials }, false),
        NamedState => match named_state(&refusal.message) {
            Some((kind, stated)) => says(kind, stated),
            None => says(Unclassified, false),
        },
        Worded(otherwise) => match phrase(code, &refusal.message) {
            // A row never leads back to the phrases, so this ends.
            Some((Worded(_), _)) | None => says(otherwise, false),
            Some((found, shown)) => resolve(refusal, ours, shown.unwrap_or(code), found),
        },
    }
}

/// An answer that no Google API gave: a front end, a proxy, another server.
fn by_http(refusal: &Refusal) -> KmsError {
    let (kind, code) = match refusal.http {
        Some(status @ 500..=599) => (ProviderFault, format!("http_{status}")),
        Some(429) => (Throttled, "http_429".to_owned()),
        Some(408) => (Timeout, "http_408".to_owned()),
        Some(401) => (Credentials, "http_401".to_owned()),
        Some(status @ (300..=399 | 404 | 405 | 407)) => (Misconfigured, format!("http_{status}")),
        Some(status) => (Unclassified, format!("http_{status}")),
        None => (Unclassified, refusal.status.clone().unwrap_or_else(|| "unknown".to_owned())),
    };
    KmsError::new(kind, false, &code, &refusal.message)
}

/// Whether the project that the answer blames is ours. The consumer that the details name decides;
/// the message is read only when they name none.
fn names_ours(refusal: &Refusal, ours: &OurProjects) -> bool {
    match refusal.reason.as_ref().and_then(|info| info.consumer.as_deref()) {
        Some(consumer) => ours.own(consumer.rsplit(['/', ':']).next().unwrap_or(consumer)),
        None => PROJECT_MARKS.iter().filter_map(|mark| word_after(&refusal.message, mark)).any(|project| ours.own(project)),
    }
}

/// Whether the missing right is one on the key. Rights on service accounts (impersonation) and on
/// the use of services (our quota project) are our own affair.
fn right_on_key(refusal: &Refusal) -> bool {
    let told = refusal.reason.as_ref().and_then(|info| info.permission.as_deref());
    match told.or_else(|| word_after(&refusal.message, PERMISSION_MARK)) {
        Some(permission) => !permission.starts_with("iam.") && !permission.starts_with("serviceusage."),
        None => refusal.reason.as_ref().is_none_or(|info| info.domain != "iam.googleapis.com"),
    }
}

fn named_state(message: &str) -> Option<(FailureKind, bool)> {
    word_after(message, STATE_MARK).filter(|state| *state != "ENABLED").and_then(of_state)
}

/// The identifier that follows a mark.
fn word_after<'a>(message: &'a str, mark: &str) -> Option<&'a str> {
    let (_, rest) = message.split_once(mark)?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c)).unwrap_or(rest.len());
    rest.get(..end).map(|word| word.trim_end_matches('.')).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests;
