//! A full disk: a revocation still locks, survives a crash, and is in the store when there is room.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::{DEMO, Daemon, PATIENCE, Place, QUICK, now};

/// A small file system of its own below the place.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Nothing where we may not mount.
    fn mount(at: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).arg(&at).output();
        match mounted {
            Ok(out) if out.status.success() => Some(Self { at }),
            Ok(out) => skipped(&String::from_utf8_lossy(&out.stderr)),
            Err(error) => skipped(&error.to_string()),
        }
    }

    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }

    fn fill(&self) {
        let mut filler = std::fs::OpenOptions::new().create(true).append(true).open(self.filler()).unwrap();
        while filler.write_all(&[b'x'; 512]).is_ok() {}
    }

    fn empty(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _left_mounted = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

fn skipped<T>(why: &str) -> Option<T> {
    println!("SKIPPED: a small file system cannot be mounted here: {}", why.trim());
    None
}

fn full_and_revoked(place: &Place, disk: &SmallDisk) -> Daemon {
    let daemon = place.start();
    daemon.wait_state("demo", "active", PATIENCE);
    disk.fill();
    place.kms().disable("demo", now()).unwrap();
    daemon.wait_access("wrkspc_demo", "locked", Duration::from_secs(15));
    let shown = daemon.workspace("wrkspc_demo");
    assert_eq!(shown["durable"], false, "it cannot be in the store: {shown}");
    assert_eq!(daemon.get("/healthz").status, 200);
    daemon.wait("the failed writes are counted", Duration::from_secs(10), || {
        daemon.get("/v1/status").json()["store_write_failures"].as_u64().is_some_and(|count| count > 0)
    });
    daemon
}

fn place_on(disk: impl FnOnce(PathBuf) -> Option<SmallDisk>) -> Option<(Place, SmallDisk)> {
    let place = Place::new(&format!("{QUICK}{DEMO}"));
    let disk = disk(place.path("state"))?;
    Some((place, disk))
}

/// The same lock. Its number may have risen, because the store never knew the first one; it never falls.
fn assert_still_locked(before: &Value, after: &Value) {
    assert_eq!((&after["access"], &after["locks"][0]["since"]), (&"locked".into(), &before["locks"][0]["since"]), "{after}");
    assert!(after["sequence"].as_u64() >= before["sequence"].as_u64(), "{before}, then {after}");
}

#[test]
fn a_lock_on_a_full_disk_is_shown_at_once_and_stored_when_there_is_room() {
    let Some((place, disk)) = place_on(SmallDisk::mount) else { return };
    let daemon = full_and_revoked(&place, &disk);
    let sequence = daemon.workspace("wrkspc_demo")["sequence"].clone();
    disk.empty();
    daemon.wait("the lock is stored", Duration::from_secs(30), || daemon.workspace("wrkspc_demo")["durable"] == true);
    assert_eq!(daemon.workspace("wrkspc_demo")["sequence"], sequence);
    assert!(daemon.events().contains(&"workspace.locked".to_owned()));
    // An unlock waits for the store without limit, and comes when it is good.
    disk.fill();
    place.kms().enable("demo", now()).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(daemon.access("wrkspc_demo"), "locked", "an unlock that is on no disk");
    disk.empty();
    daemon.wait_access("wrkspc_demo", "open", Duration::from_secs(30));
    daemon.stop();
    place.good(&["journal", "verify"]);
}

#[test]
fn a_lock_on_a_full_disk_survives_a_kill() {
    let Some((place, disk)) = place_on(SmallDisk::mount) else { return };
    let daemon = full_and_revoked(&place, &disk);
    let before = daemon.workspace("wrkspc_demo");
    daemon.kill();
    // The key is good again, so that nothing but the spool can know of the lock.
    place.kms().enable("demo", now()).unwrap();
    disk.empty();
    let daemon = place.start();
    assert_still_locked(&before, &daemon.workspace("wrkspc_demo"));
    daemon.wait_access("wrkspc_demo", "open", Duration::from_secs(30));
    daemon.stop();
    place.good(&["journal", "verify"]);
}

#[test]
fn a_start_on_a_full_disk_keeps_the_lock() {
    let Some((place, disk)) = place_on(SmallDisk::mount) else { return };
    let daemon = full_and_revoked(&place, &disk);
    let before = daemon.workspace("wrkspc_demo");
    daemon.kill();
    let daemon = place.start();
    assert_still_locked(&before, &daemon.workspace("wrkspc_demo"));
    disk.empty();
    daemon.wait("the lock is stored", Duration::from_secs(30), || daemon.workspace("wrkspc_demo")["durable"] == true);
    daemon.stop();
}

#[test]
fn a_stop_on_a_full_disk_ends_in_time_and_keeps_the_lock() {
    let Some((place, disk)) = place_on(SmallDisk::mount) else { return };
    let daemon = full_and_revoked(&place, &disk);
    let before = daemon.workspace("wrkspc_demo");
    let took = daemon.stop();
    println!("full disk: stopped in {took:?}");
    assert!(took < Duration::from_secs(15), "{took:?}");
    place.kms().enable("demo", now()).unwrap();
    disk.empty();
    let daemon = place.start();
    assert_still_locked(&before, &daemon.workspace("wrkspc_demo"));
    daemon.stop();
}
