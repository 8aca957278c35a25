//! outside
//! The daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::log::Log;

/// How the daemon was started. Logging is set up already; `log` says how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunOptions {
    pub config_path: PathBuf,
    /// A bad configuration ends the start instead of the last good one being used.
    pub strict: bool,
    pub log: Log,
}

/// Runs until told to stop.
#[must_use]
pub fn main(options: RunOptions) -> ExitCode {
    tracing::error!(config = %options.config_path.display(), strict = options.strict, "this build has no daemon");
    ExitCode::from(1)
}
