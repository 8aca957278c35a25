//! outside
//! The sealing itself: AES-256-GCM under a data key, the data key wrapped by a key of the vault. A data
//! key lies in memory that is wiped; it never shows in a text. The keys here are made for the vault
//! alone: they speak `WrapBytes`, which no probe has, and a probe's `Kms` cannot become one.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{digest, rand};
use zeroize::{Zeroize as _, Zeroizing};

use super::envelope::{self, NONCE_LEN, Place};
use super::wraps::{DataKeyId, KeyRole, VaultKeyName, Wrap};
use crate::kms::{Answer, KmsError, WrapBytes, Wrapped};
use crate::metrics::Metrics;
use crate::time::Wall;
use crate::words::FailureKind;

/// For one call, whatever the adapter's own limit.
const CALL: Duration = Duration::from_secs(15);
const KEY_LEN: usize = 32;

/// 256 bits; wiped when the last user lets go.
pub struct DataKey(Zeroizing<[u8; KEY_LEN]>);

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataKey(..)")
    }
}

/// Nothing that this machine could do: no randomness, no cipher.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("sealing failed on this machine")]
pub struct SealFault;

/// The envelope is not what was written to this place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the envelope is damaged, or was moved from another place")]
pub struct Damaged;

impl DataKey {
    /// # Errors
    /// If the system gives no random bytes.
    pub fn draw() -> Result<Self, SealFault> {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        rand::fill(bytes.as_mut()).map_err(|_| SealFault)?;
        Ok(Self(bytes))
    }

    /// Seals bytes to their place under a fresh random nonce.
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub fn seal(&self, place: &Place, plain: &[u8]) -> Result<Vec<u8>, SealFault> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| SealFault)?;
        let mut sealed = plain.to_vec();
        let bound = Aad::from(place.context());
        self.cipher()?.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), bound, &mut sealed).map_err(|_| SealFault)?;
        Ok(envelope::join(&place.data_key, &nonce, &sealed))
    }

    /// # Errors
    /// If anything differs: bytes, nonce, data key, or the place that the row says it has.
    pub fn open(&self, place: &Place, bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, Damaged> {
        let parts = envelope::split(bytes).filter(|parts| parts.data_key == place.data_key.as_str()).ok_or(Damaged)?;
        let mut buffer = Zeroizing::new(parts.sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(*parts.nonce);
        let bound = Aad::from(place.context());
        let length = self.cipher().map_err(|_| Damaged)?.open_in_place(nonce, bound, &mut buffer).map_err(|_| Damaged)?.len();
        buffer.truncate(length);
        Ok(buffer)
    }

    fn cipher(&self) -> Result<LessSafeKey, SealFault> {
        UnboundKey::new(&AES_256_GCM, self.0.as_ref()).map(LessSafeKey::new).map_err(|_| SealFault)
    }
}

/// A new id: `dk_` or `prs_` and 32 hex digits.
///
/// # Errors
/// If the system gives no random bytes.
pub fn new_id(prefix: &str) -> Result<String, SealFault> {
    use std::fmt::Write as _;
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| SealFault)?;
    Ok(bytes.iter().fold(prefix.to_owned(), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    }))
}

/// One of the vault's own keys: the operator's, or the recovery key.
#[derive(Clone)]
pub struct VaultKey {
    pub role: KeyRole,
    pub name: VaultKeyName,
    wrap: Arc<dyn WrapBytes>,
}

impl std::fmt::Debug for VaultKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VaultKey").field("role", &self.role).field("name", &self.name).finish_non_exhaustive()
    }
}

impl VaultKey {
    #[must_use]
    pub fn new(role: KeyRole, name: VaultKeyName, wrap: Arc<dyn WrapBytes>) -> Self {
        Self { role, name, wrap }
    }

    /// Wraps a data key, and takes it back out before it is believed: a good answer is not proof.
    ///
    /// # Errors
    /// What the key's service said to either call.
    pub async fn wrap(&self, key: &DataKey, now: Wall, metrics: &Metrics) -> Result<Wrap, KmsError> {
        metrics.kms_call(self.name.provider.as_str(), "vault_wrap");
        let wrapped = timed(self.wrap.wrap_bytes(key.0.as_ref())).await?;
        if self.open(&wrapped, metrics).await?.0 != key.0 {
            return Err(mismatch());
        }
        Ok(Wrap { role: self.role, name: self.name.clone(), wrapped, wrapped_at: now })
    }

    /// # Errors
    /// What the key's service said, or `corrupt` if other bytes came out than went in.
    pub async fn unwrap(&self, wrap: &Wrap, metrics: &Metrics) -> Result<DataKey, KmsError> {
        self.open(&wrap.wrapped, metrics).await
    }

    async fn open(&self, wrapped: &Wrapped, metrics: &Metrics) -> Result<DataKey, KmsError> {
        metrics.kms_call(self.name.provider.as_str(), "vault_unwrap");
        let plain = Zeroizing::new(timed(self.wrap.unwrap_bytes(wrapped)).await?);
        let same = digest::digest(&digest::SHA256, &plain).as_ref() == wrapped.digest;
        let mut key = Zeroizing::new([0; KEY_LEN]);
        match plain.first_chunk::<KEY_LEN>() {
            Some(bytes) if same && plain.len() == KEY_LEN => key.copy_from_slice(bytes),
            Some(_) | None => {
                key.zeroize();
                return Err(mismatch());
            }
        }
        Ok(DataKey(key))
    }
}

async fn timed<T>(call: impl Future<Output = Answer<T>>) -> Result<T, KmsError> {
    match tokio::time::timeout(CALL, call).await {
        Ok(answer) => answer.result,
        Err(_) => Err(KmsError::new(FailureKind::Timeout, false, "timeout", "no answer within 15 s")),
    }
}

fn mismatch() -> KmsError {
    KmsError::new(FailureKind::Corrupt, false, "digest_mismatch", "other bytes came out than were wrapped")
}

/// # Errors
/// If the system gives no random bytes.
pub fn new_data_key() -> Result<(DataKeyId, DataKey), SealFault> {
    Ok((DataKeyId(new_id("dk_")?.into()), DataKey::draw()?))
}
