//! A server on 127.0.0.1 that speaks just enough HTTP/1.1 to give any answer byte for byte, break
//! off in the middle, or say nothing; it keeps what it was asked.
#![allow(dead_code, reason = "shared by several test binaries, each using its part")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One request as it came in; header names in lower case.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Ask {
    /// The operation of an AWS JSON request (`Decrypt`), or the `Action` of a query.
    pub fn operation(&self) -> String {
        if let Some(target) = self.headers.get("x-amz-target") {
            return target.rsplit('.').next().unwrap().to_owned();
        }
        self.form("Action").unwrap_or_else(|| self.path.clone())
    }
    /// A field of a form body, decoded as far as our values need it.
    pub fn form(&self, name: &str) -> Option<String> {
        let body = String::from_utf8_lossy(&self.body).into_owned();
        let field = body.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}=")))?;
        Some(field.replace("%3A", ":").replace("%2F", "/").replace('+', " "))
    }
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or(serde_json::Value::Null)
    }
    /// Part of the signature's scope: 0 = access key, 2 = region, 3 = service.
    pub fn scope(&self, part: usize) -> String {
        let auth = self.headers.get("authorization").cloned().unwrap_or_default();
        let scope = auth.split("Credential=").nth(1).unwrap_or("").split(',').next().unwrap_or("").to_owned();
        scope.split('/').nth(part).unwrap_or("").to_owned()
    }
}

#[derive(Clone, Debug)]
pub enum Reply {
    Answer {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    /// TCP reset instead of an answer.
    Reset,
    /// The head promises more body than comes.
    BrokenOff,
    Silence,
}

impl Reply {
    pub fn json(status: u16, body: &str) -> Self {
        let headers = [("Content-Type", "application/x-amz-json-1.1"), ("x-amzn-RequestId", "00000000-0000-4000-8000-0000000000aa")];
        Self::Answer { status, headers: headers.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec(), body: body.as_bytes().to_vec() }
    }
    pub fn xml(status: u16, body: &str) -> Self {
        Self::Answer { status, headers: vec![("Content-Type".to_owned(), "text/xml".to_owned())], body: body.as_bytes().to_vec() }
    }
}

/// A running server; it stops when dropped.
pub struct Wire {
    pub addr: SocketAddr,
    asked: Arc<Mutex<Vec<Ask>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Wire {
    pub async fn serve(answer: impl Fn(&Ask) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (heard, answer) = (Arc::clone(&asked), Arc::new(answer));
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                open.spawn(converse(stream, Arc::clone(&answer), Arc::clone(&heard)));
            }
        });
        Self { addr, asked, task }
    }
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
    pub fn asked(&self) -> Vec<Ask> {
        self.asked.lock().unwrap().clone()
    }
}

async fn converse<A: Fn(&Ask) -> Reply + Send + Sync>(mut stream: TcpStream, answer: Arc<A>, heard: Arc<Mutex<Vec<Ask>>>) {
    let mut buffer = Vec::new();
    while let Some(ask) = read_ask(&mut stream, &mut buffer).await {
        heard.lock().unwrap().push(ask.clone());
        match answer(&ask) {
            Reply::Answer { status, headers, body } => {
                let mut head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n", body.len());
                for (name, value) in headers {
                    head.push_str(&format!("{name}: {value}\r\n"));
                }
                head.push_str("\r\n");
                let sent = [head.as_bytes(), &body].concat();
                if stream.write_all(&sent).await.is_err() {
                    return;
                }
            }
            Reply::Reset => {
                rustix::net::sockopt::set_socket_linger(&stream, Some(std::time::Duration::ZERO)).unwrap();
                return;
            }
            Reply::BrokenOff => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4000\r\n\r\n{\"KeyId\":").await;
                return;
            }
            Reply::Silence => std::future::pending::<()>().await,
        }
    }
}

async fn read_ask(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Ask> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: BTreeMap<String, String> =
        lines.filter_map(|l| l.split_once(':')).map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned())).collect();
    let length: usize = headers.get("content-length").map_or(0, |l| l.parse().unwrap());
    while buffer.len() < end + 4 + length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = buffer[end + 4..end + 4 + length].to_vec();
    buffer.drain(..end + 4 + length);
    Some(Ask { method, path, headers, body })
}
