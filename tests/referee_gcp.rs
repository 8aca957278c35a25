//! The official Python client of Google Cloud KMS referees the fake: it must not merely be what our
//! own code believes.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "test code"
)]

#[path = "clouds/gcp.rs"]
mod cloud;

use std::path::PathBuf;

/// How many expectations the script holds.
const EXPECTATIONS: usize = 29;

/// The Python of the test environment.
fn python() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let venv = std::env::var_os("CMEK_TEST_VENV").map_or_else(|| root.join("target/test-venv"), PathBuf::from);
    let python = venv.join("bin/python");
    assert!(
        python.exists(),
        "no Python with google-cloud-kms at {}: run tests/run, which makes it, or set CMEK_TEST_VENV",
        python.display()
    );
    python
}

#[tokio::test]
async fn the_official_python_client_agrees_with_the_fake() {
    let gcp = cloud::Gcp::start().await;
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/support/gcp_referee.py");
    let output = tokio::process::Command::new(python()).arg(script).arg(&gcp.endpoint).output().await.unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{text}");
    assert!(output.status.success(), "{text}");
    // The whole script ran: each expectation prints its line.
    assert_eq!(text.lines().filter(|line| line.starts_with("ok ")).count(), EXPECTATIONS, "{text}");
}
