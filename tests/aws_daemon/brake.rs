//! Many owners at once without a stated key state: the brake holds, a person releases it.

use super::*;
use crate::ministack::encoded;

const OWNERS: [&str; 6] = ["210000000001", "210000000002", "210000000003", "210000000004", "210000000005", "210000000006"];

const ROLE: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:*","Resource":"*"}]}"#;
const TRUST: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"*"},"Action":"sts:AssumeRole"}]}"#;

async fn give_rights(server: &Ministack, account: &str) {
    let query = format!("Action=PutRolePolicy&RoleName=cmek-probe&PolicyName=p&PolicyDocument={}", encoded(ROLE));
    server.iam_of(account, &query).await;
}

async fn take_rights(server: &Ministack, account: &str) {
    server.iam_of(account, "Action=DeleteRolePolicy&RoleName=cmek-probe&PolicyName=p").await;
}

/// Six owners, one key each, watched through a role in each owner's account.
async fn owners() -> Stage {
    let server = Ministack::start().await;
    let kms = owner(&server, ACCOUNT);
    let (mut keys, mut tables) = (Vec::new(), String::new());
    for (at, account) in OWNERS.iter().enumerate() {
        server.iam_of(account, &format!("Action=CreateRole&RoleName=cmek-probe&AssumeRolePolicyDocument={}", encoded(TRUST))).await;
        give_rights(&server, account).await;
        let theirs = owner(&server, account);
        let arn = theirs.create_key().send().await.unwrap().key_metadata.unwrap().arn.unwrap();
        assert!(arn.contains(account), "{arn}");
        // The account's own key policy: what the role may do is up to the role.
        tables.push_str(&key_table(at + 1, &arn, &format!("assume_role = {{ arn = \"arn:aws:iam::{account}:role/cmek-probe\" }}")));
        keys.push(arn);
    }
    Stage::with(server, kms, keys, &tables).await
}

impl Stage {
    async fn deny_four(&self) {
        for account in &OWNERS[..4] {
            take_rights(&self.server, account).await;
        }
        self.daemon.until("/v1/status", SOON, |status| held(status) == 4).await;
    }
}

fn held(status: &Value) -> usize {
    status["providers"][0]["held"].as_array().map_or(0, Vec::len)
}

#[tokio::test(flavor = "multi_thread")]
async fn four_owners_denied_at_once_engage_the_brake_and_only_a_person_lets_go() {
    let stage = owners().await;
    stage.deny_four().await;
    let status = stage.daemon.get("/v1/status");
    assert_eq!(status["providers"][0]["brake_engaged"], true);
    stage.endure("four owners denied", 2).await;
    let key = stage.daemon.get("/v1/keys/k01");
    assert_eq!((&key["state"], &key["held_by"], &key["failure_kind"]), (&"suspect".into(), &"brake".into(), &"access_denied".into()));
    assert_eq!(stage.notices.until("brake.engaged", 1).await.len(), 1);
    assert!(stage.daemon.metrics().contains("cmek_brake_engaged{provider=\"aws\"} 1"));

    // A stated key state passes the brake.
    owner(&stage.server, OWNERS[4]).disable_key().key_id(stage.arn(5)).send().await.unwrap();
    let found = stage.daemon.until_access("w05", "locked", SOON).await;
    assert_eq!(found["cause"], "disabled");
    stage.until_sampled("w05").await;

    // The held state survives a crash.
    let mut stage = stage;
    stage.daemon.kill();
    stage.daemon = Daemon::start(&stage.program).await;
    let sampler = Sampler::start(stage.daemon.addr);
    let before = std::mem::replace(&mut stage.sampler, sampler).end();
    assert_eq!(before.lowered.keys().collect::<Vec<_>>(), ["w05"]);
    assert_eq!(stage.daemon.get("/v1/status")["providers"][0]["brake_engaged"], true);
    assert_eq!(held(&stage.daemon.get("/v1/status")), 4);

    let unreasoned = stage.program.ask_beside(&["brake", "release", "aws", "--lock"]).await;
    assert_eq!(unreasoned.code, 2, "{unreasoned:?}");
    let unknown = stage.program.ask_beside(&["brake", "release", "gcp", "--lock", "--reason", "INC-1"]).await;
    assert_eq!(unknown.code, 66, "{unknown:?}");
    // One owner gave the right back before the release: that order drops by itself.
    give_rights(&stage.server, OWNERS[3]).await;
    stage.daemon.until_state("k04", "active", SOON).await;
    let done = stage.program.ask_beside(&["--json", "brake", "release", "aws", "--lock", "--reason", "INC-1: owners confirmed"]).await;
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(done.json()["released"], 3);
    for workspace in ["w01", "w02", "w03"] {
        stage.daemon.until_access(workspace, "locked", SOON).await;
    }
    assert_eq!(stage.daemon.get("/v1/status")["providers"][0]["brake_engaged"], false);
    stage.notices.until("brake.released", 1).await;
    for account in &OWNERS[..3] {
        give_rights(&stage.server, account).await;
    }
    owner(&stage.server, OWNERS[4]).enable_key().key_id(stage.arn(5)).send().await.unwrap();
    stage.until_active(6).await;
    stage.end(&[(1, "locked"), (2, "locked"), (3, "locked"), (5, "locked")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_orders_lock_nothing_until_the_keys_were_good_and_are_denied_anew() {
    let stage = owners().await;
    stage.deny_four().await;
    let done = stage.program.ask_beside(&["brake", "release", "aws", "--drop", "--reason", "INC-2: a slip in the landing zone"]).await;
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(done.out, "held locks dropped: 4\n");
    stage.endure("dropped orders, still denied", 3).await;
    let status = stage.daemon.get("/v1/status");
    assert_eq!((&status["providers"][0]["brake_engaged"], held(&status)), (&false.into(), 0));
    for account in &OWNERS[..4] {
        give_rights(&stage.server, account).await;
    }
    stage.until_active(6).await;
    // One owner alone, later, is that owner's act.
    take_rights(&stage.server, OWNERS[1]).await;
    stage.daemon.until_access("w02", "locked", SOON).await;
    stage.end(&[(2, "locked")]).await;
}
