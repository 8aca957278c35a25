//! outside
//! A deny-list file for gateways: every workspace that is held, in a form that they can read. It is
//! replaced whole and at once; it must never be half a list, and never hold anything but ids.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::config::ListFormat;
use crate::key::WorkspaceId;
use crate::kms::BoxFuture;
use crate::lever::{Lever, LeverOrder, Outcome};

/// One deny-list.
#[derive(Debug)]
pub struct FileLever {
    path: PathBuf,
    format: ListFormat,
}

impl FileLever {
    #[must_use]
    pub fn new(path: &str, format: ListFormat) -> Self {
        Self { path: PathBuf::from(path), format }
    }

    /// An empty list where there is none, so that a gateway that includes it can start.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn make_if_missing(&self) -> std::io::Result<()> {
        if self.path.exists() { Ok(()) } else { replace(&self.path, &text(self.format, &[])) }
    }
}

/// The list as written.
fn text(format: ListFormat, held: &[WorkspaceId]) -> String {
    match format {
        ListFormat::Lines => held.iter().map(|id| format!("{id}\n")).collect(),
        ListFormat::Json => format!("{}\n", serde_json::json!(held)),
        // Ids have no quote and no backslash by construction.
        ListFormat::Nginx => held.iter().map(|id| format!("\"{id}\" 1;\n")).collect(),
    }
}

/// Written beside, synced, renamed over: readers see the old list or the new one.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        Some(_) | None => Path::new("."),
    };
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let beside = folder.join(name);
    let mut file = std::fs::File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    std::fs::File::open(folder)?.sync_all()
}

impl Lever for FileLever {
    fn act<'a>(&'a self, order: &'a LeverOrder) -> BoxFuture<'a, Outcome> {
        let (path, text) = (self.path.clone(), text(self.format, &order.all));
        Box::pin(async move {
            let written = tokio::task::spawn_blocking(move || {
                // Unchanged is left alone, so that gateways that watch the file are not woken.
                if std::fs::read(&path).is_ok_and(|old| old == text.as_bytes()) { Ok(()) } else { replace(&path, &text) }
            });
            match written.await {
                Ok(Ok(())) => Outcome::Done { memory: None, left: Vec::new() },
                Ok(Err(why)) => {
                    Outcome::Failed { reason: format!("the list cannot be written: {}", why.kind()), after: None, memory: None }
                }
                Err(_) => Outcome::Failed { reason: "the list was not written".to_owned(), after: None, memory: None },
            }
        })
    }

    fn check(&self) -> BoxFuture<'_, Result<(), String>> {
        let made = self.make_if_missing().map_err(|why| format!("the list cannot be written: {}", why.kind()));
        Box::pin(async move { made })
    }
}
