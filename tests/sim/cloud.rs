//! The keys as they truly are, and how their provider answers: versions, states, permissions, faults
//! of the provider and of our own credentials. The watch is judged by what stands here.

use std::collections::BTreeMap;
use std::sync::Arc;

use cmek_watchdog::key::KeyVersion;
use cmek_watchdog::kms::{Answer, CallMeta, KeyFacts, KmsError, Unwrapped, VersionFact, Wrapped};
use cmek_watchdog::probe::{Call, Reply};
use cmek_watchdog::time::{Mono, Span, Wall};
use cmek_watchdog::words::{FailureKind, ProviderKind};

use super::dice::Dice;

/// What the owner has made of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    Enabled,
    Disabled,
    Pending,
    Destroyed,
}

/// Everything that decides an answer about one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Truth {
    pub status: Status,
    pub wrap_denied: bool,
    pub unwrap_denied: bool,
    pub describe_denied: bool,
    /// The key's own firewall lets nobody of ours in.
    pub network_closed: bool,
    /// When a scheduled deletion comes, or until when a destroyed key can be brought back.
    pub ends_at: Option<Wall>,
    /// Material that no longer opens anything.
    pub lost: Vec<u32>,
    pub current: u32,
}

#[derive(Clone, Debug)]
pub struct CloudKey {
    pub truth: Truth,
    /// A change that spreads slowly: until then so many of 1,000 answers come from before it.
    pub before: Option<(Truth, Mono, u64)>,
}

/// A fault of the provider: kind and how many of 1,000 calls it hits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    Kind(FailureKind, u64),
    /// The call is never answered.
    Hang(u64),
}

#[derive(Clone, Copy, Debug)]
pub struct Side {
    pub fault: Option<Fault>,
    /// Our own permission is gone: every call is denied, the control key's too.
    pub denied: bool,
    /// Our own token is bad, and the answer says so.
    pub credentials: bool,
    pub slow: Span,
}

impl Side {
    pub const WELL: Self = Self { fault: None, denied: false, credentials: false, slow: Span(20) };

    pub fn troubled(&self) -> bool {
        self.fault.is_some() || self.denied || self.credentials || self.slow > Self::WELL.slow
    }
}

#[derive(Clone, Debug, Default)]
pub struct Cloud {
    /// By provider and reference.
    pub keys: BTreeMap<String, BTreeMap<String, CloudKey>>,
    pub sides: BTreeMap<String, Side>,
    nonce: u64,
}

/// How one call ended, beside the answer: what the key truly was at that moment.
#[derive(Clone, Debug)]
pub struct Told {
    /// `None`: no answer ever.
    pub reply: Option<Reply>,
    pub took: Span,
    /// The owner's doing refused this call.
    pub truly_refused: bool,
}

/// Which calls of a round the owner's doing refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Refusals {
    pub wrap: bool,
    pub unwrap: bool,
    pub version: bool,
    /// Our own side was at fault during the round.
    pub ours: bool,
}

impl CloudKey {
    pub fn new() -> Self {
        let truth = Truth {
            status: Status::Enabled,
            wrap_denied: false,
            unwrap_denied: false,
            describe_denied: false,
            network_closed: false,
            ends_at: None,
            lost: Vec::new(),
            current: 1,
        };
        Self { truth, before: None }
    }
}

fn stated(truth: &Truth) -> Option<KmsError> {
    let error = |kind, code: &str| Some(KmsError::new(kind, true, code, "the key is not usable"));
    match truth.status {
        Status::Enabled => None,
        Status::Disabled => error(FailureKind::Disabled, "DisabledException"),
        Status::Pending => error(FailureKind::PendingDeletion, "KMSInvalidStateException"),
        Status::Destroyed => error(FailureKind::Destroyed, "NotFoundException"),
    }
}

fn denied() -> KmsError {
    KmsError::new(FailureKind::AccessDenied, false, "AccessDeniedException", "not authorized")
}

/// Why this call is refused, by what the owner has made of the key.
fn refusal(truth: &Truth, call: &Call) -> Option<KmsError> {
    if truth.network_closed {
        return Some(KmsError::new(FailureKind::NetworkBlocked, false, "ForbiddenByFirewall", "the network is closed"));
    }
    match call {
        Call::Wrap | Call::WrapVersion(_) => stated(truth).or(truth.wrap_denied.then(denied)),
        Call::Unwrap(canary) | Call::UnwrapVersion(canary) => {
            let gone = || KmsError::new(FailureKind::Destroyed, true, "KeyUnavailable", "version lost");
            stated(truth).or(truth.unwrap_denied.then(denied)).or(truth.lost.contains(&version_of(canary)).then(gone))
        }
        Call::Describe | Call::Rotation => truth.describe_denied.then(denied),
    }
}

impl Cloud {
    pub fn side(&mut self, provider: &str) -> &mut Side {
        if !self.sides.contains_key(provider) {
            self.sides.insert(provider.to_owned(), Side::WELL);
        }
        self.sides.get_mut(provider).unwrap()
    }

    pub fn key(&mut self, provider: &str, reference: &str) -> &mut CloudKey {
        self.keys.entry(provider.to_owned()).or_default().entry(reference.to_owned()).or_insert_with(CloudKey::new)
    }

    fn trouble(side: Side, took: Span, timeout: Span, dice: &mut Dice) -> Option<(Option<KmsError>, Span)> {
        if let Some(fault) = side.fault {
            match fault {
                Fault::Hang(share) if dice.chance(share) => return Some((None, took)),
                Fault::Kind(kind, share) if dice.chance(share) => {
                    let took = if kind == FailureKind::Timeout { timeout } else { took };
                    return Some((Some(KmsError::new(kind, false, "fault", "")), took));
                }
                Fault::Hang(_) | Fault::Kind(..) => {}
            }
        }
        if took > timeout {
            return Some((Some(KmsError::new(FailureKind::Timeout, false, "slow", "")), timeout));
        }
        if side.credentials {
            return Some((Some(KmsError::new(FailureKind::Credentials, false, "ExpiredToken", "")), took));
        }
        side.denied.then(|| (Some(denied()), took))
    }

