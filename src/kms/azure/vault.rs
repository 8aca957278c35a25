//! outside
//! The vault's bytes under the operator's own key: the same calls to the service, but the plaintext
//! goes back to the caller. Bound to one key when made, so that nothing can be sealed under a customer's.

use std::sync::Arc;

use zeroize::{Zeroize as _, Zeroizing};

use super::{Asked, AtVault, AzureKms, Fault, sha256};
use crate::key::KeyTarget;
use crate::kms::{Answer, BoxFuture, KmsError, WrapBytes, Wrapped};
use crate::words::FailureKind;

/// The operator's key in Key Vault or Managed HSM. RSA-OAEP-256 takes at most 190 bytes under a key
/// of 2,048 bits: a data key, not a document.
#[derive(Debug)]
pub struct AzureVaultKey {
    kms: Arc<AzureKms>,
    key: Arc<KeyTarget>,
}

impl AzureVaultKey {
    #[must_use]
    pub const fn new(kms: Arc<AzureKms>, key: Arc<KeyTarget>) -> Self {
        Self { kms, key }
    }
}

impl WrapBytes for AzureVaultKey {
    fn wrap_bytes<'a>(&'a self, plain: &'a [u8]) -> BoxFuture<'a, Answer<Wrapped>> {
        Box::pin(async move {
            let at_vault = AtVault::default();
            let run = self.kms.seal(&self.key, None, Zeroizing::new(plain.to_vec()), &at_vault);
            self.kms.timed(Asked::Data, &self.key, at_vault.clone(), run).await
        })
    }

    fn unwrap_bytes<'a>(&'a self, wrapped: &'a Wrapped) -> BoxFuture<'a, Answer<Vec<u8>>> {
        Box::pin(async move {
            let at_vault = AtVault::default();
            let run = async {
                let ((mut plain, _), seen) = self.kms.open(&self.key, wrapped, &at_vault).await?;
                if sha256(&plain) == wrapped.digest {
                    return Ok((plain, seen));
                }
                plain.zeroize();
                let text = "other bytes came out than were sealed";
                Err(Fault::Ours(KmsError::new(FailureKind::Corrupt, false, "digest_mismatch", text)))
            };
            self.kms.timed(Asked::Data, &self.key, at_vault.clone(), run).await
        })
    }
}
