//! outside
//! Why a command did not do what was asked, and the exit code that says so. One table for all of
//! them: 1 internal, 2 usage, 66 unknown, 69 daemon unreachable, 74 store, 77 refused, 78 configuration.

use std::path::Path;

use serde_json::{Value, json};

use super::show;
use crate::config::load::{LoadError, Loaded};
use crate::http::client::ClientError;
use crate::kms::local::LocalKmsError;
use crate::providers::{ProviderFault, ProvidersError, ReceiversError};
use crate::store::sqlite::VerifyError;

pub const INTERNAL: u8 = 1;
pub const USAGE: u8 = 2;
pub const IMPAIRED: u8 = 10;
pub const REVOKED: u8 = 11;
pub const INCONCLUSIVE: u8 = 12;
pub const UNKNOWN: u8 = 66;
pub const UNREACHABLE: u8 = 69;
pub const STORE: u8 = 74;
pub const REFUSED: u8 = 77;
pub const CONFIG: u8 = 78;

/// Why a command did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Config(#[from] LoadError),
    #[error(transparent)]
    Providers(#[from] ProvidersError),
    #[error(transparent)]
    Receivers(#[from] ReceiversError),
    /// Secrets of providers and receivers together.
    #[error("{}", .0.join("\n"))]
    Unresolved(Vec<String>),
    #[error("{0}")]
    Unknown(String),
    #[error("{0}")]
    Usage(String),
    #[error("{source}{consequence}")]
    Client { source: ClientError, consequence: &'static str },
    /// The daemon's own refusal.
    #[error("{}", problem_text(*.status, .body))]
    Problem { status: u16, body: Value },
    #[error(transparent)]
    Local(#[from] LocalKmsError),
    #[error(transparent)]
    Provider(#[from] ProviderFault),
    #[error(transparent)]
    Store(#[from] VerifyError),
    #[error("{0}")]
    OtherStore(String),
    #[error("the runtime cannot be started: {0}")]
    Runtime(std::io::Error),
    #[error("the system gives no random bytes")]
    Random,
    #[error("the daemon answered {0}, which is no answer to this")]
    Answer(u16),
}

/// Loads the configuration.
///
/// # Errors
/// Every fault of it.
pub fn load(path: &Path) -> Result<Loaded, CliError> {
    Ok(crate::config::load::load(path)?)
}

impl CliError {
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Providers(_) | Self::Receivers(_) | Self::Unresolved(_) => CONFIG,
            Self::Unknown(_) => UNKNOWN,
            Self::Usage(_) => USAGE,
            Self::Client { source, .. } => match source {
                ClientError::Unreachable { .. } | ClientError::Broken(_) | ClientError::Late => UNREACHABLE,
                ClientError::Unreadable | ClientError::NotJson(_) | ClientError::Malformed(_) => INTERNAL,
            },
            Self::Problem { status, body } => of_problem(*status, slug(body)),
            Self::Local(error) | Self::Provider(ProviderFault::Local { source: error, .. }) => of_local(error),
            Self::Provider(ProviderFault::Folder { .. }) | Self::Store(_) | Self::OtherStore(_) => STORE,
            Self::Provider(_) => CONFIG,
            Self::Runtime(_) | Self::Random | Self::Answer(_) => INTERNAL,
        }
    }

    /// The slug under which `--json` shows it.
    fn word(&self) -> &str {
        match self {
            Self::Problem { body, .. } => slug(body).unwrap_or("internal"),
            Self::Config(_) => "bad_configuration",
            Self::Providers(_) | Self::Receivers(_) | Self::Unresolved(_) | Self::Provider(_) => "unresolved",
            Self::Unknown(_) => "unknown",
            Self::Usage(_) => "usage",
            Self::Client { .. } => "unreachable",
            Self::Local(_) => "local_kms",
            Self::Store(_) | Self::OtherStore(_) => "store",
            Self::Runtime(_) | Self::Random | Self::Answer(_) => "internal",
        }
    }

    /// Writes it and gives the exit code. Text goes to stderr in either form.
    #[must_use]
    pub fn print(&self, json: bool) -> u8 {
        let text = self.to_string();
        if json {
            let errors: Vec<&str> = text.lines().collect();
            let error = json!({ "code": self.word(), "message": text, "lines": errors, "exit_code": self.code() });
            show::to_stdout(&format!("{:#}\n", json!({ "error": error })));
        }
        show::to_stderr(&[text]);
        self.code()
    }
}

/// The `<slug>` of `urn:cmek-watchdog:<slug>`.
fn slug(body: &Value) -> Option<&str> {
    body.get("type").and_then(Value::as_str).and_then(|kind| kind.strip_prefix("urn:cmek-watchdog:"))
}

fn of_problem(status: u16, slug: Option<&str>) -> u8 {
    match slug.unwrap_or_default() {
        "unknown_key" | "unknown_workspace" | "unknown_provider" | "unknown_version" | "unknown_receiver" | "not_found" => UNKNOWN,
        "not_proven" | "key_locks" | "not_engaged" | "file_managed" | "current_version" => REFUSED,
        "invalid" => USAGE,
        "store_unavailable" => STORE,
        "bad_configuration" => CONFIG,
        "busy" | "starting" | "stopping" | "timed_out" | "too_many_requests" => UNREACHABLE,
        _ => match status {
            401 | 403 => REFUSED,
            _ => INTERNAL,
        },
    }
}

fn of_local(error: &LocalKmsError) -> u8 {
    match error {
        LocalKmsError::UnknownKey { .. } | LocalKmsError::UnknownVersion { .. } => UNKNOWN,
        LocalKmsError::KeyExists { .. } | LocalKmsError::Standing { .. } | LocalKmsError::VersionDestroyed { .. } => REFUSED,
        LocalKmsError::Name { .. } => USAGE,
        LocalKmsError::Missing { .. }
        | LocalKmsError::Io { .. }
        | LocalKmsError::Damaged { .. }
        | LocalKmsError::Format { .. }
        | LocalKmsError::TooLarge { .. } => STORE,
        LocalKmsError::Random { .. } => INTERNAL,
    }
}

fn problem_text(status: u16, body: &Value) -> String {
    let text = |name: &str| body.get(name).and_then(Value::as_str);
    match (text("detail"), slug(body)) {
        // A refused configuration is told line by line, as `check` does.
        (Some(detail), Some("bad_configuration") | None) => detail.to_owned(),
        (Some(detail), Some(slug)) => format!("{slug}: {detail}"),
        (None, _) => format!("the daemon answered {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_of_the_daemon_has_its_exit_code() {
        for (slug, code) in [
            ("unknown_key", 66),
            ("unknown_workspace", 66),
            ("unknown_provider", 66),
            ("unknown_version", 66),
            ("unknown_receiver", 66),
            ("not_proven", 77),
            ("key_locks", 77),
            ("not_engaged", 77),
            ("current_version", 77),
            ("file_managed", 77),
            ("invalid", 2),
            ("store_unavailable", 74),
            ("busy", 69),
            ("starting", 69),
            ("bad_configuration", 78),
            ("something_new", 1),
        ] {
            let body = json!({ "type": format!("urn:cmek-watchdog:{slug}"), "detail": "why" });
            let error = CliError::Problem { status: 500, body };
            assert_eq!(error.code(), code, "{slug}");
            assert!(error.to_string().contains("why"));
        }
        let foreign = CliError::Problem { status: 403, body: Value::Null };
        assert_eq!((foreign.code(), foreign.to_string()), (77, "the daemon answered 403".to_owned()));
    }
}
