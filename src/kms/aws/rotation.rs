//! outside
//! The rotation of an AWS key: its schedule and its newest rotation. Neither call works across
//! accounts, so it is asked as somebody in the key's own account or not at all. A refusal is told as
//! `not_observable`: it must never become a finding about the key.

use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::DateTime;

use super::{AwsKms, Services};
use crate::key::{AssumeRole, KeyTarget};
use crate::kms::RotationFacts;
use crate::time::Wall;
use crate::words::RotationSeen;

/// A hundred rotations a page: more than a key can have by schedule in its life.
const PAGES: usize = 10;
const PAGE: i32 = 100;

impl AwsKms {
    pub(super) async fn rotation_facts(&self, key: &KeyTarget) -> RotationFacts {
        let Some(role) = self.reader_of(key) else {
            return RotationFacts::unknown(RotationSeen::NotObservable, "no_reader_role");
        };
        match self.clients.services(self.region(key), role.as_ref()) {
            Ok(services) => read(&services, key).await,
            Err(_) => RotationFacts::unknown(RotationSeen::NotObservable, "reader_role"),
        }
    }

    /// Who may ask: the key's reader role, else a role or ourselves in the key's account. `None` =
    /// nobody, `Some(None)` = the provider's own identity.
    fn reader_of(&self, key: &KeyTarget) -> Option<Option<AssumeRole>> {
        let owner = key.reference.account();
        if let Some(arn) = &key.reader_role {
            let external_id = key.assume_role.as_ref().and_then(|role| role.external_id.clone());
            return Some(Some(AssumeRole { arn: arn.clone(), external_id }));
        }
        match &key.assume_role {
            Some(role) => (role.arn.split(':').nth(4) == Some(owner)).then(|| Some(role.clone())),
            None => self.our_accounts.iter().any(|ours| ours == owner).then_some(None),
        }
    }
}

async fn read(services: &Services, key: &KeyTarget) -> RotationFacts {
    let status = match services.kms.get_key_rotation_status().key_id(key.address()).send().await {
        Ok(status) => status,
        Err(error) => return refused(&error),
    };
    RotationFacts {
        seen: RotationSeen::Observed,
        rotated_at: newest(services, key).await,
        next_rotation_at: if status.key_rotation_enabled() { wall(status.next_rotation_date()) } else { None },
        why: None,
    }
}

/// A list that cannot be read to its end leaves the date unknown rather than old.
async fn newest(services: &Services, key: &KeyTarget) -> Option<Wall> {
    let (mut marker, mut newest) = (None, None);
    for _ in 0..PAGES {
        let page = services.kms.list_key_rotations().key_id(key.address()).limit(PAGE).set_marker(marker).send().await.ok()?;
        newest = page.rotations().iter().filter_map(|rotation| wall(rotation.rotation_date())).max().max(newest);
        match page.next_marker() {
            Some(next) if page.truncated() => marker = Some(next.to_owned()),
            Some(_) | None => return newest,
        }
    }
    None
}

/// Asymmetric keys, HMAC keys and keys in another key store have no rotation by AWS.
fn refused<E: ProvideErrorMetadata>(error: &SdkError<E>) -> RotationFacts {
    match error.code() {
        Some("UnsupportedOperationException") => RotationFacts::unknown(RotationSeen::NotApplicable, "UnsupportedOperationException"),
        Some(code) => RotationFacts::unknown(RotationSeen::NotObservable, code),
        None => RotationFacts::unknown(RotationSeen::NotObservable, "no_answer"),
    }
}

fn wall(at: Option<&DateTime>) -> Option<Wall> {
    at.and_then(|date| date.to_millis().ok()).map(Wall)
}
