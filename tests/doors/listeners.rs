use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::http::Method;
use cmek_watchdog::config::Tls;
use cmek_watchdog::http::client::{ClientError, call, fetch, segment};
use cmek_watchdog::http::serve::{SharedTls, serve_socket, serve_tcp};
use cmek_watchdog::http::socket::{ControlSocket, NAME, SocketFault};
use cmek_watchdog::http::tls::{TlsFault, server_config};
use cmek_watchdog::operate::Action;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::{House, config};

/// A listener that runs; ends when told to.
struct Running {
    address: std::net::SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
}

impl Running {
    async fn start(house: &House, tls: Option<SharedTls>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(serve_tcp(listener, tls, house.app.clone(), house.limits, async move {
            let _ = stopped.await;
        }));
        Self { address, stop: Some(stop), served }
    }

    async fn stop(mut self) {
        let _ = self.stop.take().unwrap().send(());
        self.served.await.unwrap();
    }
}

/// Sends raw bytes and reads until the other side closes.
async fn raw(address: std::net::SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn tcp_serves_requests_and_keeps_the_connection() {
    let house = House::new(config());
    let running = Running::start(&house, None).await;
    let answer = raw(
        running.address,
        b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /v1/authz HTTP/1.1\r\nhost: x\r\nx-workspace-id: wrkspc_open\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
    running.stop().await;
}

#[tokio::test]
async fn a_client_that_sends_no_whole_head_is_cut_off_and_counted() {
    let mut house = House::new(config());
    house.limits.header = Duration::from_millis(60);
    let running = Running::start(&house, None).await;
    // Nothing; a beginning that could be HTTP/2 as well; a head that never ends; a preface and silence.
    for bytes in [&b""[..], b"P", b"GET / HTTP/1.1\r\nhost: x\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let cut = tokio::time::timeout(Duration::from_secs(5), raw(running.address, bytes)).await;
        assert!(cut.is_ok_and(|answer| !answer.contains("200")), "{bytes:?}");
    }
    assert_eq!(house.metric("cmek_http_refused_total{reason=\"slow_client\"}"), Some(4.0));
    // An idle connection is closed too.
    let idle =
        tokio::time::timeout(Duration::from_secs(5), raw(running.address, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")).await.unwrap();
    assert_eq!(idle.matches("200 OK").count(), 1);
    running.stop().await;
}

#[tokio::test]
async fn a_request_that_takes_longer_than_the_head_may_is_not_cut_off() {
    let mut house = House::new(config());
    house.limits.header = Duration::from_millis(40);
    house.limits.answer = Duration::from_millis(200);
    house.app.config.store(Arc::new({
        let mut settings = config();
        settings.server.insecure_loopback = true;
        settings
    }));
    let running = Running::start(&house, None).await;
    let request = b"POST /v1/keys/open/validate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let answer = raw(running.address, request).await;
    assert!(answer.contains("200 OK") && answer.contains("not judged within"), "{answer}");
    running.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_cap_are_refused_and_places_are_given_back() {
    let mut house = House::new(config());
    house.limits.connections = 2;
    let running = Running::start(&house, None).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut first = [0u8; 15];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200 OK");
        held.push(stream);
    }
    assert_eq!(raw(running.address, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await, "");
    assert_eq!(house.metric("cmek_http_refused_total{reason=\"connections\"}"), Some(1.0));
    drop(held);
    let again = async {
        loop {
            let answer = raw(running.address, b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
            if answer.contains("200 OK") {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), again).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn heads_and_bodies_beyond_their_bounds_are_refused() {
    let house = House::new(config());
    let running = Running::start(&house, None).await;
    let cookie = "x".repeat(64 * 1024);
    let answer = raw(running.address, format!("GET /healthz HTTP/1.1\r\nhost: x\r\ncookie: {cookie}\r\n\r\n").as_bytes()).await;
    assert!(!answer.contains("200 OK"), "{answer}");
    let long = raw(running.address, format!("GET /{cookie}{cookie} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await;
    assert!(!long.contains("200 OK"), "{long}");
    assert!(!raw(running.address, b"GET /healthz HTTP/1.1\r\nno colon\r\n\r\n").await.contains("200 OK"));
    running.stop().await;
    assert_eq!(house.metric("cmek_http_refused_total{reason=\"head_too_large\"}"), Some(2.0));
    assert_eq!(house.metric("cmek_http_refused_total{reason=\"malformed\"}"), Some(1.0));
}

#[tokio::test]
async fn a_request_under_way_is_answered_before_the_end() {
    let mut house = House::new(config());
    house.limits.answer = Duration::from_millis(150);
    let dir = tempfile::tempdir().unwrap();
    let (socket, stop, served) = control(&house, dir.path());
    let under_way = tokio::spawn(async move { call(&socket, Method::POST, "/v1/keys/open/validate", None).await.unwrap() });
    let mut orders = house.orders.take().unwrap();
    let ask = orders.recv().await.unwrap();
    stop.send(()).unwrap();
    let (status, body) = under_way.await.unwrap();
    assert_eq!((status, &body["status"]), (200, &"failure".into()));
    drop(ask);
    served.await.unwrap();
}

#[tokio::test]
async fn requests_that_outlive_the_grace_are_cut_off() {
    let mut house = House::new(config());
    house.limits.grace = Duration::from_millis(30);
    let dir = tempfile::tempdir().unwrap();
    let (socket, stop, served) = control(&house, dir.path());
    let hanging = tokio::spawn(async move { call(&socket, Method::POST, "/v1/keys/open/validate", None).await });
    let ask = house.orders.as_mut().unwrap().recv().await.unwrap();
    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(5), served).await.unwrap().unwrap();
    drop(ask);
    hanging.abort();
}

fn control(house: &House, run_dir: &Path) -> (std::path::PathBuf, oneshot::Sender<()>, JoinHandle<()>) {
    let socket = ControlSocket::bind(run_dir).unwrap();
    let path = socket.path().to_owned();
    let (stop, stopped) = oneshot::channel();
    let served = tokio::spawn(serve_socket(socket, house.app.clone(), house.limits, async move {
        let _ = stopped.await;
    }));
    (path, stop, served)
}

#[tokio::test]
async fn the_command_line_operates_over_the_socket_as_its_uid() {
    let house = House::new(config()).obeying();
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("a/run");
    let (path, stop, served) = control(&house, &run_dir);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    assert_eq!(std::fs::metadata(&run_dir).unwrap().permissions().mode() & 0o007, 0);
    assert_eq!(std::fs::read_dir(&run_dir).unwrap().count(), 1);
    let body = Some(json!({ "reason": "drill" }));
    let (status, answer) = call(&path, Method::POST, "/v1/workspaces/wrkspc_open/lock", body).await.unwrap();
    assert_eq!((status, &answer["access"]), (200, &"locked".into()));
    let (status, answer) = call(&path, Method::GET, "/v1/keys/ghost", None).await.unwrap();
    assert_eq!((status, &answer["code"]), (404, &"unknown_key".into()));
    let version = format!("/v1/keys/demo/versions/{}/retire", segment("v 1/\u{e9}"));
    assert_eq!(call(&path, Method::POST, &version, Some(json!({ "reason": "r" }))).await.unwrap().0, 200);
    let uid = rustix::process::getuid().as_raw();
    {
        let asked = house.asked.lock().unwrap();
        assert!(asked.iter().all(|o| o.actor == format!("uid:{uid}")));
        assert!(matches!(&asked[1].action, Action::RetireVersion { version, .. } if version.as_str() == "v 1/\u{e9}"));
    }
    assert!(matches!(call(&path, Method::GET, "/metrics", None).await, Err(ClientError::NotJson(_))));
    let (status, text) = fetch(&path, Method::GET, "/metrics", None).await.unwrap();
    assert!(status == 200 && text.starts_with(b"# HELP"));
    assert!(matches!(call(&path, Method::GET, "not a path", None).await, Err(ClientError::Malformed(_))));
    stop.send(()).unwrap();
    served.await.unwrap();
    assert!(!path.exists());
    assert!(matches!(call(&path, Method::GET, "/v1/status", None).await, Err(ClientError::Unreachable { .. })));
}

#[tokio::test]
async fn a_dead_daemons_socket_is_replaced_and_a_living_ones_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let error = call(&path, Method::GET, "/v1/status", None).await.unwrap_err();
    assert!(error.to_string().contains("control.sock") && matches!(error, ClientError::Unreachable { .. }));
    let living = ControlSocket::bind(dir.path()).unwrap();
    assert!(matches!(ControlSocket::bind(dir.path()), Err(SocketFault::InUse(_))));
    assert!(path.exists());
    // A later daemon's file is not removed with ours.
    std::fs::remove_file(&path).unwrap();
    let later = ControlSocket::bind(dir.path()).unwrap();
    drop(living);
    assert!(path.exists());
    drop(later);
    assert!(!path.exists());
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(NAME), "precious").unwrap();
    assert!(matches!(ControlSocket::bind(dir.path()), Err(SocketFault::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(dir.path().join(NAME)).unwrap(), "precious");
    let error = ControlSocket::bind(&dir.path().join(NAME)).unwrap_err();
    assert!(error.to_string().contains("control.sock") && matches!(error, SocketFault::Io { .. }));
    let deep = dir.path().join("d".repeat(120));
    assert!(matches!(ControlSocket::bind(&deep), Err(SocketFault::Io { .. })));
}

#[tokio::test]
async fn a_server_that_talks_no_http_is_a_broken_connection() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let odd = tokio::spawn(async move {
        for answer in [&b"hello\r\n"[..], b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0u8; 1024];
            let _ = stream.read(&mut buffer).await;
            stream.write_all(answer).await.unwrap();
        }
    });
    assert!(matches!(call(&path, Method::GET, "/", None).await, Err(ClientError::Broken(_))));
    assert!(matches!(call(&path, Method::GET, "/", None).await, Err(ClientError::Unreadable)));
    odd.await.unwrap();
}

/// An authority with a server's and a client's certificate on disk.
struct Pki {
    dir: tempfile::TempDir,
    ca: CertificateDer<'static>,
    client: (CertificateDer<'static>, PrivateKeyDer<'static>),
}

impl Pki {
    fn new() -> Self {
        use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(params, ca_key);
        let issue = |purpose| {
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.extended_key_usages = vec![purpose];
            let key = KeyPair::generate().unwrap();
            (params.signed_by(&key, &issuer).unwrap(), key)
        };
        let (server, server_key) = issue(ExtendedKeyUsagePurpose::ServerAuth);
        let (client, client_key) = issue(ExtendedKeyUsagePurpose::ClientAuth);
        for (name, text) in [
            ("ca.pem", ca.pem()),
            ("cert.pem", server.pem()),
            ("key.pem", server_key.serialize_pem()),
            ("other.pem", client_key.serialize_pem()),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        std::fs::write(dir.path().join("empty.pem"), "").unwrap();
        let client = (client.der().clone(), PrivateKeyDer::try_from(client_key.serialize_der()).unwrap());
        Self { dir, ca: ca.der().clone(), client }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn tls(&self, client_ca: bool) -> Tls {
        Tls { cert: self.path("cert.pem"), key: self.path("key.pem"), client_ca: client_ca.then(|| self.path("ca.pem")) }
    }

    /// One request over TLS; an error if the server does not let us in.
    async fn get(&self, address: std::net::SocketAddr, as_client: bool, alpn: &[u8]) -> std::io::Result<String> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let mut client = if as_client {
            builder.with_client_auth_cert(vec![self.client.0.clone()], self.client.1.clone_key()).unwrap()
        } else {
            builder.with_no_client_auth()
        };
        client.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, stream).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}

#[tokio::test]
async fn tls_serves_and_plain_text_gets_nowhere() {
    let (pki, mut house) = (Pki::new(), House::new(config()));
    house.limits.header = Duration::from_millis(1500);
    let shared: SharedTls = Arc::new(ArcSwap::from_pointee(server_config(&pki.tls(false)).unwrap()));
    let running = Running::start(&house, Some(shared)).await;
    assert!(pki.get(running.address, false, b"http/1.1").await.unwrap().contains("200 OK"));
    assert!(!raw(running.address, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.contains("200 OK"));
    assert_eq!(house.metric("cmek_http_refused_total{reason=\"tls\"}"), Some(1.0));
    // A handshake that is never begun ends too.
    tokio::time::timeout(Duration::from_secs(5), raw(running.address, b"")).await.unwrap();
    assert_eq!(house.metric("cmek_http_refused_total{reason=\"slow_client\"}"), Some(1.0));
    running.stop().await;
}

#[tokio::test]
async fn a_client_authority_makes_client_certificates_a_must() {
    let (pki, house) = (Pki::new(), House::new(config()));
    let shared: SharedTls = Arc::new(ArcSwap::from_pointee(server_config(&pki.tls(true)).unwrap()));
    let running = Running::start(&house, Some(Arc::clone(&shared))).await;
    assert!(pki.get(running.address, true, b"http/1.1").await.unwrap().contains("200 OK"));
    assert!(pki.get(running.address, false, b"http/1.1").await.is_err());
    assert_eq!(house.metric("cmek_http_refused_total{reason=\"tls\"}"), Some(1.0));
    // Swapped while it serves.
    shared.store(Arc::new(server_config(&pki.tls(false)).unwrap()));
    assert!(pki.get(running.address, false, b"http/1.1").await.unwrap().contains("200 OK"));
    running.stop().await;
}

#[test]
fn tls_files_that_cannot_be_used_are_named() {
    let pki = Pki::new();
    let fault = |cert: &str, key: &str, ca: Option<&str>| {
        let tls = Tls { cert: pki.path(cert), key: pki.path(key), client_ca: ca.map(|name| pki.path(name)) };
        server_config(&tls).map(|_| ()).unwrap_err()
    };
    let missing = fault("none.pem", "key.pem", None);
    assert!(matches!(missing, TlsFault::File { field: "cert", .. }) && missing.to_string().contains("none.pem"));
    assert!(matches!(fault("cert.pem", "none.pem", None), TlsFault::File { field: "key", .. }));
    assert!(matches!(fault("cert.pem", "cert.pem", None), TlsFault::File { field: "key", .. }));
    assert!(matches!(fault("empty.pem", "key.pem", None), TlsFault::Empty { field: "cert", .. }));
    assert!(matches!(fault("cert.pem", "other.pem", None), TlsFault::Mismatch(_)));
    assert!(matches!(fault("cert.pem", "key.pem", Some("empty.pem")), TlsFault::Empty { field: "client_ca", .. }));
    std::fs::write(pki.path("bad-ca.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    assert!(matches!(fault("cert.pem", "key.pem", Some("bad-ca.pem")), TlsFault::ClientCa { .. }));
}
