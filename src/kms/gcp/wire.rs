//! outside
//! Takes errors of the client library apart for [`super::errors`], down to the fault below TLS, and
//! reads the little that answers tell about themselves. Decides nothing about a key.

use std::error::Error as StdError;

use google_cloud_gax::client_builder::Error as BuildError;
use google_cloud_gax::error::rpc::{Status, StatusDetails};
use google_cloud_gax::error::{CredentialsError, Error};

use super::errors::{OurProjects, Reason, Refusal, judge, judge_words};
use crate::kms::KmsError;
use crate::time::Wall;
use crate::words::FailureKind;

/// A failed call with what its answer told about itself.
#[derive(Debug)]
pub struct Failed {
    pub error: KmsError,
    pub request_id: Option<Box<str>>,
    pub provider_time: Option<Wall>,
}

impl From<KmsError> for Failed {
    fn from(error: KmsError) -> Self {
        Self { error, request_id: None, provider_time: None }
    }
}

/// Judges an error of a call.
pub fn failed(error: &Error, ours: &OurProjects) -> Failed {
    let header = |name: &str| error.http_headers().and_then(|headers| headers.get(name)).and_then(|value| value.to_str().ok());
    Failed {
        error: classify(error, ours),
        request_id: header("x-goog-request-id").or_else(|| header("x-request-id")).map(Into::into),
        provider_time: header("date").and_then(wall_of_date),
    }
}

fn classify(error: &Error, ours: &OurProjects) -> KmsError {
    if let Some(status) = error.status() {
        return judge(&refusal_of(status, error.http_status_code()), ours);
    }
    if let Some(http) = error.http_status_code() {
        let body = error.http_payload().map(|body| String::from_utf8_lossy(body).into_owned()).unwrap_or_default();
        return judge(&Refusal { http: Some(http), message: body, ..Refusal::default() }, ours);
    }
    let text = chain(error);
    if error.is_authentication() {
        let cause = causes(error).find_map(|cause| cause.downcast_ref::<CredentialsError>());
        return cause.map_or_else(|| token_error(&text), token_failed);
    }
    if error.is_timeout() || timed_out(error) {
        return KmsError::new(FailureKind::Timeout, false, "timeout", &text);
    }
    if error.is_deserialization() {
        // A 200 that is no answer of Cloud KMS: damaged on the way, or another server spoke.
        return KmsError::new(FailureKind::Unreachable, false, "undecodable", &text);
    }
    if error.is_binding() || error.is_serialization() {
        return KmsError::new(FailureKind::Misconfigured, false, "request", &text);
    }
    transport(error, &text)
}

fn refusal_of(status: &Status, http: Option<u16>) -> Refusal {
    let mut refusal = Refusal { http, status: Some(status.code.name().to_owned()), message: status.message.clone(), ..Refusal::default() };
    for detail in &status.details {
        if let StatusDetails::ErrorInfo(info) = detail {
            let told = |name: &str| info.metadata.get(name).cloned();
            refusal.reason.get_or_insert(Reason {
                reason: info.reason.clone(),
                domain: info.domain.clone(),
                consumer: told("consumer"),
                permission: told("permission"),
            });
        } else if let StatusDetails::PreconditionFailure(failure) = detail {
            refusal.violations.extend(failure.violations.iter().map(|violation| violation.r#type.clone()));
        }
    }
    refusal
}

/// Our own identity could not be had; whatever the cause, the key was never asked.
pub fn token_failed(error: &CredentialsError) -> KmsError {
    // The library wraps the cause in advice about its own retries; ours differ.
    let innermost = causes(error).filter(|cause| cause.is::<CredentialsError>()).last();
    token_error(&chain(innermost.unwrap_or(error)))
}

/// See [`token_failed`].
pub fn token_error(text: &str) -> KmsError {
    judge_words("TOKEN", (FailureKind::Credentials, "token"), text)
}

/// The client could not be built: no roots of trust, a malformed endpoint, another universe.
pub fn build_failed(error: &BuildError) -> KmsError {
    let kind = if error.is_default_credentials() { FailureKind::Credentials } else { FailureKind::Misconfigured };
    judge_words("CLIENT", (kind, "client"), &chain(error))
}

/// Whether an HTTPS client can be made on this machine at all. The library's token code takes it for
/// granted and would panic.
pub fn check_tls() -> Result<(), KmsError> {
    let built = reqwest::Client::builder().build();
    built.map(drop).map_err(|error| judge_words("CLIENT", (FailureKind::Misconfigured, "client"), &chain(&error)))
}

/// No answer at all: name, connection or TLS.
fn transport(error: &Error, text: &str) -> KmsError {
    if let Some(tls) = find_tls(error) {
        let blocked = matches!(tls, rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer));
        // Somebody between us and Google shows a certificate of his own: inspection, not an outage.
        let (kind, code) = if blocked { (FailureKind::NetworkBlocked, "tls_unknown_issuer") } else { (FailureKind::Unreachable, "tls") };
        return KmsError::new(kind, false, code, text);
    }
    let code = match find_io(error) {
        Some(std::io::ErrorKind::ConnectionRefused) => "refused",
        Some(std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::ConnectionAborted | std::io::ErrorKind::BrokenPipe) => "reset",
        Some(_) | None if error.is_connect() => "connect",
        Some(_) | None => "reset",
    };
    judge_words("CONNECT", (FailureKind::Unreachable, code), text)
}

type Cause<'a> = &'a (dyn StdError + 'static);

fn causes(error: Cause<'_>) -> impl Iterator<Item = Cause<'_>> {
    fn below<'a>(error: &Cause<'a>) -> Option<Cause<'a>> {
        let error: Cause<'a> = *error;
        // `io::Error` shows what it wraps (TLS faults among it) by `get_ref` and not as its source.
        match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        }
    }
    std::iter::successors(Some(error), below)
}

/// The innermost one: outer ones may say `Other`.
fn find_io(error: Cause<'_>) -> Option<std::io::ErrorKind> {
    causes(error).filter_map(|cause| cause.downcast_ref::<std::io::Error>()).last().map(std::io::Error::kind)
}

fn find_tls(error: Cause<'_>) -> Option<&rustls::Error> {
    causes(error).find_map(|cause| cause.downcast_ref::<rustls::Error>())
}

fn timed_out(error: Cause<'_>) -> bool {
    causes(error).any(|cause| {
        cause.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_timeout)
            || cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::TimedOut)
    })
}

/// The texts of an error and its causes; one that the text above already holds is not repeated.
fn chain(error: Cause<'_>) -> String {
    let mut text = String::new();
    for cause in causes(error) {
        let next = cause.to_string();
        if !text.contains(&next) {
            text = if text.is_empty() { next } else { format!("{text}: {next}") };
        }
    }
    text
}

/// An HTTP date (`Wed, 25 Nov 2026 07:31:00 GMT`).
fn wall_of_date(text: &str) -> Option<Wall> {
    chrono::DateTime::parse_from_rfc2822(text).ok().map(|date| Wall(date.timestamp_millis()))
}
