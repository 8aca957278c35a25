//! Starts the real binary, asks its doors and its command line, and keeps watch over every workspace
//! all the while: what was ever shown as anything but open is remembered.
#![allow(dead_code, reason = "shared by several test binaries, each using its part")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Done {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// The binary with a configuration file in a folder of its own, and an environment with nothing else in it.
pub struct Program {
    pub folder: tempfile::TempDir,
    env: Vec<(String, String)>,
}

impl Program {
    pub fn new(config: &str, env: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.toml"), config).unwrap();
        Self { folder, env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect() }
    }

    pub fn config(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cmek-watchdog"));
        command.env_clear().env("HOME", self.folder.path()).env("AWS_EC2_METADATA_DISABLED", "true");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.arg("--config").arg(self.config()).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub fn ask(&self, args: &[&str]) -> Done {
        let output = self.command().args(args).output().unwrap();
        Done {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// As [`Self::ask`], without holding up the test's own servers.
    pub async fn ask_beside(self: &Arc<Self>, args: &[&str]) -> Done {
        let (program, args) = (Arc::clone(self), args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>());
        tokio::task::spawn_blocking(move || program.ask(&args.iter().map(String::as_str).collect::<Vec<_>>())).await.unwrap()
    }
}

/// The running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    pub addr: SocketAddr,
    log: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("the daemon's last words:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

impl Daemon {
    /// Starts it on a port that it chooses and waits until it serves.
    pub async fn start(program: &Program) -> Self {
        let log = program.folder.path().join("log");
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let before = std::fs::read_to_string(&log).unwrap().len();
        let child = program
            .command()
            .args(["--log-format", "json", "run"])
            .stdout(Stdio::from(file.try_clone().unwrap()))
            .stderr(Stdio::from(file))
            .spawn()
            .unwrap();
        let mut daemon = Self { child, addr: SocketAddr::from(([127, 0, 0, 1], 0)), log };
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let log = daemon.log();
            let serving = log.get(before..).unwrap_or_default().lines().find_map(|line| {
                let line: Value = serde_json::from_str(line).ok()?;
                (line["message"] == "serving").then(|| line["address"].as_str().unwrap().parse().unwrap())
            });
            if let Some(addr) = serving {
                daemon.addr = addr;
                return daemon;
            }
            assert!(daemon.child.try_wait().unwrap().is_none(), "the daemon ended: {log}");
            assert!(Instant::now() < until, "the daemon does not serve: {log}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn get(&self, path: &str) -> Value {
        get(self.addr, path).unwrap_or_else(|| panic!("no answer to {path}"))
    }

    pub fn metrics(&self) -> String {
        text(self.addr, "/metrics").unwrap().1
    }

    /// Access of one workspace.
    pub fn access(&self, workspace: &str) -> String {
        self.get(&format!("/v1/workspaces/{workspace}"))["access"].as_str().unwrap().to_owned()
    }

    /// Asks until the answer is as wanted; says what it was when it never is.
    pub async fn until(&self, path: &str, within: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + within;
        loop {
            let found = self.get(path);
            if wanted(&found) {
                return found;
            }
            assert!(Instant::now() < end, "{path} is not as wanted within {within:?}: {found:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn until_access(&self, workspace: &str, access: &str, within: Duration) -> Value {
        self.until(&format!("/v1/workspaces/{workspace}"), within, |found| found["access"] == access).await
    }

    pub async fn until_state(&self, key: &str, state: &str, within: Duration) -> Value {
        self.until(&format!("/v1/keys/{key}"), within, |found| found["state"] == state).await
    }

    /// Ends it as an operator would and waits.
    pub fn stop(&mut self) -> i32 {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().code().unwrap_or(-1)
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn text(addr: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nhost: {addr}\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8(answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
}

fn get(addr: SocketAddr, path: &str) -> Option<Value> {
    serde_json::from_str(&text(addr, path)?.1).ok()
}

/// Looks at every workspace all the time, from a thread of its own.
pub struct Sampler {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default, Debug, Clone)]
pub struct Seen {
    pub samples: u64,
    /// Longest time between two samples.
    pub gap: Duration,
    /// Everything that was ever shown of a workspace besides `open`: when first, since the sampler's start.
    pub lowered: BTreeMap<String, BTreeMap<String, Duration>>,
    pub workspaces: usize,
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Sampler {
    pub fn start(addr: SocketAddr) -> Self {
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let (shared, stopping) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let start = Instant::now();
            let mut last = start;
            while !stopping.load(Ordering::SeqCst) {
                if let Some(found) = get(addr, "/v1/workspaces?limit=1000") {
                    let mut seen = shared.lock().unwrap();
                    let items = found["items"].as_array().unwrap();
                    seen.samples += 1;
                    seen.gap = seen.gap.max(last.elapsed());
                    last = Instant::now();
                    seen.workspaces = items.len();
                    for item in items.iter().filter(|item| item["access"] != "open") {
                        let (name, access) = (item["workspace"].as_str().unwrap(), item["access"].as_str().unwrap());
                        let at = start.elapsed();
                        seen.lowered.entry(name.to_owned()).or_default().entry(access.to_owned()).or_insert(at);
                    }
                }
                std::thread::sleep(Duration::from_millis(25));
            }
        });
        Self { seen, stop, thread: Some(thread) }
    }

    pub fn so_far(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    pub fn end(mut self) -> Seen {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
        self.so_far()
    }
}
