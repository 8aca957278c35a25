//! outside
//! The one table that says what an AWS refusal means: code first, then message, then status.
//! Only an answer that names our own account, endpoint, token or request is our trouble; whatever
//! could be either is `access_denied`, not stated. Status alone never accuses a key.

use crate::kms::KmsError;
use crate::words::FailureKind as Kind;

use super::answer::Refusal;

/// Whose call it was and whose key.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    /// `kms:Decrypt`, `sts:AssumeRole`, `imds:...`
    pub operation: &'a str,
    /// The account that owns the key, from its ARN.
    pub key_account: &'a str,
    pub our_accounts: &'a [String],
}

impl Whose<'_> {
    fn is_ours(&self, account: &str) -> bool {
        self.our_accounts.iter().any(|a| a == account)
    }
    /// Only a refusal of a data call is the owner's word about the key.
    fn is_data(&self) -> bool {
        matches!(self.operation, "kms:Decrypt" | "kms:Encrypt" | "kms:GenerateDataKey" | "kms:ReEncrypt")
            || self.operation.starts_with("kms:GenerateDataKey")
    }
}

/// What a refusal means; `None` if it says nothing bad about anything (a dry run that would have
/// succeeded, a rotation under way).
#[must_use]
pub fn classify(refusal: &Refusal, whose: &Whose<'_>) -> Option<KmsError> {
    let (kind, stated) = judge(refusal, whose)?;
    let code = match (&refusal.code, refusal.status) {
        (Some(code), _) => code.clone(),
        (None, Some(status)) => format!("http_{status}"),
        (None, None) => "no_answer".to_owned(),
    };
    let message = match (&refusal.proxy, refusal.message.is_empty()) {
        (Some(proxy), _) if refusal.code.is_none() => format!("answered by a proxy, not by AWS: {proxy}"),
        (_, true) => "no message".to_owned(),
        (_, false) if is_clock(&refusal.message.to_ascii_lowercase()) => format!("clock: {}", refusal.message),
        (_, false) => refusal.message.clone(),
    };
    Some(KmsError::new(kind, stated, &code, &message))
}

fn judge(refusal: &Refusal, whose: &Whose<'_>) -> Option<(Kind, bool)> {
    let text = refusal.message.to_ascii_lowercase();
    if whose.operation.starts_with("imds:") {
        return Some((Kind::Credentials, false));
    }
    let Some(code) = refusal.code.as_deref() else {
        return Some((by_status(refusal, &text), false));
    };
    match code {
        "DisabledException" => Some((Kind::Disabled, true)),
        "KMSInvalidStateException" | "KMSInvalidStateFault" => Some(invalid_state(&text)),
        "NotFoundException" | "NotFound" => Some(not_found(&text)),
        "AccessDeniedException" | "AccessDenied" | "NotAuthorized" | "UnauthorizedOperation" | "UnauthorizedException" => {
            Some(denied(&refusal.message, &text, whose))
        }
        "InvalidSignatureException" | "SignatureDoesNotMatch" if text.contains("should be scoped to") => Some((Kind::Misconfigured, false)),
        "ConflictException" | "DryRunOperationException" => None,
        other => Some((by_code(other, &text), false)),
    }
}

/// Codes that mean one thing wherever they come from, without the endings `Exception` and `Fault`.
const CODES: &[(Kind, &str)] = &[
    (
        Kind::Credentials,
        "ExpiredToken InvalidClientTokenId UnrecognizedClient InvalidSignature SignatureDoesNotMatch \
         IncompleteSignature MissingAuthenticationToken InvalidAccessKeyId AuthFailure OptInRequired \
         SubscriptionRequired RequestExpired RequestTimeTooSkewed InvalidIdentityToken IDPRejectedClaim \
         IDPCommunicationError InvalidToken TokenRefreshRequired ExpiredTokenId AccountProblem \
         InvalidSecurity AccountSuspended PendingVerification Blocked",
    ),
    (
        Kind::Throttled,
        "Throttling Throttled RequestThrottled TooManyRequests RequestLimitExceeded LimitExceeded \
         BandwidthLimitExceeded SlowDown ProvisionedThroughputExceeded PriorRequestNotComplete EC2Throttled",
    ),
    (Kind::Timeout, "RequestTimeout"),
    (
        Kind::ProviderFault,
        "KMSInternal InternalFailure InternalError InternalServerError InternalServer Internal \
         ServiceUnavailable DependencyTimeout KeyUnavailable ServiceFailure Unavailable",
    ),
    (
        Kind::KeyStoreUnavailable,
        "CustomKeyStoreInvalidState CustomKeyStoreNotFound CloudHsmClusterNotActive CloudHsmClusterNotFound \
         CloudHsmClusterInvalidConfiguration CloudHsmClusterNotRelated XksProxyUriUnreachable \
         XksProxyInvalidResponse XksProxyInvalidConfiguration XksProxyIncorrectAuthenticationCredential \
         XksProxyVpcEndpointServiceNotFound XksProxyVpcEndpointServiceInvalidConfiguration",
    ),
    (
        Kind::Misconfigured,
        "InvalidArn InvalidCiphertext IncorrectKey InvalidGrantToken InvalidGrantId InvalidKeyUsage \
         InvalidMarker UnsupportedOperation Validation ValidationError Serialization UnknownOperation \
         InvalidAction MalformedPolicyDocument PackedPolicyTooLarge RegionDisabled XksKeyNotFound \
         XksKeyInvalidConfiguration XksKeyAlreadyInUse InvalidParameterValue InvalidParameterCombination \
         MissingParameter MissingAction InvalidAliasName InvalidQueryParameter MalformedQueryString \
         InvalidKeyId RequestEntityTooLarge",
    ),
];

