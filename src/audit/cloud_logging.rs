//! outside
//! Cloud Logging's entries:list: the admin activity log of Cloud KMS in bounded windows, oldest first,
//! and now and then whether the data-access log is there at all. Its absence is said; it must never be
//! taken for an absence of use.

use std::sync::Mutex;
use std::sync::PoisonError;

use google_cloud_gax::error::Error;
use google_cloud_gax::error::rpc::Code;
use google_cloud_logging_v2::client::LoggingServiceV2;

use super::windows::Windows;
use super::{AuditFault, AuditLog, Cursor, Page, record};
use crate::config::{AuditSource, Provider};
use crate::kms::BoxFuture;
use crate::kms::gcp::logging_client;
use crate::time::{Mono, Now, Span, Wall};
use crate::words::AuditTrouble;

const WINDOWS: Windows = Windows {
    overlap: Span::from_mins(10),
    longest: Span::from_hours(6),
    look_back: Span::from_hours(1),
    // The required bucket keeps admin activity for 400 days.
    kept: Span::from_days(399),
};
/// 60 reads a minute are allowed by project.
const PACE: Span = Span(1100);
const PAGE: i32 = 500;
/// As many projects as one call takes.
const PROJECTS: usize = 100;
/// How often a project is asked whether it writes data-access logs.
const LOOK_AGAIN: Span = Span::from_hours(1);

/// The logs of some projects.
pub struct CloudLogging {
    client: LoggingServiceV2,
    projects: Vec<String>,
    /// By project: when it was last asked for a data-access entry, and whether there was one.
    uses: Mutex<Vec<Option<(Mono, bool)>>>,
}

impl CloudLogging {
    /// # Errors
    /// If the provider is not of kind gcp, or its identity cannot be built.
    pub async fn open(provider: &Provider, source: &AuditSource, projects: &[String], timeout: Span) -> Result<Self, AuditFault> {
        if projects.is_empty() {
            return Err(AuditFault::new(AuditTrouble::Misconfigured, "no key of this provider and no `project`: nothing to read"));
        }
        if projects.len() > PROJECTS {
            let text = format!("{} projects, and one source reads {PROJECTS} at most: name a `project` in each of several", projects.len());
            return Err(AuditFault::new(AuditTrouble::Misconfigured, text));
        }
        let client = logging_client(provider, source, timeout).await?;
        Ok(Self { client, projects: projects.to_vec(), uses: Mutex::new(vec![None; projects.len()]) })
    }

    async fn page(&self, cursor: &Cursor, now: Now) -> Result<Page, AuditFault> {
        let (window, gap) = WINDOWS.next(cursor, now.wall);
        let names: Vec<String> = self.projects.iter().map(|project| format!("projects/{project}")).collect();
        let call = self
            .client
            .list_log_entries()
            .set_resource_names(names)
            .set_filter(filter("cloudaudit.googleapis.com%2Factivity", window.from, window.to))
            .set_order_by("timestamp asc")
            .set_page_size(PAGE)
            .set_page_token(cursor.page.clone().unwrap_or_default());
        let answer = call.send().await.map_err(|error| fault(&error))?;
        let mut page = Page { gaps: gap.into_iter().collect(), ..Page::default() };
        for entry in &answer.entries {
            match serde_json::to_value(entry).ok().as_ref().and_then(record::cloud_logging) {
                Some(event) => page.events.push(event),
                None => page.malformed = page.malformed.saturating_add(1),
            }
        }
        let token = Some(answer.next_page_token).filter(|token| !token.is_empty());
        (page.cursor, page.more) = WINDOWS.after(cursor, window, token, now.wall);
        page.seen_until = page.cursor.until;
        if !page.more {
            self.look_for_uses(now).await;
            page.unseen = self.unseen();
        }
        Ok(page)
    }

    /// Asks one project a turn. Our own probes are uses: an hour without any entry tells that the log is off.
    async fn look_for_uses(&self, now: Now) {
        let due = {
            let uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
            uses.iter().position(|last| last.is_none_or(|(at, _)| now.mono.since(at) >= LOOK_AGAIN))
        };
        let Some((n, project)) = due.and_then(|n| Some((n, self.projects.get(n)?))) else { return };
        let call = self
            .client
            .list_log_entries()
            .set_resource_names([format!("projects/{project}")])
            .set_filter(filter("cloudaudit.googleapis.com%2Fdata_access", now.wall.minus(Span::from_hours(1)), now.wall))
            .set_page_size(1);
        // Whoever may not read the private log sees none of it either: unknown is not observable.
        let seen = call.send().await.is_ok_and(|answer| !answer.entries.is_empty());
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = uses.get_mut(n) {
            *last = Some((now.mono, seen));
        }
    }

    fn unseen(&self) -> Vec<String> {
        let uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        let off = self.projects.iter().zip(uses.iter()).filter(|(_, last)| last.is_some_and(|(_, seen)| !seen));
        off.map(|(project, _)| format!("use of keys in projects/{project} is not observable: data-access logs are off, or not readable"))
            .collect()
    }
}

fn filter(log: &str, from: Wall, to: Wall) -> String {
    format!("logName:\"{log}\" AND protoPayload.serviceName=\"cloudkms.googleapis.com\" AND timestamp>=\"{from}\" AND timestamp<\"{to}\"")
}

impl AuditLog for CloudLogging {
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

fn fault(error: &Error) -> AuditFault {
    let kind = match error.status().map(|status| status.code) {
        Some(Code::PermissionDenied) => AuditTrouble::Denied,
        Some(Code::Unauthenticated) => AuditTrouble::Credentials,
        Some(Code::ResourceExhausted) => AuditTrouble::Throttled,
        Some(Code::NotFound) => AuditTrouble::LogDisabled,
        Some(Code::InvalidArgument) => AuditTrouble::Misconfigured,
        Some(Code::DeadlineExceeded) => AuditTrouble::Timeout,
        Some(_) => AuditTrouble::ProviderFault,
        None if error.is_authentication() => AuditTrouble::Credentials,
        None if error.is_timeout() => AuditTrouble::Timeout,
        None if error.http_status_code().is_some() => AuditTrouble::ProviderFault,
        None => AuditTrouble::Unreachable,
    };
    let text = error.status().map_or_else(|| error.to_string(), |status| status.message.clone());
    AuditFault::new(kind, text)
}
