//! A proxy in front of an AWS server that puts faults in the way: of one key, of one operation or of
//! everything. Requests go through byte for byte, the Host header with them, so that signatures hold.
#![allow(dead_code, reason = "shared by several test binaries, each using its part")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A refusal in AWS's shape: status, code, message.
    Refuse(u16, &'static str, &'static str),
    /// TCP reset instead of an answer.
    Reset,
    /// No answer, the connection stays.
    Hang,
}

/// A fault and what it is put in the way of.
#[derive(Clone, Debug)]
struct Rule {
    /// Part of the body, such as a key's ARN.
    about: Option<String>,
    /// End of the `x-amz-target` header.
    operation: Option<&'static str>,
    /// One in so many.
    every: u64,
    seen: Arc<AtomicU64>,
    fault: Fault,
}

#[derive(Default)]
struct State {
    rules: Mutex<Vec<Rule>>,
    passed: AtomicU64,
    faulted: AtomicU64,
}

/// The running proxy; it stops when dropped.
pub struct FaultProxy {
    pub addr: SocketAddr,
    state: Arc<State>,
    refusing: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FaultProxy {
    pub async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let (refusing, told) = watch::channel(false);
        let task = tokio::spawn(accept(listener, addr, port, Arc::clone(&state), told));
        Self { addr, state, refusing, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// In the way of everything.
    pub fn fault_all(&self, fault: Fault) {
        self.add(None, None, 1, fault);
    }

    /// In the way of requests whose body names this.
    pub fn fault_key(&self, about: &str, fault: Fault) {
        self.add(Some(about), None, 1, fault);
    }

    pub fn fault_operation(&self, operation: &'static str, every: u64, fault: Fault) {
        self.add(None, Some(operation), every, fault);
    }

    fn add(&self, about: Option<&str>, operation: Option<&'static str>, every: u64, fault: Fault) {
        let rule = Rule { about: about.map(str::to_owned), operation, every, seen: Arc::default(), fault };
        self.state.rules.lock().unwrap().push(rule);
    }

    /// No fault any more. A request that hangs already goes on hanging.
    pub fn clear(&self) {
        self.state.rules.lock().unwrap().clear();
    }

    /// Nobody listens on the port while this is set, and open connections end.
    pub async fn refuse(&self, refuse: bool) {
        self.refusing.send(refuse).unwrap();
        for _ in 0..200 {
            if TcpStream::connect(self.addr).await.is_err() == refuse {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the proxy does not {} connections", if refuse { "refuse" } else { "take" });
    }

    /// Requests that went through, and requests that got a fault.
    pub fn counts(&self) -> (u64, u64) {
        (self.state.passed.load(Ordering::SeqCst), self.state.faulted.load(Ordering::SeqCst))
    }
}

impl State {
    fn fault(&self, request: &Message) -> Option<Fault> {
        let body = String::from_utf8_lossy(&request.body);
        let target = request.header("x-amz-target").unwrap_or_default();
        let found = self.rules.lock().unwrap().iter().find_map(|rule| {
            let fits = rule.about.as_ref().is_none_or(|about| body.contains(about.as_str()))
                && rule.operation.is_none_or(|operation| target.ends_with(&format!(".{operation}")));
            let turn = fits && rule.seen.fetch_add(1, Ordering::SeqCst).is_multiple_of(rule.every);
            turn.then(|| rule.fault.clone())
        });
        let count = if found.is_some() { &self.faulted } else { &self.passed };
        count.fetch_add(1, Ordering::SeqCst);
        found
    }
}

async fn accept(listener: TcpListener, addr: SocketAddr, port: u16, state: Arc<State>, mut refusing: watch::Receiver<bool>) {
    let mut listener = Some(listener);
    let mut open = JoinSet::new();
    loop {
        let taken = match &listener {
            Some(listener) => tokio::select! {
                taken = listener.accept() => Some(taken.unwrap().0),
                changed = refusing.changed() => { changed.unwrap(); None }
            },
            None => {
                refusing.changed().await.unwrap();
                None
            }
        };
        match taken {
            Some(stream) => {
                open.spawn(converse(stream, port, Arc::clone(&state)));
            }
            None if *refusing.borrow() => {
                listener = None;
                open.shutdown().await;
            }
            None if listener.is_none() => listener = Some(TcpListener::bind(addr).await.unwrap()),
            None => {}
        }
    }
}

async fn converse(mut client: TcpStream, port: u16, state: Arc<State>) {
    let mut upstream = None;
    let mut pending = Vec::new();
    while let Some(request) = Message::read(&mut client, &mut pending).await {
        match state.fault(&request) {
            None => {
                let Some(answer) = forward(&mut upstream, port, &request).await else { return };
                if client.write_all(&answer.raw()).await.is_err() {
                    return;
                }
            }
            Some(Fault::Refuse(status, code, message)) => {
                let body = serde_json::json!({ "__type": code, "message": message }).to_string();
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.1\r\nx-amzn-requestid: 00000000-0000-4000-8000-00000000fa17\r\n\
                     x-amzn-errortype: {code}\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                if client.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await.is_err() {
                    return;
                }
            }
            Some(Fault::Reset) => {
                rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
                return;
            }
            // Until the client goes away.
            Some(Fault::Hang) => while client.read_buf(&mut pending).await.is_ok_and(|read| read > 0) {},
        }
    }
}

/// On the connection that is open, else on a new one.
async fn forward(upstream: &mut Option<TcpStream>, port: u16, request: &Message) -> Option<Message> {
    if let Some(mut stream) = upstream.take() {
        let mut rest = Vec::new();
        if stream.write_all(&request.raw()).await.is_ok()
            && let Some(answer) = Message::read(&mut stream, &mut rest).await
        {
            *upstream = Some(stream);
            return Some(answer);
        }
    }
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    stream.write_all(&request.raw()).await.ok()?;
    let answer = Message::read(&mut stream, &mut Vec::new()).await?;
    *upstream = Some(stream);
    Some(answer)
}

/// A request or an answer, its bytes as they came.
struct Message {
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Message {
    fn raw(&self) -> Vec<u8> {
        [self.head.as_slice(), &self.body].concat()
    }

    fn header(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.head).into_owned();
        text.split("\r\n")
            .filter_map(|line| line.split_once(':'))
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.trim().to_owned())
    }

    /// `None` when the other side ends. Bodies have a length or are chunked.
    async fn read(stream: &mut TcpStream, pending: &mut Vec<u8>) -> Option<Self> {
        let end = loop {
            if let Some(at) = pending.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(pending).await.ok()? == 0 {
                return None;
            }
        };
        let rest = pending.split_off(end);
        let mut message = Self { head: std::mem::replace(pending, rest), body: Vec::new() };
        let chunked = message.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked"));
        let length: usize = message.header("content-length").map_or(0, |text| text.parse().unwrap());
        let whole = |bytes: &[u8]| if chunked { bytes.ends_with(b"0\r\n\r\n") } else { bytes.len() >= length };
        while !whole(pending) {
            if stream.read_buf(pending).await.ok()? == 0 {
                return None;
            }
        }
        let rest = if chunked { Vec::new() } else { pending.split_off(length) };
        message.body = std::mem::replace(pending, rest);
        Some(message)
    }
}
