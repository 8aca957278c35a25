//! inside
//! Audit sources: which fields belong to which kind, and how a sender of hints proves itself. It must
//! never keep a secret, only where it is to be found.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::DeValue;

use super::keys::unknown_reference;
use super::notices::{note, secret};
use super::providers::assume_role;
use crate::audit::Mask;
use crate::config::raw::{self, Text};
use crate::config::sheet::Sheet;
use crate::config::values;
use crate::config::{AuditKind, AuditSource, Provider, PushAuth};
use crate::key::ProviderId;
use crate::time::Span;
use crate::words::ProviderKind;

type Providers = BTreeMap<ProviderId, Provider>;

const KINDS: [(&str, AuditKind); 5] = [
    ("cloudtrail", AuditKind::CloudTrail),
    ("cloud_logging", AuditKind::CloudLogging),
    ("azure_monitor", AuditKind::AzureMonitor),
    ("sqs", AuditKind::Sqs),
    ("push", AuditKind::Push),
];
const MASKS: [(&str, Mask); 3] = [("actor", Mask::Actor), ("address", Mask::Address), ("user_agent", Mask::UserAgent)];
/// Sources at most: each has series of its own.
const MOST: usize = 256;

/// Audit sources by name.
pub fn audit(sheet: &mut Sheet<'_>, providers: &Providers) -> Vec<AuditSource> {
    let mut sources = Vec::new();
    for (name, value) in sheet.entries("audit") {
        sheet.label(&name);
        if sources.len() >= MOST {
            sheet.error(name.span(), format!("more than {MOST} audit sources"));
            break;
        }
        let Some(raw) = sheet.read::<raw::Audit>(&value) else { continue };
        let kind = sheet.choice(&raw.kind, &KINDS);
        let provider = providers.get(raw.provider.get_ref().as_str());
        if provider.is_none() {
            let names: Vec<&str> = providers.keys().map(ProviderId::as_str).collect();
            sheet.error(raw.provider.span(), unknown_reference("provider", raw.provider.get_ref(), &names));
        }
        let poll_interval = raw.poll_interval.as_ref().and_then(|text| sheet.span_within(text, Span::from_secs(1), Span::from_days(1)));
        let (Some(kind), Some(provider)) = (kind, provider) else { continue };
        fits_provider(sheet, kind, &raw, provider);
        let address = address(sheet, kind, &raw, &value);
        foreign_fields(sheet, kind, &raw);
        let endpoint = endpoint(sheet, kind, &raw);
        let malformed = raw.malformed.as_ref().and_then(|text| sheet.choice(text, &[("delete", true), ("leave", false)]));
        let mask = raw.mask.iter().filter_map(|text| sheet.choice(text, &MASKS)).collect();
        let text = |text: Option<Text>| text.map(Spanned::into_inner);
        sources.push(AuditSource {
            name: name.into_inner(),
            kind,
            provider: provider.id.clone(),
            poll_interval: poll_interval.unwrap_or(Span::from_secs(60)),
            address,
            region: text(raw.region),
            assume_role: raw.assume_role.as_ref().and_then(|raw| assume_role(sheet, raw)),
            impersonate: text(raw.impersonate),
            tenant: text(raw.tenant),
            subscription: text(raw.subscription),
            endpoint,
            mask,
            look_now: raw.look_now.unwrap_or(true),
            delete_malformed: malformed.unwrap_or(true),
            auth: raw.auth.and_then(|raw| auth(sheet, &raw)),
        });
    }
    sources
}

fn fits_provider(sheet: &mut Sheet<'_>, kind: AuditKind, raw: &raw::Audit, provider: &Provider) {
    let wanted = match kind {
        AuditKind::CloudTrail | AuditKind::Sqs => Some(ProviderKind::Aws),
        AuditKind::CloudLogging => Some(ProviderKind::Gcp),
        AuditKind::AzureMonitor => Some(ProviderKind::Azure),
        AuditKind::Push => None,
    };
    if let Some(wanted) = wanted.filter(|wanted| *wanted != provider.kind()) {
        sheet.error(raw.provider.span(), format!("this kind of audit source needs a provider of kind {wanted}"));
    }
}

