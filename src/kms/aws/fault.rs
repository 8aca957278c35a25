//! outside
//! Turns the SDK's error tree into one of two plain things: an answer that refused, or no answer.
//! Looks for a lost identity first, which the SDK dresses up as a network failure; it never judges
//! what a refusal means.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::SdkError;

use super::answer::Refusal;
use super::errors::{Whose, classify, classify_transport};
use crate::kms::KmsError;
use crate::words::FailureKind;

/// Why a call gave nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Fault {
    #[error("{operation} refused: {}", refusal.message)]
    Refused { operation: String, refusal: Box<Refusal> },
    /// `code` is a short word for what failed: `dns`, `refused`, `reset`, `tls`, `timeout`, `identity`.
    #[error("{code}: {message}")]
    NoAnswer { code: &'static str, message: String },
}

impl Fault {
    pub fn unresolved_external_id(role: &str) -> Self {
        Self::NoAnswer { code: "identity", message: format!("the external id of role {role} could not be resolved") }
    }

    /// What it means for this key. A refusal that says nothing bad and yet brought no result is a doubt.
    pub fn judge(&self, key_account: &str, our_accounts: &[String], host: &str) -> KmsError {
        match self {
            Self::NoAnswer { code, message } => classify_transport(code, message, host),
            Self::Refused { operation, refusal } => {
                classify(refusal, &Whose { operation, key_account, our_accounts }).unwrap_or_else(|| {
                    let code = refusal.code.as_deref().unwrap_or("no_result");
                    KmsError::new(FailureKind::Unclassified, false, code, "the answer brought no result")
                })
            }
        }
    }
}

/// Reads an SDK error of `operation`.
pub fn fault_of<E: Error + 'static>(error: &SdkError<E, HttpResponse>, operation: &str) -> Fault {
    if let Some(response) = error.raw_response() {
        let status = response.status().as_u16();
        // A body that broke off is no answer, whatever its status line promised.
        if matches!(error, SdkError::ResponseError(_)) {
            let code = transport_code(error).unwrap_or("reset");
            return Fault::NoAnswer { code, message: text_of(error) };
        }
        let headers = response.headers();
        let refusal = Refusal::read(status, |name| headers.get(name), response.body().bytes().unwrap_or_default());
        return Fault::Refused { operation: operation.to_owned(), refusal: Box::new(refusal) };
    }
    if let Some(fault) = chain(error).find_map(|e| e.downcast_ref::<Fault>()) {
        return fault.clone();
    }
    let lost_identity = chain(error).any(|e| e.is::<CredentialsError>()) || text_of(error).contains("identity resolver timed out");
    if lost_identity {
        return Fault::NoAnswer { code: "identity", message: text_of(error) };
    }
    let code = match error {
        SdkError::TimeoutError(_) => "timeout",
        SdkError::ConstructionFailure(_) => "request",
        SdkError::DispatchFailure(failure) if failure.is_timeout() => "connect_timeout",
        SdkError::DispatchFailure(failure) if failure.is_user() => "request",
        SdkError::DispatchFailure(failure) => transport_code(error).unwrap_or(if failure.is_io() { "io" } else { "request" }),
        _ => "unknown",
    };
    Fault::NoAnswer { code, message: text_of(error) }
}

fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    fn inner<'e>(error: &&'e (dyn Error + 'static)) -> Option<&'e (dyn Error + 'static)> {
        (*error).source()
    }
    std::iter::successors(Some(error), inner)
}

/// The innermost words, without the SDK's wrapping.
fn text_of(error: &(dyn Error + 'static)) -> String {
    let mut said: Vec<String> = chain(error).map(ToString::to_string).collect();
    said.dedup();
    said.join(": ")
}

fn transport_code(error: &(dyn Error + 'static)) -> Option<&'static str> {
    use std::io::ErrorKind as Io;
    let text = text_of(error).to_ascii_lowercase();
    if text.contains("dns error") || text.contains("failed to lookup address") || text.contains("no such host") {
        return Some("dns");
    }
    for io in chain(error).filter_map(|e| e.downcast_ref::<std::io::Error>()) {
        match io.kind() {
            Io::ConnectionRefused => return Some("refused"),
            Io::ConnectionReset | Io::ConnectionAborted | Io::BrokenPipe | Io::UnexpectedEof => return Some("reset"),
            Io::TimedOut => return Some("timeout"),
            _ => {}
        }
    }
    let says = |words: &[&str]| words.iter().any(|w| text.contains(w));
    if says(&["certificate", "handshake", "tls"]) {
        Some("tls")
    } else if says(&[
        "connection closed",
        "incompletemessage",
        "before message completed",
        "connection reset",
        "end of file",
        "length limit",
    ]) {
        Some("reset")
    } else if says(&["invalid uri", "invalid endpoint", "endpoint could not be"]) {
        Some("request")
    } else {
        None
    }
}
