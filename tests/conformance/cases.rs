//! The cases. Each makes its own key, so they do not depend on each other's order.

use std::sync::Arc;

use base64::Engine as _;
use cmek_watchdog::key::{KeyTarget, KeyVersion};
use cmek_watchdog::kms::{Answer, KeyFacts, Kms, KmsError, Wrapped};
use cmek_watchdog::words::Leg;

use super::{AfterCancel, Bench, CaseResult, Expect, Played, Refusal, ensure, needs};

pub struct Stage<'b, B: Bench> {
    pub bench: &'b B,
    pub kms: Arc<dyn Kms>,
    pub expect: Expect,
}

impl<B: Bench> Stage<'_, B> {
    async fn wrap(&self, key: &KeyTarget) -> Result<Wrapped, String> {
        self.kms.wrap_key(key).await.result.map_err(|e| format!("wrap failed: {e:?}"))
    }
    /// Unwraps; the digest must be the canary's own.
    async fn open(&self, key: &KeyTarget, wrapped: &Wrapped) -> Result<Option<KeyVersion>, String> {
        let opened = self.kms.unwrap_key(key, wrapped).await.result.map_err(|e| format!("unwrap failed: {e:?}"))?;
        ensure!(opened.digest == wrapped.digest, "the digest of what came out is not the canary's");
        Ok(opened.version)
    }
    async fn facts(&self, key: &KeyTarget) -> Result<KeyFacts, String> {
        self.kms.describe_key(key).await.result.map_err(|e| format!("describe failed: {e:?}"))
    }
    async fn wrap_refused(&self, key: &KeyTarget, refusal: Refusal) -> Result<(), String> {
        refused("wrap", self.kms.wrap_key(key).await, refusal)
    }
    async fn unwrap_refused(&self, key: &KeyTarget, wrapped: &Wrapped, refusal: Refusal) -> Result<(), String> {
        refused("unwrap", self.kms.unwrap_key(key, wrapped).await, refusal)
    }
    /// Both data calls are refused.
    async fn off(&self, key: &KeyTarget, canary: &Wrapped, refusal: Refusal) -> Result<(), String> {
        if self.expect.wrap_is_refused_too {
            self.wrap_refused(key, refusal).await?;
        }
        self.unwrap_refused(key, canary, refusal).await
    }
    /// Describe states the fault, as a fact or as the reason why it fails.
    async fn describe_states(&self, key: &KeyTarget, refusal: Refusal) -> Result<Option<KeyFacts>, String> {
        match self.kms.describe_key(key).await.result {
            Ok(facts) => {
                let fault = facts.fault.clone().ok_or("describe states no fault")?;
                fits("describe", &fault, refusal)?;
                Ok(Some(facts))
            }
            Err(error) => fits("describe", &error, refusal).map(|()| None),
        }
    }
    /// Whatever comes back for damaged bytes, it is not the canary, and no verdict about the key.
    async fn not_opened(&self, what: &str, key: &KeyTarget, wrapped: &Wrapped) -> Result<(), String> {
        match self.kms.unwrap_key(key, wrapped).await.result {
            Ok(opened) => {
                ensure!(opened.digest != wrapped.digest, "{what}: opened as if nothing had happened");
                ensure!(!self.expect.integrity, "{what}: opened to other bytes, though the server checks integrity");
                Ok(())
            }
            Err(error) => fits(what, &error, self.expect.damaged),
        }
    }
    /// The version behind a canary, by the first call that tells it.
    async fn version_of(&self, key: &KeyTarget, canary: &Wrapped) -> Result<Option<KeyVersion>, String> {
        let opened = self.open(key, canary).await?;
        Ok(canary.version.clone().or(opened))
    }
}

fn fits(what: &str, error: &KmsError, refusal: Refusal) -> Result<(), String> {
    ensure!(refusal.kinds.contains(&error.kind), "{what} failed as {}, expected one of {:?}: {error:?}", error.kind, refusal.kinds);
    ensure!(error.stated == refusal.stated, "{what} has stated = {}, expected {}: {error:?}", error.stated, refusal.stated);
    Ok(())
}

