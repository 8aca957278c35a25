//! The real binary in a folder of its own: start, ask, administer its local KMS, stop, kill.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cmek_watchdog::kms::local::LocalKmsFile;
use cmek_watchdog::time::Wall;
use serde_json::Value;

/// The machine may be slow; nothing waits so long when all is well.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Quick enough that a test need not wait, with every rule still a matter of several looks.
pub const QUICK: &str = r#"
[policies.default]
probe_interval = "1s"
suspect_interval = "200ms"
revoked_interval = "300ms"
version_interval = "10s"
call_timeout = "2s"
unlock_after = { rounds = 2, over = "300ms" }
stated_alone = { looks = 2, of = 3, over = "200ms" }
[policies.default.on]
disabled = { looks = 2, of = 2, over = "200ms", access = "locked" }
access_denied = { looks = 3, of = 4, over = "400ms", access = "locked" }
"#;

pub const DEMO: &str = r#"
[[keys]]
id = "demo"
provider = "local"
key = "demo"
workspaces = ["wrkspc_demo"]
"#;

/// A port of 127.0.0.1 that nobody has, below those that the system gives to outgoing connections.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 12_000 + u16::try_from(std::process::id() % 1_000).unwrap() * 16;
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A configuration file, a port and a folder.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub config: PathBuf,
    pub port: u16,
    pub env: Vec<(String, String)>,
}

/// What a command gave.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

impl Place {
    /// `[server]`, `[store]` and the local provider, then what the test says.
    pub fn new(rest: &str) -> Self {
        let place = Self::empty();
        place.write(&place.head("insecure_loopback = true", "state/state.db"), rest);
        place
    }

    pub fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.toml");
        Self { dir, config, port: free_port(), env: Vec::new() }
    }

    /// The tables that every test needs.
    pub fn head(&self, server: &str, store: &str) -> String {
        format!(
            "[server]\nlisten = \"127.0.0.1:{}\"\nrun_dir = \"run\"\n{server}\n[store]\nurl = \"sqlite://{store}\"\n\
             [providers.local]\nkind = \"local\"\npath = \"kms/local-kms.json\"\ncontrol_key = \"operator\"\n",
            self.port
        )
    }

    pub fn write(&self, head: &str, rest: &str) {
        std::fs::write(&self.config, format!("{head}{rest}")).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cmek-watchdog"));
        command.args(arguments).arg("--config").arg(&self.config);
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "STATE_DIRECTORY", "RUST_LOG"] {
            command.env_remove(name);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// One command of the command line.
    pub fn cli(&self, arguments: &[&str]) -> Ran {
        let out = self.command(arguments).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ran { code: out.status.code().unwrap_or(-1), out: text(&out.stdout), err: text(&out.stderr) }
    }

    /// One command that must succeed.
    pub fn good(&self, arguments: &[&str]) -> Ran {
        let ran = self.cli(arguments);
        assert_eq!(ran.code, 0, "{arguments:?}: {ran:?}");
        ran
    }

    /// Starts the daemon and does not wait for it.
    pub fn spawn(&self, arguments: &[&str]) -> Daemon {
        let mut all = vec!["run"];
        all.extend(arguments);
        let mut child =
            self.command(&all).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the daemon starts");
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, into) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&log));
        let reader = std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let mut log = into.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Daemon { child, port: self.port, log, reader: Some(reader) }
    }

    /// Starts the daemon and waits until it is ready.
    pub fn start(&self) -> Daemon {
        let mut daemon = self.spawn(&[]);
        daemon.wait_ready();
        daemon
    }

    /// Starts a daemon that must end by itself, and gives its exit code and what it said.
    pub fn start_fails(&self, arguments: &[&str]) -> (i32, String) {
        let mut daemon = self.spawn(arguments);
        let status = daemon.wait_end(PATIENCE);
        (status.code().unwrap_or(-1), daemon.log())
    }

    pub fn kms(&self) -> LocalKmsFile {
        LocalKmsFile::at(&self.path("kms/local-kms.json"))
    }
}

