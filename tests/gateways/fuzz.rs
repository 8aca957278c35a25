//! The document of the doors against the doors: schemathesis makes requests from `/openapi.json`, good
//! and bad ones, and compares every answer with what is written. Traefik's files are read here too.

use std::process::Command;

use crate::support::repository;
use crate::{installed, place, ready};

#[test]
fn a_fuzzer_finds_nothing_that_the_document_does_not_say() {
    let place = place();
    let daemon = place.start();
    ready(&daemon);
    let address = format!("http://127.0.0.1:{}", place.port);
    let mut command = Command::new(installed("schemathesis"));
    command.current_dir(place.dir.path()).env("HOME", place.dir.path());
    command
        .arg("--config-file")
        .arg(repository().join("tests/gateways/schemathesis.toml"))
        .arg("run")
        .arg(format!("{address}/openapi.json"));
    command.args(["--seed", "20250101", "--max-examples", "4", "--phases", "examples,coverage,fuzzing"]);
    command.args(["--no-color", "--request-timeout", "20", "--generation-database", "none"]);
    // Event streams have no end; their answers are looked at elsewhere.
    command.args(["--exclude-path-regex", "/stream$"]);
    let out = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    println!("{}", text.lines().rev().take(30).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n"));
    assert!(out.status.success(), "{text}");
    assert!(daemon.get("/healthz").status == 200 && daemon.get("/v1/status").json()["bugs"] == 0);
}

#[test]
fn traefiks_files_put_the_gate_behind_its_headers_on_every_router() {
    let files = ["closed.yaml", "last-known.yaml"].map(|name| repository().join("config/integrations/traefik").join(name));
    let out = Command::new(installed("python")).arg(repository().join("tests/support/traefik.py")).args(files).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
