//! outside
//! The command line: what may be asked, and which part answers. Parses, dispatches and turns what
//! came of it into an exit code; it must never decide about a key or a lock.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgAction, ArgGroup, Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::time::Span;
use crate::words::{Leg, Role};

mod check;
mod daemon;
mod exit;
mod journal;
mod local_kms;
pub mod log;
mod plan;
mod probe;
mod show;
mod token;

use exit::CliError;
use show::Shown;

/// Where the configuration lies unless `--config` says otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/cmek-watchdog/config.toml";

const EXAMPLES: &str = "\
Examples:
  cmek-watchdog check --live                      is everything reachable, key by key
  cmek-watchdog status                            what is locked, and why
  cmek-watchdog probe acme-prod                   look at one key now, without the daemon
  cmek-watchdog lock wrkspc_acme --reason \"INC-123: suspected leak\"
  cmek-watchdog unlock wrkspc_acme --reason \"INC-123 closed\"

Exit codes:
  0 done   1 internal   2 usage   10 impaired   11 revoked or locked   12 inconclusive
  66 unknown key or workspace   69 daemon unreachable   74 store or file   77 refused   78 configuration

Logs go to stderr. RUST_LOG sets their detail for this program; libraries are never logged below
info, because their details can hold secrets.";

/// Watches over customer-managed encryption keys, and locks what a revoked key protected.
#[derive(Parser, Debug)]
#[command(name = "cmek-watchdog", version, about, after_help = EXAMPLES, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// Configuration file
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub config: PathBuf,
    /// Print one JSON value instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Log more: -v debug, -vv trace
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Form of the log on stderr
    #[arg(long, global = true, value_enum, default_value_t = log::LogFormat::Text)]
    pub log_format: log::LogFormat,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the daemon
    #[command(after_help = "\
With a bad file the daemon starts from the last good configuration that it stored, and says so
everywhere; --strict exits 78 instead. SIGHUP or `reload` reads the file again.")]
    Run {
        /// Exit 78 on a bad configuration instead of starting from the last good one
        #[arg(long)]
        strict: bool,
    },
    /// Check the configuration; with --live also every key and receiver
    #[command(after_help = "\
Without --live no secret is resolved and nothing is called. Faults go to stderr, one a line, as
file:line:column: field: what is wrong; exit 78.
With --live every key gets one full round, and every receiver is connected to without sending.
Exit: the worst of 11 (a key is revoked), 10 (impaired), 12 (a key, control key or receiver could
not be proven good).")]
    Check {
        /// Resolve secrets, probe every key once, connect to every receiver
        #[arg(long)]
        live: bool,
    },
    /// Look at one key now, without the daemon
    #[command(after_help = "\
One full round through the real provider: wrap, unwrap, each stored older version, describe.
Nothing is locked or stored. One look confirms nothing; the daemon looks several times.
Exit: 0 usable, 10 impaired, 11 revoked, 12 inconclusive, 66 no such key.

  cmek-watchdog probe acme-prod --json | jq '.last_probe.legs[] | select(.outcome != \"ok\")'")]
    Probe {
        /// Id of the key in the configuration
        key: String,
    },
    /// Show what the daemon sees: keys, locks, providers, receivers
    Status {
        /// Exit 11 if any workspace is locked or read-only
        #[arg(long)]
        exit_code: bool,
    },
    /// Lock a workspace by hand, whatever its keys say
    #[command(after_help = "\
The lock stays until `unlock`; a good key does not lift it. A workspace that is not known yet is
locked all the same. Needs the daemon: exit 69 means that nothing was locked.")]
    Lock {
        workspace: String,
        #[command(flatten)]
        why: Why,
    },
    /// Clear a manual lock, or release one that waits for approval
    #[command(after_help = "\
A lock that a revoked key gave is not cleared without proof that the key works again (exit 77).
To open the workspace in spite of it, for a time (24h at most), for this key and this fault only:

  cmek-watchdog unlock wrkspc_acme --override --until 2h --reason \"INC-123: owner agreed\"")]
    Unlock {
        workspace: String,
        #[command(flatten)]
        why: Why,
        /// Open although the key is not proven good; needs --until
        #[arg(long = "override", requires = "until")]
        overriding: bool,
        /// How long the override holds, such as 30m or 2h; 24h at most
        #[arg(long, requires = "overriding", value_name = "DURATION")]
        until: Option<Span>,
    },
    /// Rehearse a revocation of a workspace, or of everything under a key
    #[command(after_help = "\
