//! The official OpenFeature providers, in Python and JavaScript, server and web, against the real
//! daemon with tokens: what they see, and how soon a lock is seen.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Daemon, PATIENCE, repository, request};
use crate::{Server, installed, place};

const READ: &str = "read-token";
const OPERATE: &str = "operate-token";

fn digest(text: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A provider in a process of its own, and its lines with the time at which each came.
struct Watching {
    name: &'static str,
    lines: Receiver<(Instant, Value)>,
    _process: Server,
}

impl Watching {
    fn start(name: &'static str, mut command: Command, port: u16, workspace: &str) -> Self {
        command.args([&format!("http://127.0.0.1:{port}"), READ, workspace, "workspace_usable", "models"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        let (say, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = say.send((Instant::now(), serde_json::from_str(&line).unwrap_or_else(|error| json!(format!("{error}: {line}")))));
            }
        });
        Self { name, lines, _process: Server(child) }
    }

    /// The next line, which must be about `what`.
    fn next(&self, what: &str) -> (Instant, Value) {
        let (at, line) =
            self.lines.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{}: {error} while waiting for {what}", self.name));
        assert_eq!(line["what"], what, "{}: {line}", self.name);
        (at, line)
    }

    /// Lines about the flag until it has this value.
    fn until(&self, value: bool) -> (Instant, Value) {
        loop {
            let (at, line) = self.next("flag");
            if line["value"] == value {
                return (at, line);
            }
        }
    }
}

fn node(kind: &str) -> Command {
    let folder = std::env::var_os("CMEK_TEST_NODE").map_or_else(|| repository().join("target/test-node"), Into::into);
    assert!(folder.join("node_modules").exists(), "{} is not there: run tests/run, which installs it", folder.display());
    let mut command = Command::new("node");
    command.env("CMEK_TEST_NODE", folder).arg(repository().join("tests/support/flags.mjs")).arg(kind);
    command
}

fn python() -> Command {
    let mut command = Command::new(installed("python"));
    command.arg(repository().join("tests/support/flags.py"));
    command
}

fn active(daemon: &Daemon, key: &str) {
    let bearer = format!("Bearer {READ}");
    daemon.wait(&format!("{key} is active"), PATIENCE, || {
        let told = request(daemon.port, "GET", &format!("/v1/keys/{key}"), &[("authorization", &bearer)], None);
        told.is_some_and(|told| told.status == 200 && told.json()["state"] == "active")
    });
}

fn order(daemon: &Daemon, workspace: &str, order: &str) {
    let bearer = format!("Bearer {OPERATE}");
    let path = format!("/v1/workspaces/{workspace}/{order}");
    let told = request(daemon.port, "POST", &path, &[("authorization", &bearer)], Some(&json!({ "reason": "drill" }))).unwrap();
    assert_eq!(told.status, 200, "{told:?}");
}

#[test]
fn the_official_providers_see_a_lock_and_an_unlock() {
    let place = place();
    let text = std::fs::read_to_string(&place.config).unwrap();
    let tokens = format!(
        "tokens = [{{ name = \"web\", role = \"read\", sha256 = \"{}\" }}, {{ name = \"oncall\", role = \"operate\", sha256 = \"{}\" }}]",
        digest(READ),
        digest(OPERATE)
    );
    std::fs::write(&place.config, text.replace("insecure_loopback = true", &tokens)).unwrap();
    let daemon = place.start();
    ["acme", "globex"].iter().for_each(|key| active(&daemon, key));

    let watching = [
        Watching::start("Python, server", python(), place.port, "wrkspc_acme"),
        Watching::start("npm, server", node("server"), place.port, "wrkspc_acme"),
        Watching::start("npm, web (event stream)", node("web"), place.port, "wrkspc_acme"),
    ];
    for one in &watching[..2] {
        let (_, told) = one.next("unknown flag");
        assert_eq!((&told["value"], &told["errorCode"]), (&json!(true), &json!("FLAG_NOT_FOUND")), "{}: {told}", one.name);
        let (_, told) = one.next("unknown workspace");
        assert_eq!((&told["value"], &told["variant"]), (&json!(false), &json!("unknown")), "{}: {told}", one.name);
        let (_, told) = one.next("no workspace");
        assert_eq!(told["errorCode"], "TARGETING_KEY_MISSING", "{}: {told}", one.name);
    }
    for one in &watching {
        assert_eq!(one.next("feature").1["value"], true, "{}", one.name);
        let (_, open) = one.next("flag");
        assert_eq!((&open["value"], &open["variant"]), (&json!(true), &json!("allowed")), "{}: {open}", one.name);
    }
    // The web provider's stream is open once the daemon has answered it; the first event makes it ask once more.
    std::thread::sleep(Duration::from_millis(500));

    let ordered = Instant::now();
    order(&daemon, "wrkspc_acme", "lock");
    for one in &watching {
        let (at, told) = one.until(false);
        println!("lock ordered to flag false: {:24} {:6.1} ms", one.name, at.duration_since(ordered).as_secs_f64() * 1000.0);
        let meta = &told["metadata"];
        assert_eq!((&meta["access"], &meta["cause"]), (&json!("locked"), &json!("manual")), "{}: {told}", one.name);
        assert!(meta["code"].is_string() && meta["sequence"].is_u64() && meta["expires_at"].is_string(), "{}: {told}", one.name);
    }
    order(&daemon, "wrkspc_acme", "unlock");
    for one in &watching {
        assert_eq!(one.until(true).1["metadata"]["access"], "open", "{}", one.name);
    }
    let disabled = Instant::now();
    place.good(&["local-kms", "disable", "acme"]);
    for one in &watching {
        let (at, told) = one.until(false);
        println!("key disabled to flag false: {:24} {:6.1} ms", one.name, at.duration_since(disabled).as_secs_f64() * 1000.0);
        assert_eq!(
            (&told["metadata"]["code"], &told["metadata"]["cause"]),
            (&json!("cmek_key_disabled"), &json!("disabled")),
            "{}",
            one.name
        );
        if one.name.contains("web") {
            assert!(told["unchanged"].as_u64().unwrap() >= 1, "the provider kept an ETag and was told 304: {told}");
        }
    }
    // A lock in place, the daemon stops without waiting for its streams.
    assert!(daemon.stop() < Duration::from_secs(8));
}
