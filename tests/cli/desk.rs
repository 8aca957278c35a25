//! A folder with a configuration in it, and the program run there.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// One local provider with a control key, one key.
pub const CONFIG: &str = r#"
[server]
run_dir = "run"
[store]
url = "sqlite://state.db"
[providers.local]
kind = "local"
path = "run/kms.json"
control_key = "operator"
[policies.default]
call_timeout = "2s"
[[keys]]
id = "demo-id"
provider = "local"
key = "demo"
workspaces = ["wrkspc_demo"]
owner = "security@acme.example"
"#;

pub struct Desk {
    dir: tempfile::TempDir,
}

/// What the program did.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("the program writes UTF-8");
        Self { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Checks the exit code and gives the run back.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.out, self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }
}

/// Runs the program in no particular place.
pub fn run(args: &[&str]) -> Ran {
    Ran::of(&program(args).output().unwrap())
}

pub fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cmek-watchdog"));
    command.args(args).stdin(Stdio::null()).env_remove("RUST_LOG").env_remove("CREDENTIALS_DIRECTORY");
    command
}

impl Desk {
    pub fn new(config: &str) -> Self {
        let desk = Self { dir: tempfile::tempdir().unwrap() };
        desk.write("config.toml", config);
        desk
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    /// The program with this desk's configuration.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = program(args);
        command.arg("--config").arg(self.config());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::of(&self.command(args).output().unwrap())
    }

    pub fn run_with(&self, args: &[&str], variables: &[(&str, &str)]) -> Ran {
        Ran::of(&self.command(args).envs(variables.iter().copied()).output().unwrap())
    }

    pub fn json(&self, args: &[&str]) -> (i32, Value) {
        let mut all = args.to_vec();
        all.push("--json");
        let ran = self.run(&all);
        (ran.code, ran.json())
    }
}
