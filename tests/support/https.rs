//! A server on 127.0.0.1 that answers requests by a closure, over TLS under a root of its own or in the
//! clear. The closure may also hang or cut the connection.
#![allow(dead_code, reason = "shared by several test binaries")]

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

/// One request, its body read.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// Without the port.
    pub host: String,
    pub path: String,
    pub query: String,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or(serde_json::Value::Null)
    }
}

/// What the server does with it.
#[derive(Clone, Debug)]
pub enum Reply {
    Http {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    /// Never answers.
    Hang,
    /// Cuts the connection.
    Cut,
}

impl Reply {
    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        let headers = vec![("content-type".to_owned(), "application/json; charset=utf-8".to_owned())];
        Self::Http { status, headers, body: body.to_string().into_bytes() }
    }
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        if let Self::Http { headers, .. } = &mut self {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }
}

pub type Handler = Arc<dyn Fn(Asked) -> Pin<Box<dyn Future<Output = Reply> + Send>> + Send + Sync>;

/// Wraps a plain function of the request.
pub fn handler(answer: impl Fn(Asked) -> Reply + Send + Sync + 'static) -> Handler {
    Arc::new(move |asked| {
        let reply = answer(asked);
        Box::pin(async move { reply })
    })
}

/// Stops when dropped.
pub struct Server {
    pub addr: SocketAddr,
    /// The root to trust, empty for a server in the clear.
    pub ca_pem: String,
    accept: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

/// Serves the names (and 127.0.0.1) over TLS.
pub async fn https(names: &[&str], handle: Handler) -> Server {
    let (config, ca_pem) = certificates(names);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    serve(Some(acceptor), ca_pem, handle).await
}

pub async fn http(handle: Handler) -> Server {
    serve(None, String::new(), handle).await
}

fn certificates(names: &[&str]) -> (rustls::ServerConfig, String) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    // Two roots of one name would be taken for one root with a bad signature.
    static ROOTS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(1);
    let number = ROOTS.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    ca.distinguished_name.push(rcgen::DnType::CommonName, format!("test root {number}"));
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let all: Vec<String> = names.iter().copied().chain(["127.0.0.1", "localhost"]).map(str::to_owned).collect();
    let mut leaf = rcgen::CertificateParams::new(all).unwrap();
    // Some clients insist on a chain that says which key signed it.
    leaf.use_authority_key_identifier_extension = true;
    let cert = leaf.signed_by(&key, &issuer).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    (config, ca_pem)
}

async fn serve(tls: Option<tokio_rustls::TlsAcceptor>, ca_pem: String, handle: Handler) -> Server {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let accept = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, handle) = (tls.clone(), handle.clone());
            connections.spawn(async move {
                match tls {
                    // A client that does not trust us ends the handshake; that is its right.
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            talk(stream, handle).await;
                        }
                    }
                    None => talk(stream, handle).await,
                }
            });
        }
    });
    Server { addr, ca_pem, accept }
}

async fn talk<S>(stream: S, handle: Handler)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let handle = handle.clone();
        async move { answer(request, handle).await }
    });
    // An error here is a connection that ended, by the client or by `Cut`.
    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: hyper::Request<hyper::body::Incoming>, handle: Handler) -> Result<hyper::Response<Full<Bytes>>, std::io::Error> {
    let (head, body) = request.into_parts();
    let headers: Vec<(String, String)> =
        head.headers.iter().map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned())).collect();
    let authority = head.uri.authority().map(ToString::to_string);
    let host = authority.or_else(|| headers.iter().find(|(n, _)| n == "host").map(|(_, v)| v.clone())).unwrap_or_default();
    let asked = Asked {
        method: head.method.to_string(),
        host: host.split(':').next().unwrap_or_default().to_owned(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers,
        body: body.collect().await.map_err(std::io::Error::other)?.to_bytes(),
    };
    match handle(asked).await {
        Reply::Http { status, headers, body } => {
            let mut response = hyper::Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            response.body(Full::new(Bytes::from(body))).map_err(std::io::Error::other)
        }
        Reply::Hang => std::future::pending().await,
        Reply::Cut => Err(std::io::Error::other("cut")),
    }
}

/// A port on which connections never come to be: its queue is full and nobody accepts.
pub struct BlackHole {
    pub addr: SocketAddr,
    _listener: tokio::net::TcpListener,
    _queued: Vec<tokio::net::TcpStream>,
}

pub async fn black_hole() -> BlackHole {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = tokio::time::timeout(std::time::Duration::from_millis(150), tokio::net::TcpStream::connect(addr)).await {
        queued.push(stream.unwrap());
        assert!(queued.len() < 600, "the queue of {addr} never fills");
    }
    BlackHole { addr, _listener: listener, _queued: queued }
}

/// A port that refuses: bound once and closed again.
pub fn closed_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
