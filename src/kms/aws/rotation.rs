//! outside
//! When a key was rotated and will be: GetKeyRotationStatus and ListKeyRotations, which AWS refuses
//! across accounts. Read with the key's `reader_role`, or as ourselves where the account is ours.

use std::borrow::Cow;

use super::facts::wall;
use super::{AwsKms, Call, incomplete};
use crate::key::{AssumeRole, KeyTarget};
use crate::kms::{Answer, CallMeta, KmsError, Rotation};
use crate::time::Wall;

/// Rotations are listed in pages, oldest first; the newest of the pages read is told.
const PAGE: i32 = 1000;
const PAGES: usize = 5;

impl AwsKms {
    /// Who may read: a role, or ourselves (`None`). Without either nobody is asked.
    pub(super) fn rotation_reader<'a>(&self, key: &'a KeyTarget) -> Option<Option<Cow<'a, AssumeRole>>> {
        // These calls take no alias.
        if !key.address().contains(":key/") {
            return None;
        }
        match &key.reader_role {
            Some(arn) => Some(Some(Cow::Owned(AssumeRole { arn: arn.clone(), external_id: None }))),
            None if self.our_accounts.iter().any(|ours| ours == key.reference.account()) => {
                Some(key.assume_role.as_ref().map(Cow::Borrowed))
            }
            None => None,
        }
    }

    pub(super) async fn read_rotation(&self, key: &KeyTarget, reader: Option<Cow<'_, AssumeRole>>) -> Answer<Rotation> {
        let call = Call::start("kms:GetKeyRotationStatus", key);
        let kms = match self.clients.services(self.region(key), reader.as_deref()).map_err(|fault| self.judge(key, &fault)) {
            Ok(services) => services.kms,
            Err(error) => return call.failed(error),
        };
        let sent = kms.get_key_rotation_status().key_id(key.address()).customize().interceptor(call.hearing.clone()).send().await;
        let Answer { result, meta } = self.close(call, sent, |status| {
            // One asked for by hand is under way until it is listed.
            let next = status.on_demand_rotation_start_date.as_ref().or(status.next_rotation_date.as_ref());
            Ok(wall(next))
        });
        match result {
            Ok(next_rotation_at) => {
                let result = self.newest(key, &kms).await.map(|rotated_at| Rotation { rotated_at, next_rotation_at });
                Answer { result, meta }
            }
            Err(error) => Answer { result: Err(error), meta },
        }
    }

    async fn newest(&self, key: &KeyTarget, kms: &aws_sdk_kms::Client) -> Result<Option<Wall>, KmsError> {
        let (mut newest, mut marker) = (None, None);
        for _ in 0..PAGES {
            let call = Call::start("kms:ListKeyRotations", key);
            let request = kms.list_key_rotations().key_id(key.address()).limit(PAGE).set_marker(marker);
            let sent = request.customize().interceptor(call.hearing.clone()).send().await;
            let Answer { result, meta: CallMeta { .. } } = self.close(call, sent, Ok);
            let page = result?;
            newest = page.rotations().iter().filter_map(|row| wall(row.rotation_date())).max().max(newest);
            if !page.truncated {
                break;
            }
            marker = Some(page.next_marker.ok_or_else(|| incomplete("NextMarker"))?);
        }
        Ok(newest)
    }
}