/// The one field that says what a kind reads.
fn address<'a>(sheet: &mut Sheet<'a>, kind: AuditKind, raw: &raw::Audit, value: &Spanned<DeValue<'a>>) -> Option<String> {
    let wanted = match kind {
        AuditKind::CloudTrail | AuditKind::Push => None,
        AuditKind::CloudLogging => Some("project"),
        AuditKind::AzureMonitor => Some("log_workspace"),
        AuditKind::Sqs => Some("queue_url"),
    };
    let mut address = None;
    for (field, text) in [("project", &raw.project), ("log_workspace", &raw.log_workspace), ("queue_url", &raw.queue_url)] {
        match (wanted == Some(field), text) {
            (true, Some(text)) => {
                if field == "queue_url" {
                    note(sheet, text, values::authority(text.get_ref(), &["http", "https"], "http://, https://"));
                } else if text.get_ref().is_empty() {
                    sheet.error(text.span(), "must not be empty");
                }
                address = Some(text.get_ref().clone());
            }
            (true, None) if field != "project" => sheet.error(value.span(), format!("missing field {field}")),
            (false, Some(text)) => sheet.error(text.span(), "is not known to this kind of audit source"),
            (true | false, None) => {}
        }
    }
    address
}

/// Fields that only other kinds have.
fn foreign_fields(sheet: &mut Sheet<'_>, kind: AuditKind, raw: &raw::Audit) {
    let aws = matches!(kind, AuditKind::CloudTrail | AuditKind::Sqs);
    let azure = kind == AuditKind::AzureMonitor;
    let role = raw.assume_role.as_ref().map(|role| role.arn.span());
    let fields = [
        (aws, raw.region.as_ref().map(Spanned::span)),
        (aws, role),
        (kind == AuditKind::CloudLogging, raw.impersonate.as_ref().map(Spanned::span)),
        (azure, raw.tenant.as_ref().map(Spanned::span)),
        (azure, raw.subscription.as_ref().map(Spanned::span)),
        (kind == AuditKind::Sqs, raw.malformed.as_ref().map(Spanned::span)),
        (kind != AuditKind::Push, raw.endpoint.as_ref().map(Spanned::span)),
        (kind == AuditKind::Push, raw.auth.as_ref().map(Spanned::span)),
    ];
    for at in fields.into_iter().filter(|(known, _)| !known).filter_map(|(_, at)| at) {
        sheet.error(at, "is not known to this kind of audit source");
    }
}

/// Tokens go to this address: plain http only on this machine.
fn endpoint(sheet: &mut Sheet<'_>, kind: AuditKind, raw: &raw::Audit) -> Option<String> {
    let text = raw.endpoint.as_ref()?;
    note(sheet, text, values::authority(text.get_ref(), &["http", "https"], "http://, https://"));
    let plain = text.get_ref().starts_with("http://");
    let here = ["http://127.0.0.1", "http://localhost", "http://[::1]"].iter().any(|start| text.get_ref().starts_with(start));
    if plain && !here && kind != AuditKind::Push {
        sheet.error(text.span(), "expected https:// beyond this machine");
    }
    Some(text.get_ref().trim_end_matches('/').to_owned())
}

fn auth(sheet: &mut Sheet<'_>, raw: &Spanned<raw::PushAuth>) -> Option<PushAuth> {
    let raw::PushAuth { api_key, sas_key, oidc } = raw.get_ref();
    match (api_key, sas_key, oidc) {
        (Some(key), None, None) => secret(sheet, key).map(PushAuth::ApiKey),
        (None, Some(key), None) => secret(sheet, key).map(PushAuth::SasKey),
        (None, None, Some(oidc)) => {
            for text in [&oidc.audience, &oidc.issuer, &oidc.subject] {
                if text.get_ref().is_empty() {
                    sheet.error(text.span(), "must not be empty");
                }
            }
            note(sheet, &oidc.jwks, values::authority(oidc.jwks.get_ref(), &["http", "https"], "http://, https://"));
            let here = ["http://127.0.0.1", "http://localhost", "http://[::1]"].iter().any(|start| oidc.jwks.get_ref().starts_with(start));
            if oidc.jwks.get_ref().starts_with("http://") && !here {
                sheet.error(oidc.jwks.span(), "expected https:// beyond this machine");
            }
            Some(PushAuth::Oidc {
                audience: oidc.audience.get_ref().clone(),
                issuer: oidc.issuer.get_ref().clone(),
                jwks: oidc.jwks.get_ref().clone(),
                subject: oidc.subject.get_ref().clone(),
            })
        }
        (Some(_) | None, Some(_) | None, Some(_) | None) => {
            sheet.error(raw.span(), "expected exactly one of: api_key, sas_key, oidc");
            None
        }
    }
}