fn by_code(code: &str, text: &str) -> Kind {
    let name = code.strip_suffix("Exception").or_else(|| code.strip_suffix("Fault")).unwrap_or(code);
    match CODES.iter().find(|(_, names)| names.split(' ').any(|n| n == name)).map(|(kind, _)| *kind) {
        // A key store's trouble comes dressed as KMS's own.
        Some(Kind::ProviderFault) => store_of(text).map_or(Kind::ProviderFault, |(kind, _)| kind),
        Some(kind) => kind,
        None => Kind::Unclassified,
    }
}

/// What the text of a custom key store says, `None` if the text speaks of none. The texts are AWS's
/// own; a reworded one still names the store and is then the store's trouble, never a statement.
fn store_of(text: &str) -> Option<(Kind, bool)> {
    let says = |words: &[&str]| words.iter().any(|w| text.contains(w));
    if !says(&["external key", "key store", "keystore", "cloudhsm", "hsm cluster", "xks"]) {
        return None;
    }
    Some(if says(&["external key is not enabled", "external key is disabled"]) {
        (Kind::Disabled, true)
    } else if says(&["could not find the external key", "external key does not exist", "external key was not found"]) {
        (Kind::Destroyed, false)
    } else if says(&["denied access"]) {
        (Kind::AccessDenied, true)
    } else if says(&["request rate", "throttl", "too many requests"]) {
        (Kind::Throttled, false)
    } else if says(&["ciphertext or additional authenticated data", "does not support the requested operation"]) {
        (Kind::Misconfigured, false)
    } else {
        (Kind::KeyStoreUnavailable, false)
    })
}

fn invalid_state(text: &str) -> (Kind, bool) {
    if let Some(store) = store_of(text) {
        return store;
    }
    let says = |words: &[&str]| words.iter().any(|w| text.contains(w));
    if says(&["is pending deletion", "is pending replica deletion", "is pendingdeletion", "is pendingreplicadeletion"]) {
        (Kind::PendingDeletion, true)
    } else if says(&["is disabled"]) {
        (Kind::Disabled, true)
    } else if says(&["is pending import", "is pendingimport", "is creating"]) {
        (Kind::Expired, false)
    } else if says(&["is unavailable"]) {
        (Kind::KeyStoreUnavailable, false)
    } else {
        (Kind::Unclassified, false)
    }
}

/// A missing key may be a deletion come true; a missing alias says nothing about a key.
fn not_found(text: &str) -> (Kind, bool) {
    let key = text.trim_start().starts_with("key ") || text.contains(":key/");
    if text.contains("alias") || !key { (Kind::Misconfigured, false) } else { (Kind::Destroyed, false) }
}

/// The layer of policy that a refusal names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Layer {
    /// Identity-based policy or permissions boundary: the principal's account wrote it.
    Identity,
    /// Binds the principal's account; written by its organisation.
    ServiceControl,
    /// Handed over by whoever took on the role, which is us.
    Session,
    /// Key policy or grant: the key owner's.
    Resource,
    /// The key owner's organisation.
    ResourceControl,
    /// The role's own account decides who may take it on.
    Trust,
    VpcEndpoint,
}

const LAYERS: &[(&str, Layer)] = &[
    ("identity-based polic", Layer::Identity),
    ("permissions boundar", Layer::Identity),
    ("service control polic", Layer::ServiceControl),
    ("session polic", Layer::Session),
    ("resource-based polic", Layer::Resource),
    ("resource control polic", Layer::ResourceControl),
    ("role trust polic", Layer::Trust),
    ("vpc endpoint polic", Layer::VpcEndpoint),
];

