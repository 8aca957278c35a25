//! Every way in which an owner takes a key away, and gives it back.

use std::time::Instant;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_right_workspaces_lock_and_open_again_and_the_others_never_do() {
    let stage = Stage::set(20, &[5]).await;
    let acted = Instant::now();
    stage.kms.disable_key().key_id(stage.arn(1)).send().await.unwrap();
    stage.kms.schedule_key_deletion().key_id(stage.arn(2)).pending_window_in_days(7).send().await.unwrap();
    put_policy(&stage.kms, stage.arn(3), Some("Decrypt")).await;
    put_policy(&stage.kms, stage.arn(4), Some("Encrypt")).await;
    stage.kms.delete_imported_key_material().key_id(stage.arn(5)).send().await.unwrap();

    for (number, access, cause) in [
        (1, "locked", "disabled"),
        (2, "locked", "pending_deletion"),
        (3, "locked", "access_denied"),
        (4, "read_only", "access_denied"),
        (5, "locked", "expired"),
    ] {
        let found = stage.daemon.until_access(&name('w', number), access, SOON).await;
        println!("{} {access} ({cause}) {:?} after the owner's act", name('w', number), acted.elapsed());
        assert_eq!((&found["cause"], &found["by"]), (&cause.into(), &"automatic".into()), "{found:#}");
        assert_eq!(found["key"], name('k', number));
        assert_eq!(found["code"], "cmek_key_disabled");
        assert_eq!(found["durable"], true);
    }
    // What stays possible where: reading where only wrap is refused, safety metadata everywhere.
    let deleted = stage.daemon.get("/v1/keys/k02");
    assert!(deleted["facts"]["deletion_at"].is_string(), "{deleted:#}");
    let half = stage.daemon.get("/v1/keys/k04");
    assert_eq!((&half["state"], &half["verdict"]), (&"impaired".into(), &"impaired".into()), "{half:#}");
    let status = stage.daemon.get("/v1/status");
    assert_eq!(status["lowered_total"], 5);
    assert_eq!(status["providers"][0]["brake_engaged"], false, "several keys of one account are one owner's act");
    let told = stage.notices.until("workspace.locked", 4).await;
    let mut workspaces: Vec<String> = told.iter().flat_map(|n| n["data"]["workspaces"].as_array().unwrap()).map(Value::to_string).collect();
    workspaces.sort();
    assert_eq!(workspaces, ["\"w01\"", "\"w02\"", "\"w03\"", "\"w05\""]);
    assert_eq!(stage.notices.until("workspace.read_only", 1).await[0]["data"]["workspaces"], serde_json::json!(["w04"]));

    // A deletion that is only cancelled leaves the key disabled: no unlock from that.
    stage.kms.cancel_key_deletion().key_id(stage.arn(2)).send().await.unwrap();
    stage.daemon.until("/v1/workspaces/w02", SOON, |found| found["cause"] == "disabled" && found["access"] == "locked").await;

    stage.kms.enable_key().key_id(stage.arn(1)).send().await.unwrap();
    stage.kms.enable_key().key_id(stage.arn(2)).send().await.unwrap();
    put_policy(&stage.kms, stage.arn(3), None).await;
    put_policy(&stage.kms, stage.arn(4), None).await;
    import(&stage.kms, stage.arn(5)).await;
    for number in 1..=5 {
        let found = stage.daemon.until_access(&name('w', number), "open", SOON).await;
        assert_eq!(found["locks"], serde_json::json!([]), "{found:#}");
    }
    stage.until_active(20).await;
    stage.end(&[(1, "locked"), (2, "locked"), (3, "locked"), (4, "read_only"), (5, "locked")]).await;
}