fn refused<T>(what: &str, answer: Answer<T>, refusal: Refusal) -> Result<(), String> {
    match answer.result {
        Ok(_) => Err(format!("{what} was answered, expected one of {:?}", refusal.kinds)),
        Err(error) => fits(what, &error, refusal),
    }
}

pub async fn round_trip<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let key = stage.bench.make_key().await;
    let canary = stage.wrap(&key).await?;
    ensure!(canary.bytes.len() >= 32, "the wrapped form has only {} bytes", canary.bytes.len());
    ensure!(canary.digest != [0; 32], "the digest is empty");
    stage.open(&key, &canary).await?;
    // A second time: opening uses nothing up.
    stage.open(&key, &canary).await?;
    Ok(Played::Yes)
}

pub async fn every_wrap_is_fresh<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let key = stage.bench.make_key().await;
    let (one, two) = (stage.wrap(&key).await?, stage.wrap(&key).await?);
    ensure!(one.digest != two.digest, "two canaries are the same");
    ensure!(one.bytes != two.bytes, "two wrapped forms are the same");
    stage.open(&key, &one).await?;
    stage.open(&key, &two).await?;
    Ok(Played::Yes)
}

pub async fn wrap_and_unwrap_name_the_version<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    needs!(stage.expect.wrap_names_version || stage.expect.unwrap_names_version);
    let key = stage.bench.make_key().await;
    let canary = stage.wrap(&key).await?;
    let opened = stage.open(&key, &canary).await?;
    ensure!(!stage.expect.wrap_names_version || canary.version.is_some(), "wrap names no version");
    ensure!(!stage.expect.unwrap_names_version || opened.is_some(), "unwrap names no version");
    if let (Some(wrapped), Some(opened)) = (&canary.version, &opened) {
        ensure!(wrapped == opened, "wrap names version {wrapped}, unwrap {opened}");
    }
    Ok(Played::Yes)
}

pub async fn describe_names_the_current_version<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let key = stage.bench.make_key().await;
    let canary = stage.wrap(&key).await?;
    let version = stage.version_of(&key, &canary).await?;
    let facts = stage.facts(&key).await?;
    ensure!(facts.fault.is_none(), "describe states a fault of a good key: {:?}", facts.fault);
    ensure!(facts.deletion_at.is_none(), "describe tells a deletion of a good key");
    if stage.expect.describe_names_version {
        ensure!(facts.current_version.is_some(), "describe names no current version");
        ensure!(version.is_none() || facts.current_version == version, "describe names {:?}, calls {version:?}", facts.current_version);
    }
    if stage.expect.describe_lists_versions {
        let listed = facts.versions.iter().any(|v| v.enabled && Some(&v.version) == facts.current_version.as_ref());
        ensure!(listed, "the current version is not among the enabled ones: {:?}", facts.versions);
    }
    Ok(Played::Yes)
}

pub async fn disabled_is_refused_and_stated<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let key = stage.bench.make_key().await;
    let canary = stage.wrap(&key).await?;
    needs!(stage.bench.disable(&key).await);
    stage.off(&key, &canary, stage.expect.disabled).await?;
    stage.describe_states(&key, stage.expect.described_disabled.unwrap_or(stage.expect.disabled)).await?;
    Ok(Played::Yes)
}

pub async fn enabled_again_heals<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let key = stage.bench.make_key().await;
    let canary = stage.wrap(&key).await?;
    needs!(stage.bench.disable(&key).await);
    stage.unwrap_refused(&key, &canary, stage.expect.disabled).await?;
    needs!(stage.bench.enable(&key).await);
    healed(stage, &key, &canary).await
}

