//! The keys as they truly are, and how their provider answers: versions, states, permissions, faults
//! of the provider and of our own credentials. The watch is judged by what stands here.

use std::collections::BTreeMap;
use std::sync::Arc;

use cmek_watchdog::key::KeyVersion;
use cmek_watchdog::kms::{Answer, CallMeta, KeyFacts, KmsError, Unwrapped, Wrapped};
use cmek_watchdog::probe::{Call, Reply};
use cmek_watchdog::time::{Mono, Span};
use cmek_watchdog::words::FailureKind;

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
    /// Material that no longer opens anything.
    pub lost: Vec<u32>,
    pub current: u32,
}

#[derive(Clone, Debug)]
pub struct CloudKey {
    pub account: String,
    pub truth: Truth,
    /// A change that spreads slowly: until then answers come from before or after it.
    pub before: Option<(Truth, Mono)>,
}

/// A fault of the provider: kind and how many of 1,000 calls it hits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    Kind(FailureKind, u64),
    /// The call is never answered.
    Hang(u64),
}

#[derive(Clone, Debug)]
pub struct Side {
    pub fault: Option<Fault>,
    /// Our own permission is gone: every call is denied, the control key's too.
    pub denied: bool,
    /// Our own token is bad, and the answer says so.
    pub credentials: bool,
    pub slow: Span,
}

#[derive(Clone, Debug, Default)]
pub struct Cloud {
    /// By provider and reference.
    pub keys: BTreeMap<(String, String), CloudKey>,
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
    pub fn new(account: &str) -> Self {
        let truth = Truth {
            status: Status::Enabled,
            wrap_denied: false,
            unwrap_denied: false,
            describe_denied: false,
            lost: Vec::new(),
            current: 1,
        };
        Self { account: account.to_owned(), truth, before: None }
    }

    /// The truth as one replica of the provider knows it.
    fn seen(&self, now: Mono, dice: &mut Dice) -> Truth {
        match &self.before {
            Some((before, until)) if now < *until && dice.chance(500) => before.clone(),
            Some(_) | None => self.truth.clone(),
        }
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

impl Cloud {
    pub fn side(&mut self, provider: &str) -> &mut Side {
        self.sides.entry(provider.to_owned()).or_insert_with(|| Side { fault: None, denied: false, credentials: false, slow: Span(20) })
    }

    pub fn key(&mut self, provider: &str, reference: &str) -> &mut CloudKey {
        self.keys.entry((provider.to_owned(), reference.to_owned())).or_insert_with(|| CloudKey::new("111122223333"))
    }

    fn trouble(&mut self, provider: &str, timeout: Span, dice: &mut Dice) -> Option<(Option<KmsError>, Span)> {
        let slow = Span(1 + self.side(provider).slow.0 / 2 + dice.below(self.side(provider).slow.0.max(1)));
        let side = self.side(provider).clone();
        if let Some(fault) = side.fault {
            match fault {
                Fault::Hang(share) if dice.chance(share) => return Some((None, slow)),
                Fault::Kind(kind, share) if dice.chance(share) => {
                    let took = if kind == FailureKind::Timeout { timeout } else { slow };
                    return Some((Some(KmsError::new(kind, false, "fault", "")), took));
                }
                Fault::Hang(_) | Fault::Kind(..) => {}
            }
        }
        if side.credentials {
            return Some((Some(KmsError::new(FailureKind::Credentials, false, "ExpiredToken", "")), slow));
        }
        side.denied.then(|| (Some(denied()), slow))
    }

    /// Answers one call as the world is now.
    pub fn call(&mut self, provider: &str, reference: &str, call: &Call, timeout: Span, now: Mono, dice: &mut Dice) -> Told {
        let took = Span(1 + self.side(provider).slow.0 / 2 + dice.below(self.side(provider).slow.0.max(1)));
        let truth = self.key(provider, reference).seen(now, dice);
        match self.trouble(provider, timeout, dice) {
            Some((None, took)) => return Told { reply: None, took, truly_refused: false },
            Some((Some(error), took)) => return Told { reply: Some(reply(call, Err(error), took)), took, truly_refused: false },
            None => {}
        }
        let refused = match call {
            Call::WrapVersion(_) | Call::Rotation => return Told { reply: Some(Reply::NotOffered), took, truly_refused: false },
            Call::Wrap => stated(&truth).or(truth.wrap_denied.then(denied)),
            Call::Unwrap(canary) | Call::UnwrapVersion(canary) => {
                let version = version_of(canary);
                let lost =
                    truth.lost.contains(&version).then(|| KmsError::new(FailureKind::Destroyed, true, "KeyUnavailable", "version lost"));
                stated(&truth).or(truth.unwrap_denied.then(denied)).or(lost)
            }
            Call::Describe => truth.describe_denied.then(denied),
        };
        let refused_now = refused.is_some() && *call != Call::Describe;
        let result = match refused {
            Some(error) => Err(error),
            None => Ok(self.good(call, &truth)),
        };
        Told { reply: Some(reply(call, result, took)), took, truly_refused: refused_now }
    }

    fn good(&mut self, call: &Call, truth: &Truth) -> Good {
        match call {
            Call::Wrap | Call::WrapVersion(_) | Call::Rotation => {
                self.nonce += 1;
                let mut bytes = truth.current.to_le_bytes().to_vec();
                bytes.extend(self.nonce.to_le_bytes());
                let digest = digest_of(&bytes);
                Good::Wrapped(Wrapped { bytes: Arc::from(bytes), digest, version: Some(named(truth.current)), sealed_with: "".into() })
            }
            Call::Unwrap(canary) | Call::UnwrapVersion(canary) => {
                Good::Unwrapped(Unwrapped { digest: digest_of(&canary.bytes), version: Some(named(version_of(canary))) })
            }
            Call::Describe => {
                Good::Facts(Box::new(KeyFacts { fault: stated(truth), current_version: Some(named(truth.current)), ..KeyFacts::default() }))
            }
        }
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
        (Call::WrapVersion(_) | Call::Rotation, _) => Reply::NotOffered,
        (Call::Wrap, Ok(Good::Wrapped(wrapped))) => Reply::Wrap(Answer { result: Ok(wrapped), meta }),
        (Call::Wrap, Err(error)) => Reply::Wrap(Answer { result: Err(error), meta }),
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

pub fn version_of(canary: &Wrapped) -> u32 {
    u32::from_le_bytes(canary.bytes[..4].try_into().unwrap())
}

fn digest_of(bytes: &[u8]) -> [u8; 32] {
    let mut digest = [7; 32];
    digest[..bytes.len().min(32)].copy_from_slice(&bytes[..bytes.len().min(32)]);
    digest
}
