//! What systemd hears, and that no customer's key can make the daemon look ill.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, Place, QUICK, get, now};

/// A place with three keys, and the socket that the daemon tells its state.
fn watched() -> (Place, UnixDatagram) {
    let keys: String = ["a", "b", "c"]
        .iter()
        .map(|id| format!("[[keys]]\nid = \"{id}\"\nprovider = \"local\"\nkey = \"{id}\"\nworkspaces = [\"ws_{id}\"]\n"))
        .collect();
    let mut place = Place::new(&format!("{QUICK}{keys}"));
    let socket = UnixDatagram::bind(place.path("notify.sock")).unwrap();
    place.env.push(("NOTIFY_SOCKET".to_owned(), place.path("notify.sock").display().to_string()));
    place.env.push(("WATCHDOG_USEC".to_owned(), "1000000".to_owned()));
    (place, socket)
}

/// Datagrams until one begins with `wanted`.
fn hear(socket: &UnixDatagram, wanted: &str, within: Duration) -> (String, Vec<String>) {
    let (since, mut before) = (Instant::now(), Vec::new());
    let mut buffer = [0; 4096];
    loop {
        assert!(since.elapsed() < within, "no {wanted} within {within:?}, only {before:?}");
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if text.lines().any(|line| line.starts_with(wanted)) {
            return (text, before);
        }
        before.push(text);
    }
}

#[test]
fn ready_comes_when_the_doors_answer_and_revoked_keys_stop_no_ping() {
    let (place, socket) = watched();
    let daemon = place.spawn(&[]);
    let (_, before) = hear(&socket, "READY=1", PATIENCE);
    assert_eq!(get(daemon.port, "/readyz").map(|answer| answer.status), Some(200), "READY=1 before the door answers");
    assert!(!before.iter().any(|text| text.contains("STOPPING")), "{before:?}");
    for key in ["a", "b", "c"] {
        daemon.wait_state(key, "active", PATIENCE);
    }
    hear(&socket, "WATCHDOG=1", Duration::from_secs(5));
    hear(&socket, "STATUS=watching 3 keys, 0 not active, 0 workspaces restricted", Duration::from_secs(15));

    for key in ["a", "b", "c"] {
        place.kms().disable(key, now()).unwrap();
    }
    for key in ["a", "b", "c"] {
        daemon.wait_access(&format!("ws_{key}"), "locked", Duration::from_secs(15));
    }
    assert_eq!(daemon.get("/healthz").status, 200);
    assert_eq!(daemon.get("/readyz").status, 200);
    hear(&socket, "STATUS=watching 3 keys, 3 not active, 3 workspaces restricted", Duration::from_secs(15));
    // Thirty seconds of silence would make it ill; ten pings at twice a second show that none comes.
    let since = Instant::now();
    for _ in 0..10 {
        hear(&socket, "WATCHDOG=1", Duration::from_secs(2));
        assert_eq!(daemon.get("/healthz").status, 200);
    }
    println!("service manager: 10 pings in {:?} with every key revoked and WatchdogSec=1s", since.elapsed());

    daemon.signal(rustix::process::Signal::TERM);
    hear(&socket, "STOPPING=1", Duration::from_secs(10));
    daemon.stop();
}

#[test]
fn a_daemon_without_keys_is_well() {
    let mut place = Place::new(QUICK);
    let socket = UnixDatagram::bind(place.path("notify.sock")).unwrap();
    place.env.push(("NOTIFY_SOCKET".to_owned(), place.path("notify.sock").display().to_string()));
    place.env.push(("WATCHDOG_USEC".to_owned(), "1000000".to_owned()));
    let daemon = place.start();
    hear(&socket, "READY=1", PATIENCE);
    for _ in 0..3 {
        hear(&socket, "WATCHDOG=1", Duration::from_secs(5));
    }
    assert_eq!(daemon.get("/healthz").status, 200);
    daemon.stop();
}
