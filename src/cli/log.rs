//! outside
//! Logs to stderr, as text or JSON. Libraries are never logged below info: their debug output can
//! hold requests with tokens in them.

use std::io::IsTerminal as _;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry};

const OURS: &str = "cmek_watchdog";

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// How to log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Log {
    pub format: LogFormat,
    /// How often `-v` was given.
    pub verbose: u8,
}

impl Log {
    /// Starts logging at `usual` or what `-v` or `RUST_LOG` say; a second start changes nothing.
    pub fn start(&self, usual: Level) {
        let ours = match self.verbose {
            0 => usual,
            1 => Level::DEBUG,
            _ => Level::TRACE,
        };
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(format!("warn,{OURS}={ours}")));
        let stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let layer = match self.format {
            LogFormat::Text => stderr.with_ansi(std::io::stderr().is_terminal()).boxed(),
            LogFormat::Json => stderr.json().flatten_event(true).boxed(),
        };
        let bounded = layer.with_filter(filter).with_filter(filter_fn(may_show));
        // Only a test or an embedding program can have set one before; theirs stays.
        let _ = Registry::default().with(bounded).try_init();
    }
}

fn may_show(meta: &Metadata<'_>) -> bool {
    let ours = meta.target().strip_prefix(OURS).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    // The AWS client's warnings carry whole answers of the metadata service.
    let most = if meta.target().starts_with("aws_config") { Level::ERROR } else { Level::INFO };
    ours || *meta.level() <= most
}
