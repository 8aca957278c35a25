//! Receivers of notices written in Python, for judgement by independent code.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A test server; its lines of JSON arrive here.
pub struct Server {
    child: Child,
    lines: mpsc::Receiver<Value>,
    pub port: u16,
}

fn venv_python() -> PathBuf {
    let venv =
        std::env::var_os("CMEK_TEST_VENV").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv"), PathBuf::from);
    let python = venv.join("bin/python");
    assert!(python.exists(), "{} is not there: run tests/run, which makes it", python.display());
    python
}

impl Server {
    pub fn start(script: &str, arguments: &[&str]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(script);
        let mut child = Command::new(venv_python())
            .arg(script)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let out = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _gone = send.send(serde_json::from_str(&line).expect("a line of JSON"));
            }
        });
        let mut server = Self { child, lines, port: 0 };
        server.port = server.next()["port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
        server
    }

    pub fn next(&self) -> Value {
        self.lines.recv_timeout(Duration::from_secs(60)).expect("the server says something")
    }

    /// The next mail.
    pub fn mail(&self) -> Value {
        loop {
            if let Some(mail) = self.next().get("mail") {
                return mail.clone();
            }
        }
    }

    /// Everything that is said until nothing more has come for so long.
    pub fn rest(&self, quiet: Duration) -> Vec<Value> {
        let mut all = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(quiet) {
            all.push(line);
        }
        all
    }

    /// Everything that is said before `until` holds of all of it together.
    pub fn until(&self, mut done: impl FnMut(&[Value]) -> bool) -> Vec<Value> {
        let (mut all, since) = (Vec::new(), Instant::now());
        while !done(&all) {
            assert!(since.elapsed() < Duration::from_secs(90), "only this came: {all:#?}");
            all.extend(self.lines.recv_timeout(Duration::from_millis(200)));
        }
        all
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}
