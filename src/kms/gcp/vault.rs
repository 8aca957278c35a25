//! outside
//! The vault's bytes under the operator's own key: the same calls, but the plaintext goes back to the
//! caller. Bound to one key when made, so that nothing can be sealed under a customer's.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::wire::Failed;
use super::{GcpKms, Stage, aad_of, digest_of, wipe};
use crate::key::KeyTarget;
use crate::kms::{Answer, BoxFuture, KmsError, WrapBytes, Wrapped};
use crate::words::FailureKind;

/// Another purpose than a probe's, so that neither opens what the other sealed.
const MARK: &str = "cmek-watchdog-vault";

/// The operator's key on Google Cloud. Cloud KMS takes at most 64 KiB at a time, an HSM key 8 KiB.
#[derive(Debug)]
pub struct GcpVaultKey {
    kms: Arc<GcpKms>,
    key: Arc<KeyTarget>,
}

impl GcpVaultKey {
    #[must_use]
    pub const fn new(kms: Arc<GcpKms>, key: Arc<KeyTarget>) -> Self {
        Self { kms, key }
    }

    async fn open(&self, wrapped: &Wrapped, stage: &Stage) -> Result<Vec<u8>, Failed> {
        let opened = self.kms.open(&self.key, wrapped, stage).await?;
        let digest = digest_of(&opened, wrapped);
        let plain = opened.plaintext.to_vec();
        wipe(opened.plaintext);
        let plain = Zeroizing::new(plain);
        if digest? == wrapped.digest {
            Ok(plain.to_vec())
        } else {
            Err(KmsError::new(FailureKind::Corrupt, false, "digest_mismatch", "other bytes came out than were sealed").into())
        }
    }
}

impl WrapBytes for GcpVaultKey {
    fn wrap_bytes<'a>(&'a self, plain: &'a [u8]) -> BoxFuture<'a, Answer<Wrapped>> {
        Box::pin(async move {
            let stage = Stage::default();
            let (name, plain) = (self.key.address().to_owned(), Zeroizing::new(plain.to_vec()));
            let call = self.kms.seal(&self.key, name, plain, aad_of(&self.key, MARK), &stage);
            self.kms.answer(&self.key, &stage, call).await
        })
    }

    fn unwrap_bytes<'a>(&'a self, wrapped: &'a Wrapped) -> BoxFuture<'a, Answer<Vec<u8>>> {
        Box::pin(async move {
            let stage = Stage::default();
            self.kms.answer(&self.key, &stage, self.open(wrapped, &stage)).await
        })
    }
}
