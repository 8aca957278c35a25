//! Microsoft's own Python client (azure-keyvault-keys) judges our Key Vault: the same expectations that the
//! adapter is tested against must hold for a client that we did not write.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

#[path = "clouds/azure.rs"]
mod azure_cloud;
#[path = "support/azure_wire.rs"]
mod azure_wire;
#[path = "support/https.rs"]
mod https;

use std::path::{Path, PathBuf};

use azure_cloud::{Action, AzureCloud, Fault, Kind, Network};
use azure_wire::{Root, THEIR_TENANT};
use cmek_watchdog::time::Span;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

const HOST: &str = "acme-kv.vault.azure.net";

/// The interpreter that has the client, from `CMEK_TEST_VENV` or the place where `tests/run` puts it.
fn python() -> PathBuf {
    let venv = std::env::var_os("CMEK_TEST_VENV")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join("test-venv"), PathBuf::from);
    let python = venv.join("bin").join("python3");
    assert!(python.exists(), "no test clients in {}: run tests/run once, or set CMEK_TEST_VENV", venv.display());
    python
}

/// Does what one line asks of the fake.
fn hand(cloud: &AzureCloud, line: &str) {
    match line.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["deny", "unwrap"] => cloud.deny(HOST, Some("k"), Action::Unwrap),
        ["allow", "unwrap"] => cloud.allow(HOST, Some("k"), Action::Unwrap),
        ["deny", "read"] => cloud.deny(HOST, Some("k"), Action::Read),
        ["allow", "read"] => cloud.allow(HOST, Some("k"), Action::Read),
        ["firewall"] => cloud.set_network(HOST, Network::Firewall),
        ["open"] => cloud.set_network(HOST, Network::Open),
        ["throttle"] => {
            cloud.fault(None, Fault::Refuse(429, "Throttled", "Request was not processed because too many requests were received."))
        }
        ["advance", days] => cloud.advance(Span::from_days(days.parse().unwrap())),
        other => panic!("no hand for {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn microsofts_own_client_finds_a_key_vault_in_our_fake() {
    let python = python();
    let cloud = AzureCloud::start(HOST, THEIR_TENANT, Kind::VaultWithRbac).await;
    cloud.create_key(HOST, "k");
    cloud.accept_token("let-me-in", "referee");
    let root = Root::new(cloud.ca_pem());
    let control = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let control_port = control.local_addr().unwrap().port();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/azure_referee.py");
    let referee = tokio::task::spawn_blocking({
        let (port, root) = (cloud.addr().port().to_string(), root.path());
        move || std::process::Command::new(python).arg(script).arg(port).arg(root).arg(control_port.to_string()).output().unwrap()
    });
    tokio::pin!(referee);
    let output = loop {
        tokio::select! {
            output = &mut referee => break output.unwrap(),
            Ok((stream, _)) = control.accept() => {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                hand(&cloud, &line);
                stream.get_mut().write_all(b"done\n").await.unwrap();
            }
        }
    };
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{told}");
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(told.matches("ok   ").count(), 24, "the referee has another number of expectations:\n{told}");
    let agent = cloud.audit().into_iter().map(|row| row.user_agent).find(|agent| agent.contains("keyvault-keys"));
    assert!(agent.is_some_and(|agent| agent.contains("Python")), "another client spoke");
}
