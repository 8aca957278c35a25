//! outside
//! The accept loop: one for TCP with or without TLS, one for the control socket. Bounds what a
//! client can hold: connections, time to its first request, size of a head. It must never end
//! because of one client.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceExt as _;

use super::access::Peer;
use super::socket::ControlSocket;
use super::stall::Stalling;
use super::{App, Limits, router_with};
use crate::metrics::{Metrics, RefusedReason};

/// The TLS side of a listener; may be swapped while it serves (a renewed certificate).
pub type SharedTls = Arc<ArcSwap<rustls::ServerConfig>>;

/// Longest head of a request in bytes; gateways pass on their clients' cookies.
const HEAD_BYTES: usize = 32 * 1024;
const STREAMS: u32 = 256;
/// After an accept that failed for want of descriptors.
const BREATH: Duration = Duration::from_millis(50);

/// What every connection needs.
#[derive(Clone)]
struct House {
    router: Router,
    limits: Limits,
    metrics: Arc<Metrics>,
    places: Arc<Semaphore>,
}

impl House {
    fn new(app: App, limits: Limits) -> Self {
        let metrics = Arc::clone(&app.metrics);
        Self { router: router_with(app, limits), limits, metrics, places: Arc::new(Semaphore::new(limits.connections)) }
    }

    /// A place for a new connection; without one the connection is closed at once.
    fn place(&self) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok();
        if place.is_none() {
            self.metrics.http_refused(RefusedReason::Connections);
            tracing::warn!(most = self.limits.connections, "connection refused: too many are open");
        }
        place
    }
}

/// Serves TCP until `shutdown` ends, then lets requests under way finish within `limits.grace`.
pub async fn serve_tcp(listener: TcpListener, tls: Option<SharedTls>, app: App, limits: Limits, shutdown: impl Future<Output = ()> + Send) {
    let house = House::new(app, limits);
    let graceful = GracefulShutdown::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                let Some(place) = house.place() else { continue };
                let peer = Peer::Tcp { from, tls: tls.is_some() };
                tokio::spawn(tcp(house.clone(), stream, tls.as_ref().map(|t| t.load_full()), peer, graceful.watcher(), place));
            }
            Err(error) => breathe(&error).await,
        }
    }
    drop(listener);
    finish(graceful, limits.grace).await;
}

/// Serves the control socket until `shutdown` ends, then removes it.
pub async fn serve_socket(socket: ControlSocket, app: App, limits: Limits, shutdown: impl Future<Output = ()> + Send) {
    let house = House::new(app, limits);
    let graceful = GracefulShutdown::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = socket.listener().accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let Some(place) = house.place() else { continue };
                tokio::spawn(unix(house.clone(), stream, graceful.watcher(), place));
            }
            Err(error) => breathe(&error).await,
        }
    }
    drop(socket);
    finish(graceful, limits.grace).await;
}

async fn breathe(error: &std::io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(BREATH).await;
}

async fn finish(graceful: GracefulShutdown, grace: Duration) {
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests under way were cut off at the end");
    }
}

async fn tcp(
    house: House,
    stream: TcpStream,
    tls: Option<Arc<rustls::ServerConfig>>,
    peer: Peer,
    watcher: Watcher,
    place: OwnedSemaphorePermit,
) {
    let _ = stream.set_nodelay(true);
    let Some(config) = tls else { return serve(house, stream, peer, Duration::ZERO, watcher, place).await };
    let began = tokio::time::Instant::now();
    match tokio::time::timeout(house.limits.header, tokio_rustls::TlsAcceptor::from(config).accept(stream)).await {
        Ok(Ok(stream)) => serve(house, stream, peer, began.elapsed(), watcher, place).await,
        Ok(Err(error)) => {
            house.metrics.http_refused(RefusedReason::Tls);
            tracing::warn!(?peer, %error, "tls handshake failed");
        }
        Err(_) => slow(&house, peer),
    }
}

async fn unix(house: House, stream: UnixStream, watcher: Watcher, place: OwnedSemaphorePermit) {
    match stream.peer_cred() {
        Ok(credentials) => serve(house, stream, Peer::Socket { uid: credentials.uid() }, Duration::ZERO, watcher, place).await,
        Err(error) => tracing::warn!(%error, "a peer of the control socket has no credentials"),
    }
}

fn slow(house: &House, peer: Peer) {
    house.metrics.http_refused(RefusedReason::SlowClient);
    tracing::info!(?peer, "connection closed: no request in time");
}

/// A connection that did not end well. What could not be read as a request was refused as one.
fn broken(house: &House, peer: Peer, error: &(dyn std::error::Error + Send + Sync + 'static)) {
    let reason = error.downcast_ref::<hyper::Error>().and_then(|error| match () {
        () if error.is_parse_too_large() => Some(RefusedReason::HeadTooLarge),
        () if error.is_parse() => Some(RefusedReason::Malformed),
        () => None,
    });
    let Some(reason) = reason else {
        tracing::debug!(?peer, error, "a connection ended early");
        return;
    };
    house.metrics.http_refused(reason);
    tracing::warn!(reason = reason.as_str(), ?peer, "request refused");
}

/// Serves one connection. The first request must have arrived `limits.header` after the opening:
/// the head's own timer does not run while hyper still tells the versions of HTTP apart.
async fn serve<I>(house: House, stream: I, peer: Peer, spent: Duration, watcher: Watcher, place: OwnedSemaphorePermit)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let asked = Arc::new(AtomicBool::new(false));
    let (router, seen) = (house.router.clone(), Arc::clone(&asked));
    let service = service_fn(move |request: Request<Incoming>| {
        seen.store(true, Ordering::Relaxed);
        let router = router.clone();
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer);
            Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(|never| match never {}))
        }
    });
    let builder = http(house.limits.header);
    let connection = builder.serve_connection(TokioIo::new(Stalling::new(stream, house.limits.request)), service).into_owned();
    let connection = watcher.watch(connection);
    tokio::pin!(connection);
    let first = tokio::time::sleep(house.limits.header.saturating_sub(spent));
    tokio::pin!(first);
    let mut waiting = true;
    loop {
        // Our own timer first: hyper's fires in the same moment for a head that was begun.
        tokio::select! {
            biased;
            () = &mut first, if waiting => {
                waiting = false;
                if !asked.load(Ordering::Relaxed) {
                    slow(&house, peer);
                    break;
                }
            }
            ended = &mut connection => {
                if let Err(error) = ended {
                    broken(&house, peer, &*error);
                }
                break;
            }
        }
    }
    drop(place);
}

fn http(header: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(header).max_buf_size(HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(HEAD_BYTES).unwrap_or(u32::MAX))
        .keep_alive_interval(header)
        .keep_alive_timeout(header);
    builder
}