/// The old canary opens, a new round trip is good and describe states no fault.
async fn healed<B: Bench>(stage: &Stage<'_, B>, key: &KeyTarget, canary: &Wrapped) -> CaseResult {
    stage.open(key, canary).await?;
    let fresh = stage.wrap(key).await?;
    stage.open(key, &fresh).await?;
    let facts = stage.facts(key).await?;
    ensure!(facts.fault.is_none() && facts.deletion_at.is_none(), "describe still states a fault: {facts:?}");
    Ok(Played::Yes)
}

pub async fn pending_deletion_is_refused_and_stated<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let key = stage.bench.make_key().await;
    let canary = stage.wrap(&key).await?;
    needs!(stage.bench.schedule_deletion(&key).await);
    stage.off(&key, &canary, stage.expect.pending_deletion).await?;
    let facts = stage.describe_states(&key, stage.expect.described_pending_deletion.unwrap_or(stage.expect.pending_deletion)).await?;
    if stage.expect.describe_tells_deletion {
        ensure!(facts.is_some_and(|f| f.deletion_at.is_some()), "describe does not tell when the key will be deleted");
    }
    Ok(Played::Yes)
}

pub async fn cancelled_deletion<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let key = stage.bench.make_key().await;
    let canary = stage.wrap(&key).await?;
    needs!(stage.bench.schedule_deletion(&key).await);
    stage.unwrap_refused(&key, &canary, stage.expect.pending_deletion).await?;
    needs!(stage.bench.cancel_deletion(&key).await);
    if stage.expect.after_cancel == AfterCancel::Disabled {
        stage.off(&key, &canary, stage.expect.disabled).await?;
        needs!(stage.bench.enable(&key).await);
    }
    healed(stage, &key, &canary).await
}

pub async fn destroyed_key<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let key = stage.bench.make_key().await;
    let canary = stage.wrap(&key).await?;
    needs!(stage.bench.destroy(&key).await);
    stage.off(&key, &canary, stage.expect.destroyed).await?;
    stage.describe_states(&key, stage.expect.described_destroyed.unwrap_or(stage.expect.destroyed)).await?;
    Ok(Played::Yes)
}

pub async fn denied_unwrap_leaves_wrap<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let key = stage.bench.make_key().await;
    let canary = stage.wrap(&key).await?;
    needs!(stage.bench.deny(&key, Leg::Unwrap).await);
    stage.wrap(&key).await?;
    stage.unwrap_refused(&key, &canary, stage.expect.denied).await?;
    needs!(stage.bench.allow(&key, Leg::Unwrap).await);
    healed(stage, &key, &canary).await
}

pub async fn denied_wrap_leaves_unwrap<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let key = stage.bench.make_key().await;
    let canary = stage.wrap(&key).await?;
    needs!(stage.bench.deny(&key, Leg::Wrap).await);
    stage.open(&key, &canary).await?;
    stage.wrap_refused(&key, stage.expect.denied).await?;
    needs!(stage.bench.allow(&key, Leg::Wrap).await);
    healed(stage, &key, &canary).await
}

pub async fn denied_describe_leaves_data_calls<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let key = stage.bench.make_key().await;
    let canary = stage.wrap(&key).await?;
    needs!(stage.bench.deny(&key, Leg::Describe).await);
    stage.open(&key, &canary).await?;
    let fresh = stage.wrap(&key).await?;
    stage.open(&key, &fresh).await?;
    refused("describe", stage.kms.describe_key(&key).await, stage.expect.described_denied.unwrap_or(stage.expect.denied))?;
    needs!(stage.bench.allow(&key, Leg::Describe).await);
    healed(stage, &key, &canary).await
}

/// A key with one older version: (key, canary of the older, its version, canary of the current, its version).
type Rotated = (KeyTarget, Wrapped, Option<KeyVersion>, Wrapped, Option<KeyVersion>);

async fn rotated<B: Bench>(stage: &Stage<'_, B>) -> Result<Option<Rotated>, String> {
    let key = stage.bench.make_key().await;
    let old = stage.wrap(&key).await?;
    let old_version = stage.version_of(&key, &old).await?;
    if !stage.bench.rotate(&key).await {
        return Ok(None);
    }
    let new = stage.wrap(&key).await?;
    let new_version = stage.version_of(&key, &new).await?;
    Ok(Some((key, old, old_version, new, new_version)))
}