pub fn now() -> Wall {
    cmek_watchdog::clock::now().wall
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    pub child: Child,
    pub port: u16,
    log: Arc<Mutex<String>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Daemon {
    pub fn wait_ready(&mut self) {
        let until = Instant::now() + PATIENCE;
        while get(self.port, "/readyz").is_none_or(|answer| answer.status != 200) {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the daemon ended with {status} before it was ready:\n{}", self.log());
            }
            assert!(Instant::now() < until, "not ready in time:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn get(&self, path: &str) -> Answer {
        get(self.port, path).unwrap_or_else(|| panic!("no answer to {path}:\n{}", self.log()))
    }

    pub fn post(&self, path: &str, body: Option<&Value>) -> Answer {
        request(self.port, "POST", path, &[], body).unwrap_or_else(|| panic!("no answer to {path}:\n{}", self.log()))
    }

    pub fn workspace(&self, id: &str) -> Value {
        let answer = self.get(&format!("/v1/workspaces/{id}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    pub fn access(&self, id: &str) -> String {
        self.workspace(id)["access"].as_str().unwrap().to_owned()
    }

    pub fn key(&self, id: &str) -> Value {
        self.get(&format!("/v1/keys/{id}")).json()
    }

    pub fn key_state(&self, id: &str) -> String {
        self.key(id)["state"].as_str().unwrap_or("none").to_owned()
    }

    /// Waits until the workspace has this access, and gives the time that it took.
    pub fn wait_access(&self, id: &str, access: &str, within: Duration) -> Duration {
        self.wait(&format!("{id} is {access}"), within, || self.access(id) == access)
    }

    pub fn wait_state(&self, key: &str, state: &str, within: Duration) -> Duration {
        self.wait(&format!("key {key} is {state}"), within, || self.key_state(key) == state)
    }

    pub fn wait(&self, what: &str, within: Duration, mut done: impl FnMut() -> bool) -> Duration {
        let since = Instant::now();
        while !done() {
            assert!(since.elapsed() < within, "not within {within:?}: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(30));
        }
        since.elapsed()
    }

    /// The whole journal.
    pub fn activity(&self) -> Vec<Value> {
        let (mut all, mut after) = (Vec::new(), 0);
        loop {
            let page = self.get(&format!("/v1/activity?limit=1000&after={after}")).json();
            all.extend(page["items"].as_array().unwrap().iter().cloned());
            match page["next"].as_u64() {
                Some(next) => after = next,
                None => return all,
            }
        }
    }

    /// Types of the journal's records, in order.
    pub fn events(&self) -> Vec<String> {
        self.activity().iter().map(|record| record["type"].as_str().unwrap().to_owned()).collect()
    }

    /// The value of one line of `/metrics`; `series` is the whole name with its labels.
    pub fn metric(&self, series: &str) -> Option<f64> {
        let text = self.get("/metrics").text();
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub fn wait_end(&mut self, within: Duration) -> ExitStatus {
        let until = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                if let Some(reader) = self.reader.take() {
                    reader.join().unwrap();
                }
                return status;
            }
            assert!(Instant::now() < until, "the daemon did not end within {within:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it as a service manager would, and gives the time that it took.
    pub fn stop(mut self) -> Duration {
        let since = Instant::now();
        self.signal(rustix::process::Signal::TERM);
        let status = self.wait_end(PATIENCE);
        assert_eq!(status.code(), Some(0), "{}", self.log());
        since.elapsed()
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let fits = |line: &'_ &str| line.split_once(':').is_some_and(|(n, _)| n.eq_ignore_ascii_case(name));
        self.head.lines().find(fits).and_then(|line| line.split_once(':')).map(|(_, value)| value.trim())
    }
}

pub fn get(port: u16, path: &str) -> Option<Answer> {
    request(port, "GET", path, &[], None)
}

/// One request on a connection of its own; nothing if there is no whole answer.
pub fn request(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Option<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    let body = body.map(ToString::to_string);
    if let Some(body) = &body {
        text.push_str(&format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    text.push_str(body.as_deref().unwrap_or_default());
    stream.write_all(text.as_bytes()).ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let answer = Answer { status, head, body: bytes[end + 4..].to_vec() };
    let length: Option<usize> = answer.header("content-length").and_then(|length| length.parse().ok());
    length.is_none_or(|length| length == answer.body.len()).then_some(answer)
}

/// Where the test files lie.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
