//! outside
//! The vault's bytes under the operator's own key: the same calls, but the plaintext goes back to the
//! caller. Bound to one key when made, so that nothing can be sealed under a customer's.

use std::collections::BTreeMap;
use std::sync::Arc;

use zeroize::Zeroize as _;

use super::AwsKms;
use crate::key::KeyTarget;
use crate::kms::{Answer, BoxFuture, WrapBytes, Wrapped};

/// The operator's key on AWS. KMS takes at most 4,096 bytes at a time.
#[derive(Debug)]
pub struct AwsVaultKey {
    kms: Arc<AwsKms>,
    key: Arc<KeyTarget>,
}

impl AwsVaultKey {
    #[must_use]
    pub const fn new(kms: Arc<AwsKms>, key: Arc<KeyTarget>) -> Self {
        Self { kms, key }
    }

    /// Another purpose than a probe's, so that neither opens what the other sealed.
    fn context(&self) -> BTreeMap<String, String> {
        if self.key.encryption_context.is_empty() {
            BTreeMap::from([("purpose".to_owned(), "cmek-watchdog-vault".to_owned())])
        } else {
            self.key.encryption_context.clone()
        }
    }
}

impl WrapBytes for AwsVaultKey {
    fn wrap_bytes<'a>(&'a self, plain: &'a [u8]) -> BoxFuture<'a, Answer<Wrapped>> {
        Box::pin(async move {
            let Answer { result, meta } = self.kms.seal_bytes(&self.key, plain, &self.context()).await;
            let sealed = match result {
                Ok(sealed) => sealed,
                Err(error) => return Answer { result: Err(error), meta },
            };
            // Encrypt does not name the material; Decrypt does. Without it a rotation of the operator's
            // key would never be seen, and a data key that does not open is of no use anyway.
            let Answer { result, meta } = self.kms.open_bytes(&self.key, &sealed).await;
            let result = result.map(|(mut plain, version)| {
                plain.zeroize();
                Wrapped { version, ..sealed }
            });
            Answer { result, meta }
        })
    }
    fn unwrap_bytes<'a>(&'a self, wrapped: &'a Wrapped) -> BoxFuture<'a, Answer<Vec<u8>>> {
        Box::pin(async move {
            let Answer { result, meta } = self.kms.open_bytes(&self.key, wrapped).await;
            Answer { result: result.map(|(plain, _)| plain), meta }
        })
    }
}