Notices, journal and measured latency take the whole way; every message begins with DRILL. Without
--cut the gate stays open. A real lock during a drill locks, stays, and ends the drill.

  cmek-watchdog drill wrkspc_acme --for 10m --reason \"quarterly rehearsal\"
  cmek-watchdog drill acme-prod --cut --for 5m --reason \"agreed with the owner\"
  cmek-watchdog drill --list                      list them, with when each stage happened
  cmek-watchdog drill drl_1a2b_3 --end --reason \"seen enough\"")]
    Drill {
        /// A workspace or a key; with --end the drill's id
        target: Option<String>,
        /// How long, such as 10m; 1h at most
        #[arg(long = "for", value_name = "DURATION", default_value = "15m", conflicts_with = "end")]
        length: Span,
        /// Really cut the access at gate and stream
        #[arg(long, requires = "target", conflicts_with = "end")]
        cut: bool,
        /// End this drill now
        #[arg(long, requires = "target")]
        end: bool,
        /// Why, for the journal and the notices
        #[arg(long, value_parser = NonEmptyStringValueParser::new(), requires = "target", required_unless_present = "list")]
        reason: Option<String>,
        /// List drills
        #[arg(long, conflicts_with = "target")]
        list: bool,
    },
    /// Make the daemon read its configuration again
    #[command(after_help = "\
All or nothing: a bad file changes nothing, is told on stderr, and exits 78.")]
    Reload,
    /// Release held automatic locks
    Brake {
        #[command(subcommand)]
        act: BrakeAct,
    },
    /// Versions of a key
    Version {
        #[command(subcommand)]
        act: VersionAct,
    },
    /// Registered keys
    Key {
        #[command(subcommand)]
        act: KeyAct,
    },
    /// The record of everything that happened, read from the store without the daemon
    Journal {
        #[command(subcommand)]
        act: JournalAct,
    },
    /// The safety vault: its keys, and wrapping its data keys anew
    Vault {
        #[command(subcommand)]
        act: VaultAct,
    },
    /// Receivers of notices
    Receivers {
        #[command(subcommand)]
        act: ReceiversAct,
    },
    /// Notices: what waits, what is dead, what nobody has acknowledged
    Notices {
        #[command(subcommand)]
        act: NoticesAct,
    },
    /// Tokens of the HTTP API
    Token {
        #[command(subcommand)]
        act: TokenAct,
    },
    /// The embedded software KMS: for a first run, tests and rehearsals
    #[command(after_help = "\
KEY is the key's name in the software KMS. If its file is not there yet, it is made first, with the
keys that the configuration names.

  cmek-watchdog local-kms disable demo            and watch the workspace being locked
  cmek-watchdog local-kms enable demo")]
    LocalKms {
        /// Which provider of kind local; needed only if there are several
        #[arg(long, global = true, value_name = "NAME")]
        provider: Option<String>,
        #[command(subcommand)]
        act: LocalAct,
    },
    /// Calls, cost, quota and promised time to lock of this configuration
    #[command(after_help = "Computed from the configuration alone; nothing is called.")]
    Plan,
    /// Print the completion script of a shell
    #[command(after_help = "  cmek-watchdog completions bash > /etc/bash_completion.d/cmek-watchdog")]
    Completions { shell: clap_complete::Shell },
}

/// Every order of a person has a reason; it stands in the journal.
#[derive(Args, Debug)]
pub struct Why {
    /// Why, for the journal and the notices
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub reason: String,
}

#[derive(Subcommand, Debug)]
pub enum BrakeAct {
    /// Carry out the locks that the brake holds, or drop them
    #[command(group(ArgGroup::new("what").required(true).args(["lock", "drop"])))]
    Release {
        provider: String,
        /// Carry the held locks out, each after one fresh refused look
        #[arg(long)]
        lock: bool,
        /// Drop the held locks
        #[arg(long)]
        drop: bool,
        #[command(flatten)]
        why: Why,
    },
}

#[derive(Subcommand, Debug)]
pub enum VersionAct {
    /// No data is under this version any more: stop probing and needing it
    Retire {
        key: String,
        version: String,
        #[command(flatten)]
        why: Why,
    },
}

#[derive(Subcommand, Debug)]
pub enum KeyAct {
    /// Stop watching a key; its locks stay until an operator clears them
    Retire {
        key: String,
        #[command(flatten)]
        why: Why,
    },
}

#[derive(Subcommand, Debug)]
pub enum JournalAct {
    /// Check the hash chain: exit 0 whole, 1 altered, 3 torn tail closed, 74 unreadable
    Verify {
        /// A head noted elsewhere (digest, metric) that the chain must go through; may be repeated
        #[arg(long, value_name = "SEQUENCE:HASH")]
        head: Vec<String>,
    },
    /// Print the records as JSON lines, ascending
    Export {
        /// Only records after this sequence number
        #[arg(long, value_name = "N", default_value_t = 0)]
        after: u64,
    },
}

#[derive(Subcommand, Debug)]
pub enum VaultAct {
    /// How the vault stands: its keys as last seen, its rows, data keys to wrap anew
    Status,
    /// Wrap data keys anew that lie under an older key or version; goes on by itself too
    Rewrap {
        /// Every data key, also where no rotation shows
        #[arg(long)]
        all: bool,
    },
}

#[derive(Subcommand, Debug)]
pub enum ReceiversAct {
    /// Send a test notice through the daemon's whole path
    Test { name: String },
}

