//! outside
//! CloudTrail's LookupEvents: bounded windows, one attribute, one page a call, newest first within a
//! window. Each window begins an overlap earlier, because CloudTrail writes up to a quarter of an hour
//! late. It must never ask for all there is at once.

use aws_sdk_cloudtrail::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_cloudtrail::primitives::DateTime;
use aws_sdk_cloudtrail::types::{LookupAttribute, LookupAttributeKey};

use super::windows::Windows;
use super::{AuditFault, AuditLog, Cursor, Page, record};
use crate::config::{AuditSource, Provider};
use crate::kms::BoxFuture;
use crate::kms::aws::{AuditClients, ExternalIds};
use crate::time::{Now, Span};
use crate::words::AuditTrouble;

/// CloudTrail writes an event within about a quarter of an hour, and keeps it for 90 days.
const WINDOWS: Windows =
    Windows { overlap: Span::from_mins(15), longest: Span::from_hours(1), look_back: Span::from_hours(1), kept: Span::from_days(89) };
/// Two calls a second are allowed, per account and region.
const PACE: Span = Span(600);

/// One account and region.
pub struct CloudTrail {
    client: aws_sdk_cloudtrail::Client,
}

impl CloudTrail {
    /// # Errors
    /// If the provider is not of kind aws, or a role's external id is not resolved.
    pub async fn open(provider: &Provider, source: &AuditSource, ids: ExternalIds, timeout: Span) -> Result<Self, AuditFault> {
        let parts = AuditClients::open(provider, source, ids, timeout).await?;
        let mut config = aws_sdk_cloudtrail::config::Builder::from(&parts.base).region(parts.region.clone());
        if let Some(credentials) = parts.credentials {
            config.set_credentials_provider(Some(credentials));
        }
        if let Some(endpoint) = parts.endpoint {
            config = config.endpoint_url(endpoint);
        }
        Ok(Self { client: aws_sdk_cloudtrail::Client::from_conf(config.build()) })
    }

    async fn page(&self, cursor: &Cursor, now: Now) -> Result<Page, AuditFault> {
        let (window, gap) = WINDOWS.next(cursor, now.wall);
        let by_service = LookupAttribute::builder()
            .attribute_key(LookupAttributeKey::EventSource)
            .attribute_value("kms.amazonaws.com")
            .build()
            .map_err(|error| AuditFault::new(AuditTrouble::Malformed, error.to_string()))?;
        let call = self
            .client
            .lookup_events()
            .start_time(DateTime::from_millis(window.from.0))
            .end_time(DateTime::from_millis(window.to.0))
            .lookup_attributes(by_service)
            .max_results(50)
            .set_next_token(cursor.page.clone());
        let answer = call.send().await.map_err(|error| fault(&error))?;
        let mut page = Page { gaps: gap.into_iter().collect(), ..Page::default() };
        for event in answer.events.unwrap_or_default() {
            let read = event.cloud_trail_event.as_deref().and_then(|text| serde_json::from_str(text).ok());
            match read.as_ref().and_then(record::cloudtrail) {
                Some(event) => page.events.push(event),
                None => page.malformed = page.malformed.saturating_add(1),
            }
        }
        (page.cursor, page.more) = WINDOWS.after(cursor, window, answer.next_token.filter(|token| !token.is_empty()), now.wall);
        page.seen_until = page.cursor.until;
        Ok(page)
    }
}

impl AuditLog for CloudTrail {
    fn poll<'a>(&'a self, cursor: &'a Cursor, now: Now) -> BoxFuture<'a, Result<Page, AuditFault>> {
        Box::pin(self.page(cursor, now))
    }
    fn taken<'a>(&'a self, _: &'a [String]) -> BoxFuture<'a, Result<(), AuditFault>> {
        Box::pin(async { Ok(()) })
    }
    fn pace(&self) -> Span {
        PACE
    }
}

/// What a failed call means, by its code.
pub(super) fn fault<E: ProvideErrorMetadata + std::error::Error + 'static>(
    error: &SdkError<E, aws_sdk_kms::config::http::HttpResponse>,
) -> AuditFault {
    let text = aws_smithy_types::error::display::DisplayErrorContext(error).to_string();
    let short = error.message().map_or(text.as_str(), |message| message);
    let code = error.code().unwrap_or("");
    let kind = match code {
        "ThrottlingException" | "Throttling" | "RequestLimitExceeded" | "TooManyRequestsException" | "RequestThrottled" | "SlowDown" => {
            AuditTrouble::Throttled
        }
        "AccessDeniedException" | "AccessDenied" | "UnauthorizedOperation" => AuditTrouble::Denied,
        "ExpiredToken"
        | "ExpiredTokenException"
        | "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "SignatureDoesNotMatch"
        | "InvalidSignatureException"
        | "IncompleteSignature" => AuditTrouble::Credentials,
        "OptInRequired" | "OperationNotPermittedException" | "UnsupportedOperationException" | "TrailNotFoundException" => {
            AuditTrouble::LogDisabled
        }
        "AWS.SimpleQueueService.NonExistentQueue" | "QueueDoesNotExist" | "InvalidAddress" => AuditTrouble::LogDisabled,
        "ValidationException"
        | "InvalidTimeRangeException"
        | "InvalidLookupAttributesException"
        | "InvalidNextTokenException"
        | "InvalidMaxResultsException" => AuditTrouble::Misconfigured,
        _ => match error {
            SdkError::TimeoutError(_) => AuditTrouble::Timeout,
            SdkError::DispatchFailure(failure) if failure.is_timeout() => AuditTrouble::Timeout,
            SdkError::DispatchFailure(_) if text.contains("redentials") => AuditTrouble::Credentials,
            SdkError::DispatchFailure(_) => AuditTrouble::Unreachable,
            SdkError::ConstructionFailure(_) => AuditTrouble::Misconfigured,
            _ => AuditTrouble::ProviderFault,
        },
    };
    let said = if code.is_empty() { short.to_owned() } else { format!("{code}: {short}") };
    AuditFault::new(kind, said)
}
