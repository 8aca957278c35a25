//! A small service behind the gate: answers `GET|POST /NAME` for the workspace in `x-workspace-id`
//! while that is allowed, 403 when it is locked, 503 when nothing is known.
//!
//! `cargo run --example service -- http://127.0.0.1:9847 127.0.0.1:8080`

use std::collections::BTreeMap;

use cmek_watchdog::client::{Asked, Client, ClientError, GateLayer, Settings};
use cmek_watchdog::gate::Features;
use cmek_watchdog::key::WorkspaceId;
use cmek_watchdog::words::FeatureClass;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let watchdog = arguments.next().unwrap_or_else(|| "http://127.0.0.1:9847".to_owned());
    let listen = arguments.next().unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let client = client(&watchdog)?;
    // Answers before the list is read would all be 503.
    client.loaded().await;
    let features =
        Features(BTreeMap::from([("batch".to_owned(), FeatureClass::Write), ("safety_metadata".to_owned(), FeatureClass::SafetyMetadata)]));
    let gate = GateLayer::new(&client, features, asked);
    let routes = axum::Router::new().route("/{name}", axum::routing::any(async || "served\n")).layer(gate);
    let listener = tokio::net::TcpListener::bind(&listen).await?;
    println!("serving on {listen}");
    // The features of axum that are built here have no server: hyper is one.
    loop {
        let (stream, _) = listener.accept().await?;
        let service = hyper_util::service::TowerToHyperService::new(routes.clone());
        tokio::spawn(async move {
            let server = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            if let Err(error) = server.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await {
                eprintln!("a connection ended early: {error}");
            }
        });
    }
}

fn client(watchdog: &str) -> Result<Client, Box<dyn std::error::Error>> {
    let mut settings = Settings::new(watchdog.parse().map_err(|_| ClientError::Address)?);
    settings.token = std::env::var("CMEK_TOKEN").ok();
    settings.consumer = Some("example-service".to_owned());
    // Here a real service drops what it has cached of the workspace; the change is acknowledged after it.
    let drop_caches = |change: &cmek_watchdog::client::Change| println!("{} is {} now", change.workspace, change.access);
    Ok(Client::start(settings, Some(std::sync::Arc::new(drop_caches)))?)
}

/// Which workspace and feature a request is about. A gateway in front has to set the header itself.
fn asked(request: &http::Request<axum::body::Body>) -> Option<Asked> {
    let workspace = WorkspaceId::new(request.headers().get("x-workspace-id")?.to_str().ok()?).ok()?;
    let feature = request.uri().path().strip_prefix('/').map(str::to_owned);
    Some(Asked { workspace, feature, write: request.method() != http::Method::GET })
}