pub async fn rotation_keeps_old_canaries<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let Some((key, old, old_version, _, new_version)) = rotated(stage).await? else { return Ok(Played::No) };
    if stage.expect.wrap_names_version || stage.expect.unwrap_names_version {
        ensure!(old_version.is_some() && old_version != new_version, "the rotation is not seen: {old_version:?}, then {new_version:?}");
    }
    let reopened = stage.open(&key, &old).await?;
    if stage.expect.unwrap_names_version {
        ensure!(reopened == old_version, "the old canary of {old_version:?} reports {reopened:?}");
    }
    let facts = stage.facts(&key).await?;
    ensure!(facts.fault.is_none(), "describe states a fault after a rotation: {:?}", facts.fault);
    if stage.expect.describe_names_version {
        ensure!(facts.current_version == new_version, "describe names {:?}, not {new_version:?}", facts.current_version);
    }
    if stage.expect.describe_lists_versions {
        let lists = |version: &Option<KeyVersion>| facts.versions.iter().any(|v| v.enabled && Some(&v.version) == version.as_ref());
        ensure!(lists(&old_version) && lists(&new_version), "describe does not list both versions: {:?}", facts.versions);
    }
    ensure!(!stage.expect.describe_tells_rotation || facts.rotated_at.is_some(), "describe does not tell when the key was rotated");
    Ok(Played::Yes)
}

pub async fn old_version_disabled<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let Some((key, old, Some(old_version), new, _)) = rotated(stage).await? else { return Ok(Played::No) };
    needs!(stage.bench.disable_version(&key, &old_version).await);
    stage.unwrap_refused(&key, &old, stage.expect.version_disabled).await?;
    healed(stage, &key, &new).await?;
    if stage.expect.describe_lists_versions {
        let facts = stage.facts(&key).await?;
        let listed = facts.versions.iter().find(|v| v.version == old_version);
        ensure!(listed.is_some_and(|v| !v.enabled), "describe does not show version {old_version} as off: {:?}", facts.versions);
    }
    needs!(stage.bench.enable_version(&key, &old_version).await);
    healed(stage, &key, &old).await
}

pub async fn old_version_destroyed<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let Some((key, old, Some(old_version), new, _)) = rotated(stage).await? else { return Ok(Played::No) };
    needs!(stage.bench.destroy_version(&key, &old_version).await);
    stage.unwrap_refused(&key, &old, stage.expect.version_destroyed).await?;
    healed(stage, &key, &new).await
}

pub async fn unknown_key<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let canary = {
        let key = stage.bench.make_key().await;
        stage.wrap(&key).await?
    };
    let unknown = stage.bench.unknown_key().await;
    stage.wrap_refused(&unknown, stage.expect.unknown_key).await?;
    refused("describe", stage.kms.describe_key(&unknown).await, stage.expect.unknown_key)?;
    match stage.kms.unwrap_key(&unknown, &canary).await.result {
        Ok(opened) => {
            ensure!(opened.digest != canary.digest, "a key that does not exist opened a canary");
            ensure!(!stage.expect.integrity, "a key that does not exist opened something");
        }
        Err(error) => fits("unwrap", &error, stage.expect.unknown_key)?,
    }
    Ok(Played::Yes)
}

pub async fn tampered_bytes<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let key = stage.bench.make_key().await;
    let canary = stage.wrap(&key).await?;
    let length = canary.bytes.len();
    for at in [length / 2, length - 17, length - 1] {
        let mut bytes = canary.bytes.to_vec();
        bytes[at] ^= 0x40;
        stage.not_opened(&format!("byte {at} of {length} flipped"), &key, &Wrapped { bytes: bytes.into(), ..canary.clone() }).await?;
    }
    let cut = Wrapped { bytes: canary.bytes[..length - 1].into(), ..canary.clone() };
    stage.not_opened("last byte cut off", &key, &cut).await?;
    stage.open(&key, &canary).await?;
    Ok(Played::Yes)
}