#[derive(Subcommand, Debug)]
pub enum NoticesAct {
    /// List notices that wait (pending), were refused for good (dead) or that nobody has seen (unacknowledged)
    List {
        #[arg(long, default_value = "pending", value_parser = ["pending", "dead", "unacknowledged"])]
        state: String,
    },
    /// Say that a person has seen the notice of a lock; nobody else is called in for it
    Ack { id: String },
    /// Send dead letters again: one, or all with --dead
    Resend {
        #[arg(required_unless_present = "dead")]
        id: Option<String>,
        #[arg(long, conflicts_with = "id")]
        dead: bool,
    },
}

#[derive(Subcommand, Debug)]
pub enum TokenAct {
    /// Draw a token; prints it once, with the line for the configuration
    #[command(after_help = "\
The token itself is kept nowhere. Roles: read, operate, safety, hint.

  cmek-watchdog token new gateway --role read")]
    New {
        name: String,
        #[arg(long, value_enum)]
        role: RoleArg,
    },
}

#[derive(Subcommand, Debug)]
pub enum LocalAct {
    /// A new enabled key
    Create { key: String },
    /// A new current version; older ones still open what they wrapped
    Rotate { key: String },
    /// Disable a key, or one version of it
    Disable {
        key: String,
        #[arg(long, value_name = "V")]
        version: Option<String>,
    },
    /// Enable a key, or one version of it
    Enable {
        key: String,
        #[arg(long, value_name = "V")]
        version: Option<String>,
    },
    /// Refuse everything from now on, and erase the material later
    ScheduleDeletion {
        key: String,
        #[arg(long = "in", value_name = "DURATION", default_value = "7d")]
        after: Span,
    },
    /// Undo schedule-deletion
    CancelDeletion { key: String },
    /// Withdraw permission for calls
    Deny {
        key: String,
        #[arg(required = true, value_enum)]
        calls: Vec<CallArg>,
    },
    /// Give permission back
    Allow {
        key: String,
        #[arg(required = true, value_enum)]
        calls: Vec<CallArg>,
    },
    /// Show every key and version
    List,
}

/// A permission of the software KMS.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum CallArg {
    Wrap,
    Unwrap,
    Describe,
}

impl From<CallArg> for Leg {
    fn from(call: CallArg) -> Self {
        match call {
            CallArg::Wrap => Self::Wrap,
            CallArg::Unwrap => Self::Unwrap,
            CallArg::Describe => Self::Describe,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum RoleArg {
    Read,
    Operate,
    Safety,
    Hint,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Read => Self::Read,
            RoleArg::Operate => Self::Operate,
            RoleArg::Safety => Self::Safety,
            RoleArg::Hint => Self::Hint,
        }
    }
}

/// Reads the arguments, does what they ask for, and gives the exit code. Usage errors exit 2 here.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let log = log::Log { format: cli.log_format, verbose: cli.verbose };
    if let Command::Run { strict } = cli.command {
        log.start(tracing::Level::INFO);
        return crate::run::main(crate::run::RunOptions { config_path: cli.config, strict, log });
    }
    log.start(tracing::Level::WARN);
    let done = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(perform(&cli)),
        Err(source) => Err(CliError::Runtime(source)),
    };
    let code = match done {
        Ok(shown) => shown.print(cli.json),
        Err(error) => error.print(cli.json),
    };
    ExitCode::from(code)
}

async fn perform(cli: &Cli) -> Result<Shown, CliError> {
    let path = cli.config.as_path();
    match &cli.command {
        // Taken by `main`, which has no runtime yet.
        Command::Run { .. } => Err(CliError::Usage("run is not a command to be asked".to_owned())),
        Command::Check { live } => check::check(path, *live, cli.json).await,
        Command::Probe { key } => probe::probe(&exit::load(path)?.config, key).await,
        Command::Plan => Ok(plan::plan(&exit::load(path)?.config)),
        Command::Journal { act } => journal::journal(&exit::load(path)?.config, act).await,
        Command::LocalKms { provider, act } => {
            local_kms::local_kms(&exit::load(path)?.config, provider.as_deref(), act, crate::clock::now().wall)
        }
        Command::Token { act: TokenAct::New { name, role } } => token::new(name, (*role).into()),
        Command::Completions { shell } => Ok(completions(*shell)),
        Command::Status { .. }
        | Command::Lock { .. }
        | Command::Unlock { .. }
        | Command::Drill { .. }
        | Command::Reload
        | Command::Brake { .. }
        | Command::Version { .. }
        | Command::Key { .. }
        | Command::Receivers { .. }
        | Command::Vault { .. }
        | Command::Notices { .. } => daemon::ask(path, &cli.command).await,
    }
}

fn completions(shell: clap_complete::Shell) -> Shown {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "cmek-watchdog", &mut script);
    let text = String::from_utf8_lossy(&script).into_owned();
    Shown::good(serde_json::json!({ "shell": shell.to_string(), "script": text }), text)
}
