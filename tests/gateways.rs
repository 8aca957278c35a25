//! The gate as services really use it: the shipped configuration of nginx, Envoy and Caddy in front
//! of a service, the official OpenFeature providers, and a fuzzer that reads the OpenAPI document;
//! all against the real daemon.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

#[path = "support/daemon.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod support;

#[path = "gateways/flags.rs"]
mod flags;
#[path = "gateways/fuzz.rs"]
mod fuzz;
#[path = "gateways/proxies.rs"]
mod proxies;

use std::path::PathBuf;
use std::process::Child;

/// A program of the tests' own Python environment; `tests/run` installs it.
fn installed(name: &str) -> PathBuf {
    let venv = std::env::var_os("CMEK_TEST_VENV").map_or_else(|| support::repository().join("target/test-venv"), PathBuf::from);
    let path = venv.join("bin").join(name);
    assert!(path.exists(), "{} is not there: run tests/run, which installs it", path.display());
    path
}

/// A server of somebody else's, ended with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A daemon with the ready features and the workspaces `wrkspc_acme`, `wrkspc_globex`, `wrkspc_initech`.
fn place() -> support::Place {
    let place = support::Place::empty();
    std::fs::copy(support::repository().join("config/features.claude.toml"), place.path("features.toml")).unwrap();
    let keys = ["acme", "globex", "initech"]
        .map(|name| format!("[[keys]]\nid = \"{name}\"\nprovider = \"local\"\nkey = \"{name}\"\nworkspaces = [\"wrkspc_{name}\"]\n"));
    let head = format!("features_from = \"features.toml\"\n{}", place.head("insecure_loopback = true", "state/state.db"));
    place.write(&head, &format!("{}{}", support::QUICK, keys.concat()));
    place
}

fn ready(daemon: &support::Daemon) {
    for name in ["acme", "globex", "initech"] {
        daemon.wait_state(name, "active", support::PATIENCE);
    }
}
