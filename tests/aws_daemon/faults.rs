//! Trouble that is no one's act: of the provider, of the way to it, of our own identity. None of it locks.

use super::*;
use crate::fault_proxy::Fault;
use crate::ministack::encoded;

const INTERNAL: Fault = Fault::Refuse(500, "KMSInternalException", "An internal error occurred");
const THROTTLED: Fault = Fault::Refuse(400, "ThrottlingException", "You have exceeded the rate at which you may call KMS");

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_provider_and_of_the_network_lock_nothing_and_leave_no_trace_when_they_end() {
    let stage = Stage::set(20, &[]).await;
    for (what, fault, kind) in [
        ("500", INTERNAL, "provider_fault"),
        ("throttling", THROTTLED, "throttled"),
        ("reset", Fault::Reset, "unreachable"),
        ("hang", Fault::Hang, "timeout"),
    ] {
        stage.proxy.fault_all(fault);
        stage.endure(what, 3).await;
        let keys = stage.daemon.get("/v1/keys?limit=100");
        let of_kind = keys["items"].as_array().unwrap().iter().filter(|key| key["failure_kind"] == kind).count();
        assert!(of_kind > 0, "{what}: no key says {kind}: {keys:#}");
        stage.proxy.clear();
        stage.daemon.until("/v1/keys?limit=100", SOON, all_usable).await;
    }
    stage.proxy.refuse(true).await;
    stage.endure("refused connections", 3).await;
    stage.proxy.refuse(false).await;
    stage.daemon.until("/v1/keys?limit=100", SOON, all_usable).await;
    stage.until_active(20).await;
    assert!(stage.daemon.metrics().contains("cmek_probe_missed_windows_total"));
    stage.end(&[]).await;
}

fn all_usable(keys: &Value) -> bool {
    keys["items"].as_array().unwrap().iter().all(|key| key["verdict"] == "usable")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_revocation_locks_while_the_calls_of_other_keys_are_throttled() {
    let stage = Stage::set(20, &[]).await;
    for number in 3..=20 {
        stage.proxy.fault_key(stage.arn(number), THROTTLED);
    }
    stage.endure("throttling of all but two", 2).await;
    stage.kms.disable_key().key_id(stage.arn(1)).send().await.unwrap();
    put_policy(&stage.kms, stage.arn(2), Some("Decrypt")).await;
    stage.daemon.until_access("w01", "locked", SOON).await;
    stage.daemon.until_access("w02", "locked", SOON).await;
    stage.proxy.clear();
    stage.kms.enable_key().key_id(stage.arn(1)).send().await.unwrap();
    put_policy(&stage.kms, stage.arn(2), None).await;
    stage.until_active(20).await;
    stage.end(&[(1, "locked"), (2, "locked")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_credentials_made_bad_lock_nothing_page_once_and_keep_what_was_locked() {
    let stage = Stage::set(20, &[]).await;
    stage.kms.disable_key().key_id(stage.arn(1)).send().await.unwrap();
    stage.daemon.until_access("w01", "locked", SOON).await;
    stage.until_sampled("w01").await;

    let switch = async |to: &str| {
        let query = format!("Action=UpdateAccessKey&UserName=watchdog&AccessKeyId={}&Status={to}", stage.access_key);
        stage.server.iam(&query).await;
    };
    switch("Inactive").await;
    let status = stage.daemon.until("/v1/status", SOON, |status| status["providers"][0]["credentials_failing"] == true).await;
    assert_eq!(status["providers"][0]["brake_engaged"], false);
    stage.endure("a deactivated access key", 3).await;
    // Our rights in our own account taken away: a denial, and yet not the key owner's.
    switch("Active").await;
    stage.daemon.until("/v1/keys/k02", SOON, |key| key["verdict"] == "usable").await;
    let deny = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"kms:*","Resource":"*"}]}"#;
    stage.server.iam(&format!("Action=PutUserPolicy&UserName=watchdog&PolicyName=stop&PolicyDocument={}", encoded(deny))).await;
    stage.daemon.until("/v1/keys/k02", SOON, |key| key["failure_kind"] == "credentials").await;
    stage.endure("our own policy denies us", 3).await;
    assert_eq!(stage.daemon.access("w01"), "locked");
    let told = stage.notices.until("provider.credentials", 1).await;
    assert_eq!(told.len(), 1, "one notice for one trouble: {told:#?}");
    assert_eq!(told[0]["data"]["provider"], "aws");
    let shown = stage.program.ask_beside(&["status"]).await;
    assert_eq!(shown.code, 0);
    assert!(shown.out.to_lowercase().contains("credentials"), "{}", shown.out);

    // The key itself deleted, a restart in the middle: the locked one stays locked, the others open.
    stage.server.iam(&format!("Action=DeleteAccessKey&UserName=watchdog&AccessKeyId={}", stage.access_key)).await;
    let mut stage = stage;
    stage.daemon.kill();
    let daemon = Daemon::start(&stage.program).await;
    let sampler = Sampler::start(daemon.addr);
    let before = std::mem::replace(&mut stage.sampler, sampler).end();
    stage.daemon = daemon;
    assert_eq!(stage.daemon.access("w01"), "locked", "a restart enforces what is stored before it asks anybody");
    stage.endure_from_start("a restart with a deleted access key", 3, "w01").await;
    assert_eq!(before.lowered.keys().collect::<Vec<_>>(), ["w01"]);
    stage.end(&[(1, "locked")]).await;
}

impl Stage {
    /// As [`Stage::endure`] for a daemon that starts with this workspace locked.
    async fn endure_from_start(&self, what: &str, windows: u32, locked: &str) {
        tokio::time::sleep(WINDOW * windows).await;
        let seen = self.sampler.so_far();
        assert_eq!(seen.lowered.keys().collect::<Vec<_>>(), [locked], "{what}");
        assert!(seen.samples > 10);
        assert_eq!(self.daemon.get("/v1/status")["providers"][0]["credentials_failing"], true);
    }
}
