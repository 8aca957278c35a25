//! Starts a ministack for a test and stops it again. It comes from the Python environment that
//! `tests/run` makes; without it the test fails and says so, it is never skipped.

#![allow(dead_code, reason = "shared by several test binaries, each using its part")]

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const REGION: &str = "eu-central-1";
pub const ACCOUNT: &str = "123456789012";

pub struct Ministack {
    child: Child,
    pub port: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Ministack {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A value of a query.
pub fn encoded(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

fn program() -> PathBuf {
    let made = std::env::var_os("CMEK_TEST_VENV").map(|v| PathBuf::from(v).join("bin/ministack"));
    let usual = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/test-venv/bin/ministack");
    [made, Some(usual)]
        .into_iter()
        .flatten()
        .find(|p| p.is_file())
        .unwrap_or_else(|| panic!("ministack is not installed: run tests/run, which makes target/test-venv (or set CMEK_TEST_VENV)"))
}

impl Ministack {
    /// Starts it with signatures and policies enforced, and waits until it answers.
    pub async fn start() -> Self {
        let program = program();
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let port_text = port.to_string();
        let child = Command::new(program)
            .envs([
                ("BIND_HOST", "127.0.0.1"),
                ("GATEWAY_PORT", &port_text),
                ("EDGE_PORT", &port_text),
                // Without this it listens on every interface for MQTT.
                ("IOT_MTLS_ENABLED", "0"),
                ("SFTP_ENABLED", "0"),
                ("AUTH", "true"),
                ("CLOUDTRAIL_RECORDING", "1"),
                ("DOCKER_HOST", "unix:///nonexistent"),
                ("MINISTACK_REGION", REGION),
                ("MINISTACK_ACCOUNT_ID", ACCOUNT),
                ("AWS_EC2_METADATA_DISABLED", "true"),
            ])
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut server = Self { child, port, _folder: folder };
        let until = Instant::now() + Duration::from_secs(60);
        while server.http("GET", "/_ministack/health", "").await.is_none() {
            assert!(server.child.try_wait().unwrap().is_none(), "ministack ended before it answered");
            assert!(Instant::now() < until, "ministack does not answer on port {port}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        server
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A new IAM user that may call KMS and STS as far as key policies let it; access key and secret.
    pub async fn user(&self, name: &str) -> (String, String) {
        let policy = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["kms:*","sts:*"],"Resource":"*"}]}"#;
        let encoded = encoded(policy);
        self.iam(&format!("Action=CreateUser&UserName={name}")).await;
        self.iam(&format!("Action=PutUserPolicy&UserName={name}&PolicyName=p&PolicyDocument={encoded}")).await;
        let made = self.iam(&format!("Action=CreateAccessKey&UserName={name}")).await;
        let field = |tag: &str| made.split(&format!("<{tag}>")).nth(1).unwrap().split('<').next().unwrap().to_owned();
        (field("AccessKeyId"), field("SecretAccessKey"))
    }

    /// An IAM query as root; root's signature is not looked at.
    pub async fn iam(&self, query: &str) -> String {
        self.iam_of("test", query).await
    }

    /// An IAM query as root of an account: its twelve digits are an access key.
    pub async fn iam_of(&self, account: &str, query: &str) -> String {
        let answer = self.http_as(account, "POST", "/", &format!("{query}&Version=2010-05-08")).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{query}: {answer}");
        answer
    }

    async fn http(&self, method: &str, path: &str, body: &str) -> Option<String> {
        self.http_as("test", method, path, body).await
    }

    async fn http_as(&self, access_key: &str, method: &str, path: &str, body: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
        let scope =
            format!("AWS4-HMAC-SHA256 Credential={access_key}/20260101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=0");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\nauthorization: {scope}\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer).filter(|a| a.starts_with("HTTP/1.1"))
    }
}