pub async fn canary_of_another_key<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let (one, two) = (stage.bench.make_key().await, stage.bench.make_key().await);
    let canary = stage.wrap(&one).await?;
    stage.not_opened("the canary of another key", &two, &canary).await?;
    Ok(Played::Yes)
}

pub async fn wrong_context<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let key = stage.bench.make_key().await;
    let canary = stage.wrap(&key).await?;
    let other = stage.wrap(&stage.bench.other_context(&key)).await?;
    // Where nothing is bound into the wrapped form there is no wrong context.
    needs!(other.sealed_with != canary.sealed_with);
    let swapped = Wrapped { sealed_with: other.sealed_with, ..canary };
    stage.not_opened("another context", &key, &swapped).await?;
    Ok(Played::Yes)
}

pub async fn context_is_remembered<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let key = stage.bench.make_key().await;
    let changed = stage.bench.other_context(&key);
    let (before, after) = (stage.wrap(&key).await?, stage.wrap(&changed).await?);
    // A change of the configured context applies to new canaries only, in both directions.
    stage.open(&changed, &before).await?;
    stage.open(&key, &after).await?;
    Ok(Played::Yes)
}

pub async fn whoami_is_stable<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let key = stage.bench.make_key().await;
    let mut names = Vec::new();
    for _ in 0..3 {
        names.push(stage.kms.whoami(&key).await.result.map_err(|e| format!("whoami failed: {e:?}"))?);
    }
    ensure!(names.iter().all(|n| !n.is_empty() && *n == names[0]), "we are not always the same: {names:?}");
    Ok(Played::Yes)
}

pub async fn calls_at_once<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let key = stage.bench.make_key().await;
    let turns = (0..16).map(|_| async {
        let canary = stage.wrap(&key).await?;
        stage.open(&key, &canary).await?;
        Ok::<_, String>(canary.digest)
    });
    let mut digests = futures_util::future::try_join_all(turns).await?;
    digests.sort_unstable();
    digests.dedup();
    ensure!(digests.len() == 16, "16 round trips at once gave {} different canaries", digests.len());
    Ok(Played::Yes)
}

pub async fn dropped_calls_harm_nothing<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let key = stage.bench.make_key().await;
    let canary = stage.wrap(&key).await?;
    for _ in 0..4 {
        // Polled once, then dropped, as a deadline does it.
        let call = stage.kms.unwrap_key(&key, &canary);
        let _ = futures_util::FutureExt::now_or_never(call);
        let call = stage.kms.wrap_key(&key);
        let _ = futures_util::FutureExt::now_or_never(call);
    }
    healed(stage, &key, &canary).await
}

pub async fn canary_never_shown<B: Bench>(stage: &Stage<'_, B>) -> CaseResult {
    let key = stage.bench.make_key().await;
    let wrap = stage.kms.wrap_key(&key).await;
    let canary = wrap.result.clone().map_err(|e| format!("wrap failed: {e:?}"))?;
    let unwrap = stage.kms.unwrap_key(&key, &canary).await;
    let Some(plain) = stage.bench.plaintext_of(&key, &canary).await else { return Ok(Played::No) };
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &plain);
    ensure!(digest.as_ref() == canary.digest, "the digest is not the SHA-256 of the canary");
    let shown = format!("{wrap:?} {unwrap:?}");
    let hex: String = plain.iter().map(|b| format!("{b:02x}")).collect();
    let list = format!("{plain:?}");
    for form in [hex.clone(), hex.to_uppercase(), list[1..list.len() - 1].to_owned(), base64::prelude::BASE64_STANDARD.encode(&plain)] {
        ensure!(!shown.contains(&form), "the canary's bytes appear in Debug of an answer");
    }
    ensure!(!canary.bytes.windows(plain.len()).any(|w| w == plain), "the wrapped form holds the canary in the clear");
    Ok(Played::Yes)
}