    /// Answers one call as the world is now.
    pub fn call(&mut self, at: (&str, ProviderKind), reference: &str, call: &Call, timeout: Span, now: Mono, dice: &mut Dice) -> Told {
        let (provider, kind) = at;
        let side = *self.side(provider);
        let took = Span(1 + side.slow.0 / 2 + dice.below(side.slow.0.max(1)));
        let offered = match call {
            Call::Rotation => false,
            Call::WrapVersion(_) => matches!(kind, ProviderKind::Gcp | ProviderKind::Azure),
            Call::Wrap | Call::Unwrap(_) | Call::UnwrapVersion(_) | Call::Describe => true,
        };
        if !offered {
            return Told { reply: Some(Reply::NotOffered), took, truly_refused: false };
        }
        match Self::trouble(side, took, timeout, dice) {
            Some((None, took)) => return Told { reply: None, took, truly_refused: false },
            Some((Some(error), took)) => return Told { reply: Some(reply(call, Err(error), took)), took, truly_refused: false },
            None => {}
        }
        self.nonce += 1;
        let nonce = self.nonce;
        let key = self.key(provider, reference);
        if key.before.as_ref().is_some_and(|(_, until, _)| *until < now) {
            key.before = None;
        }
        let before = key.before.as_ref().filter(|(.., share)| dice.chance(*share)).map(|(before, ..)| before);
        let truth = before.unwrap_or(&key.truth);
        let refused = refusal(truth, call);
        let refused_now = refused.is_some() && *call != Call::Describe;
        let result = match refused {
            Some(error) => Err(error),
            None => Ok(good(call, truth, nonce, kind)),
        };
        Told { reply: Some(reply(call, result, took)), took, truly_refused: refused_now }
    }
}

fn good(call: &Call, truth: &Truth, nonce: u64, kind: ProviderKind) -> Good {
    match call {
        Call::Wrap | Call::WrapVersion(_) => {
            let version = if let Call::WrapVersion(version) = call { number_of(version) } else { truth.current };
            let mut bytes = version.to_le_bytes().to_vec();
            bytes.extend(nonce.to_le_bytes());
            let digest = digest_of(&bytes);
            Good::Wrapped(Wrapped { bytes: Arc::from(bytes), digest, version: Some(named(version)), sealed_with: "".into() })
        }
        Call::Unwrap(canary) | Call::UnwrapVersion(canary) => {
            Good::Unwrapped(Unwrapped { digest: digest_of(&canary.bytes), version: Some(named(version_of(canary))) })
        }
        Call::Describe | Call::Rotation => Good::Facts(Box::new(facts(truth, kind))),
    }
}

fn facts(truth: &Truth, kind: ProviderKind) -> KeyFacts {
    let listed = matches!(kind, ProviderKind::Gcp | ProviderKind::Azure);
    let fact = |n: u32| VersionFact { version: named(n), enabled: !truth.lost.contains(&n), created_at: None };
    let pending = truth.status == Status::Pending;
    KeyFacts {
        fault: stated(truth),
        current_version: Some(named(truth.current)),
        versions: if listed { (1..=truth.current).map(fact).collect() } else { Vec::new() },
        deletion_at: truth.ends_at.filter(|_| pending),
        recoverable_until: truth.ends_at.filter(|_| !pending),
        ..KeyFacts::default()
    }
}

enum Good {
    Wrapped(Wrapped),
    Unwrapped(Unwrapped),
    Facts(Box<KeyFacts>),
}

fn reply(call: &Call, result: Result<Good, KmsError>, took: Span) -> Reply {
    let meta = CallMeta { request_id: Some("r".into()), took, provider_time: None };
    match (call, result) {
        (Call::Rotation, _) => Reply::NotOffered,
        (Call::Wrap | Call::WrapVersion(_), Ok(Good::Wrapped(wrapped))) => Reply::Wrap(Answer { result: Ok(wrapped), meta }),
        (Call::Wrap | Call::WrapVersion(_), Err(error)) => Reply::Wrap(Answer { result: Err(error), meta }),
        (Call::Unwrap(_) | Call::UnwrapVersion(_), Ok(Good::Unwrapped(unwrapped))) => Reply::Unwrap(Answer { result: Ok(unwrapped), meta }),
        (Call::Unwrap(_) | Call::UnwrapVersion(_), Err(error)) => Reply::Unwrap(Answer { result: Err(error), meta }),
        (Call::Describe, Ok(Good::Facts(facts))) => Reply::Describe(Answer { result: Ok(*facts), meta }),
        (Call::Describe, Err(error)) => Reply::Describe(Answer { result: Err(error), meta }),
        (call, Ok(_)) => panic!("{call:?} has another kind of answer"),
    }
}

pub fn named(version: u32) -> KeyVersion {
    KeyVersion::new(&format!("v{version}"))
}

fn number_of(version: &KeyVersion) -> u32 {
    version.as_str()[1..].parse().unwrap()
}

pub fn version_of(canary: &Wrapped) -> u32 {
    u32::from_le_bytes(canary.bytes[..4].try_into().unwrap())
}

fn digest_of(bytes: &[u8]) -> [u8; 32] {
    let mut digest = [7; 32];
    digest[..bytes.len().min(32)].copy_from_slice(&bytes[..bytes.len().min(32)]);
    digest
}