fn denied(message: &str, text: &str, whose: &Whose<'_>) -> (Kind, bool) {
    if text.contains("unable to determine service/operation name") {
        return (Kind::Misconfigured, false);
    }
    if text.contains("security token included in the request") {
        return (Kind::Credentials, false);
    }
    let mut named: Vec<Layer> = Vec::new();
    for (words, layer) in LAYERS {
        if text.contains(words) && !named.contains(layer) {
            named.push(*layer);
        }
    }
    // "... does not exist in this Region, no resource-based policies allow access, or ...": three
    // causes in one sentence settle nothing.
    let layer = match named.as_slice() {
        [one] if !text.contains("does not exist") => Some(*one),
        _ => None,
    };
    let seen = Accounts::read(message);
    if whose.operation.starts_with("sts:") {
        return role_denied(layer, &seen, whose);
    }
    let unclear = (Kind::AccessDenied, false);
    match layer {
        None => unclear,
        Some(Layer::VpcEndpoint) => (Kind::NetworkBlocked, false),
        Some(Layer::Session) => (Kind::Credentials, false),
        Some(Layer::Resource | Layer::Trust) => (Kind::AccessDenied, whose.is_data()),
        Some(Layer::ResourceControl) => match seen.policy {
            Some(account) if whose.is_ours(account) && !whose.is_ours(whose.key_account) => (Kind::Credentials, false),
            _ => (Kind::AccessDenied, whose.is_data()),
        },
        Some(Layer::Identity | Layer::ServiceControl) if seen.names_ours(whose) => (Kind::Credentials, false),
        Some(Layer::Identity | Layer::ServiceControl) => match seen.principal {
            // The customer's own role that we took on, as far as we know which accounts are ours.
            Some(account) if account == whose.key_account => (Kind::AccessDenied, whose.is_data() && !whose.our_accounts.is_empty()),
            Some(_) if whose.our_accounts.is_empty() => (Kind::Credentials, false),
            Some(_) | None => unclear,
        },
    }
}

/// We could not take on a role. Its account decides who may: a customer who withdraws the trust has
/// withdrawn the key from us, our own account's refusal is our trouble.
fn role_denied(layer: Option<Layer>, seen: &Accounts<'_>, whose: &Whose<'_>) -> (Kind, bool) {
    let theirs = seen.resource.is_some_and(|account| account == whose.key_account && !whose.is_ours(account));
    match layer {
        Some(Layer::VpcEndpoint) => (Kind::NetworkBlocked, false),
        Some(Layer::Identity | Layer::ServiceControl | Layer::Session) => (Kind::Credentials, false),
        Some(Layer::Trust | Layer::Resource | Layer::ResourceControl) if theirs => (Kind::AccessDenied, true),
        None if theirs => (Kind::AccessDenied, false),
        Some(Layer::Trust | Layer::Resource | Layer::ResourceControl) | None => (Kind::Credentials, false),
    }
}

/// The accounts that a refusal names, by the role in which it names them.
#[derive(Default)]
struct Accounts<'m> {
    principal: Option<&'m str>,
    resource: Option<&'m str>,
    policy: Option<&'m str>,
}

impl<'m> Accounts<'m> {
    fn read(message: &'m str) -> Self {
        let mut seen = Self::default();
        let mut label = "";
        for word in message.split_whitespace() {
            let before = std::mem::replace(&mut label, word);
            let mut parts = word.trim_matches(['"', '\'', ',', '(', ')']).split(':');
            if parts.next() != Some("arn") {
                continue;
            }
            let (_, service, _, account) = (parts.next(), parts.next(), parts.next(), parts.next());
            let Some(account) = account.filter(|a| a.len() == 12 && a.bytes().all(|b| b.is_ascii_digit())) else { continue };
            let place = match (before.to_ascii_lowercase().as_str(), service) {
                ("user:" | "principal:" | "role:" | "caller:", _) => &mut seen.principal,
                ("policy:", _) | (_, Some("organizations")) => &mut seen.policy,
                ("resource:", _) => &mut seen.resource,
                (_, Some("sts")) => &mut seen.principal,
                _ => &mut seen.resource,
            };
            place.get_or_insert(account);
        }
        seen
    }

    fn names_ours(&self, whose: &Whose<'_>) -> bool {
        [self.policy, self.principal].into_iter().flatten().any(|account| whose.is_ours(account))
    }
}

fn is_clock(text: &str) -> bool {
    ["signature expired", "signature not yet current", "request has expired", "is now earlier than", "is now later than", "skewed"]
        .iter()
        .any(|w| text.contains(w))
}

/// No code at all: whoever answered did not speak AWS's language.
fn by_status(refusal: &Refusal, text: &str) -> Kind {
    if refusal.proxy.is_some() {
        return Kind::NetworkBlocked;
    }
    if text.contains("security token included in the request") {
        return Kind::Credentials;
    }
    match refusal.status {
        Some(407 | 511) => Kind::NetworkBlocked,
        Some(408) => Kind::Timeout,
        Some(429) => Kind::Throttled,
        Some(500..=599) => Kind::ProviderFault,
        Some(_) | None => Kind::Unclassified,
    }
}

/// What a failure without an answer means. `code` is the short word for it; a host name that no
/// resolver could ever know is our own mistake.
#[must_use]
pub fn classify_transport(code: &str, message: &str, host: &str) -> KmsError {
    let host_is_sound = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-.:[]_".contains(c));
    let kind = match code {
        "dns" if !host_is_sound => Kind::Misconfigured,
        "timeout" | "connect_timeout" => Kind::Timeout,
        "dns" | "refused" | "reset" | "tls" | "connect" | "io" => Kind::Unreachable,
        "request" => Kind::Misconfigured,
        "identity" => Kind::Credentials,
        _ => Kind::Unclassified,
    };
    KmsError::new(kind, false, code, message)
}

#[cfg(test)]
mod tests;
