//! outside
//! A queue that EventBridge, SNS or CloudTrail write to: long polls, ten messages a call. A message is
//! deleted only after the core has its events on disk; one that cannot be read goes by the source's
//! own rule. It must never delete what nobody has taken.

use aws_sdk_sqs::types::DeleteMessageBatchRequestEntry;

use super::cloudtrail::fault;
use super::{AuditFault, AuditLog, Cursor, Hint, Page, hint};
use crate::config::{AuditSource, Provider};
use crate::kms::BoxFuture;
use crate::kms::aws::{AuditClients, ExternalIds};
use crate::time::{Now, Span};
use crate::words::AuditTrouble;

/// Seconds that a call waits for a message.
const WAIT: i32 = 20;

/// One queue.
pub struct Sqs {
    client: aws_sdk_sqs::Client,
    queue: String,
    delete_malformed: bool,
}

impl Sqs {
    /// # Errors
    /// If the provider is not of kind aws, or a role's external id is not resolved.
    pub async fn open(provider: &Provider, source: &AuditSource, ids: ExternalIds, timeout: Span) -> Result<Self, AuditFault> {
        // The call waits by itself; its deadline comes after that.
        let parts = AuditClients::open(provider, source, ids, timeout.plus(Span::from_secs(u64::from(WAIT.unsigned_abs())))).await?;
        let mut config = aws_sdk_sqs::config::Builder::from(&parts.base).region(parts.region.clone());
        if let Some(credentials) = parts.credentials {
            config.set_credentials_provider(Some(credentials));
        }
        if let Some(endpoint) = parts.endpoint {
            config = config.endpoint_url(endpoint);
        }
        let queue = source.address.clone().unwrap_or_default();
        Ok(Self { client: aws_sdk_sqs::Client::from_conf(config.build()), queue, delete_malformed: source.delete_malformed })
    }

    async fn receive(&self, now: Now) -> Result<Page, AuditFault> {
        let call = self.client.receive_message().queue_url(&self.queue).max_number_of_messages(10).wait_time_seconds(WAIT);
        let answer = call.send().await.map_err(|error| fault(&error))?;
        let mut page = Page { seen_until: Some(now.wall), more: true, ..Page::default() };
        for message in answer.messages.unwrap_or_default() {
            let Some(receipt) = message.receipt_handle else { continue };
            match hint::read(message.body.as_deref().unwrap_or("").as_bytes()) {
                Ok(Hint::Events(events)) => {
                    page.events.extend(events);
                    page.receipts.push(receipt);
                }
                Ok(Hint::Validation(_)) | Err(_) => {
                    page.malformed = page.malformed.saturating_add(1);
                    if self.delete_malformed {
                        page.receipts.push(receipt);
                    }
                }
            }
        }
        Ok(page)
    }

    async fn delete(&self, receipts: &[String]) -> Result<(), AuditFault> {
        for batch in receipts.chunks(10) {
            let entries = batch
                .iter()
                .enumerate()
                .map(|(n, receipt)| DeleteMessageBatchRequestEntry::builder().id(n.to_string()).receipt_handle(receipt).build());
            let entries = entries.collect::<Result<Vec<_>, _>>().map_err(|e| AuditFault::new(AuditTrouble::Malformed, e.to_string()))?;
            let call = self.client.delete_message_batch().queue_url(&self.queue).set_entries(Some(entries));
            let answer = call.send().await.map_err(|error| fault(&error))?;
            if let Some(failed) = answer.failed.first() {
                return Err(AuditFault::new(AuditTrouble::ProviderFault, format!("a message was not deleted: {}", failed.code)));
            }
        }
        Ok(())
    }
}

impl AuditLog for Sqs {
    fn poll<'a>(&'a self, _: &'a Cursor, now: Now) -> BoxFuture<'a, Result<Page, AuditFault>> {
        Box::pin(self.receive(now))
    }
    fn taken<'a>(&'a self, receipts: &'a [String]) -> BoxFuture<'a, Result<(), AuditFault>> {
        Box::pin(self.delete(receipts))
    }
    fn pace(&self) -> Span {
        Span(200)
    }
}
