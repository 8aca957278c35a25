//! outside
//! Reads the configuration file and the files that it names, and keeps their texts together, so that
//! the last good configuration can be started from again. It must never judge a field: `check` does.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Config;
use super::check::{self, ConfigError, KeysFile, Row, Rows};

/// No configuration that people can read is longer.
pub const MOST_BYTES: u64 = 4 * 1024 * 1024;
/// More files than this behind one configuration are taken for a wrong pattern.
const MOST_FILES: usize = 4096;
/// First line of a text that holds the `keys_from` files too.
const BUNDLE: &str = "#!cmek-watchdog configuration bundle 1\n";

/// A configuration ready to use.
#[derive(Clone, PartialEq, Eq)]
pub struct Loaded {
    pub config: Arc<Config>,
    /// One line each, with the place.
    pub warnings: Vec<String>,
    /// What [`from_text`] makes the same configuration from: the file, or, if `keys_from` led to
    /// others, a bundle of all of them.
    pub text: String,
}

/// Without the text: it may hold addresses that count as secrets.
impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("config", &self.config).field("warnings", &self.warnings).finish_non_exhaustive()
    }
}

/// One reason why a configuration cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    #[error("{path}: cannot be read: {why}")]
    Unreadable { path: String, why: std::io::ErrorKind },
    #[error("{path}: is not a regular file")]
    NotAFile { path: String },
    #[error("{path}: is longer than 4 MiB")]
    TooLarge { path: String },
    #[error("{path}: is not UTF-8 text")]
    NotText { path: String },
    #[error("{file}: keys_from: the pattern `{pattern}` is malformed: {why}")]
    Pattern { file: String, pattern: String, why: &'static str },
    #[error("{file}: keys_from: the patterns lead to more than {MOST_FILES} files")]
    TooMany { file: String },
    #[error("{path}: keys_from reads only files that end in .toml or .csv")]
    Extension { path: String },
    #[error("{path}:1:1: {why}")]
    Header { path: String, why: String },
    #[error("the stored configuration is damaged")]
    Bundle,
    #[error("{0}")]
    Config(ConfigError),
}

/// Everything that was found wrong, one line each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadError {
    pub faults: Vec<Fault>,
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for LoadError {}

/// Reads and checks a configuration file with all that it names.
///
/// # Errors
/// Everything found wrong.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let name = path.to_string_lossy().into_owned();
    let text = read(path).map_err(|fault| LoadError { faults: vec![fault] })?;
    // Without a working folder a relative path stays as it is, which is what the caller wrote.
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let base_dir = absolute.parent().unwrap_or_else(|| Path::new("")).to_string_lossy().into_owned();
    from_text(&text, &name, &base_dir)
}

/// Folder of the control socket that a file names although it cannot be used otherwise: with a mistake
/// in the file an operator must reach the running daemon all the same. Nothing if it is not TOML.
#[must_use]
pub fn run_dir(path: &Path) -> Option<PathBuf> {
    let table: toml::Table = read(path).ok()?.parse().ok()?;
    let named = match table.get("server").and_then(|server| server.get("run_dir")) {
        Some(named) => named.as_str()?,
        None => "run",
    };
    Some(std::path::absolute(path).ok()?.parent()?.join(named))
}

/// Checks a configuration from its text. A bundle of [`Loaded::text`] stands for itself; the files
/// that a plain text names are read.
///
/// # Errors
/// Everything found wrong.
pub fn from_text(text: &str, file: &str, base_dir: &str) -> Result<Loaded, LoadError> {
    let mut faults = Vec::new();
    let mut warnings = Vec::new();
    // A file of features, if there is one, is the first.
    let (main, features, files) = match text.strip_prefix(BUNDLE) {
        Some(rest) => {
            let (main, files) = unbundle(rest).ok_or(LoadError { faults: vec![Fault::Bundle] })?;
            (main.clone(), usize::from(check::features_from(&main).is_some()), files)
        }
        None => {
            let mut files = features_file(text, base_dir, &mut faults);
            let features = files.len();
            files.extend(keys_from_files(text, file, base_dir, &mut faults, &mut warnings));
            (text.to_owned(), features, files)
        }
    };
    let mut keys_files = Vec::new();
    for (index, (name, text)) in files.iter().enumerate() {
        if index < features {
            keys_files.push(KeysFile { name: name.clone(), rows: Rows::Features(text.clone()) });
            continue;
        }
        match keys_file(name, text) {
            Ok(keys_file) => keys_files.push(keys_file),
            Err(fault) => faults.push(fault),
        }
    }
    match check::parse(&main, file, base_dir, &keys_files) {
        Ok((config, found)) if faults.is_empty() => {
            warnings.extend(found.iter().map(ToString::to_string));
            let text = if files.is_empty() { main } else { bundle(&main, &files) };
            Ok(Loaded { config: Arc::new(config), warnings, text })
        }
        Ok(_) => Err(LoadError { faults }),
        Err(errors) => {
            faults.extend(errors.into_iter().map(Fault::Config));
            Err(LoadError { faults })
        }
    }
}

/// Name and text of the file behind `features_from`.
fn features_file(text: &str, base_dir: &str, faults: &mut Vec<Fault>) -> Vec<(String, String)> {
    let Some(named) = check::features_from(text) else { return Vec::new() };
    let path = Path::new(base_dir).join(named);
    match read(&path) {
        Ok(text) => vec![(path.to_string_lossy().into_owned(), text)],
        Err(fault) => {
            faults.push(fault);
            Vec::new()
        }
    }
}

/// Names and texts of the files behind `[[keys_from]]`, sorted within each pattern, each once.
fn keys_from_files(text: &str, file: &str, base_dir: &str, faults: &mut Vec<Fault>, warnings: &mut Vec<String>) -> Vec<(String, String)> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for pattern in check::keys_from(text) {
        let whole = match Path::new(&pattern).is_absolute() {
            true => pattern.clone(),
            false => format!("{}/{pattern}", glob::Pattern::escape(base_dir)),
        };
        let mut found: Vec<PathBuf> = match glob::glob(&whole) {
            Ok(found) => found.filter_map(Result::ok).filter(|path| !path.is_dir()).collect(),
            Err(why) => {
                faults.push(Fault::Pattern { file: file.to_owned(), pattern: pattern.clone(), why: why.msg });
                continue;
            }
        };
        if found.is_empty() && !pattern.contains(['*', '?', '[']) {
            faults.push(Fault::Unreadable { path: pattern, why: std::io::ErrorKind::NotFound });
            continue;
        }
        if found.is_empty() {
            warnings.push(format!("{file}: keys_from: the pattern `{pattern}` leads to no file"));
        }
        found.sort();
        for path in found {
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        if paths.len() > MOST_FILES {
            faults.push(Fault::TooMany { file: file.to_owned() });
            return Vec::new();
        }
    }
    let mut files = Vec::new();
    for path in paths {
        match read(&path) {
            Ok(text) => files.push((path.to_string_lossy().into_owned(), text)),
            Err(fault) => faults.push(fault),
        }
    }
    files
}

fn read(path: &Path) -> Result<String, Fault> {
    let name = || path.to_string_lossy().into_owned();
    let unreadable = |why: std::io::Error| Fault::Unreadable { path: name(), why: why.kind() };
    // A pipe in the place of a file would hold the start for ever.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(Fault::NotAFile { path: name() });
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(MOST_BYTES.saturating_add(1)).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(Fault::TooLarge { path: name() });
    }
    let text = String::from_utf8(bytes).map_err(|_| Fault::NotText { path: name() })?;
    Ok(text.strip_prefix('\u{feff}').map_or_else(|| text.clone(), str::to_owned))
}

fn keys_file(name: &str, text: &str) -> Result<KeysFile, Fault> {
    let extension = Path::new(name).extension().map(|e| e.to_ascii_lowercase());
    let rows = match extension.as_ref().and_then(|e| e.to_str()) {
        Some("toml") => Rows::Toml(text.to_owned()),
        Some("csv") => Rows::Table(csv_rows(name, text)?),
        Some(_) | None => return Err(Fault::Extension { path: name.to_owned() }),
    };
    Ok(KeysFile { name: name.to_owned(), rows })
}

const COLUMNS: [&str; 6] = ["id", "provider", "key", "workspaces", "policy", "owner"];

/// Rows of a CSV text with a header line. A row that does not fit the header is kept with its fault.
fn csv_rows(name: &str, text: &str) -> Result<Vec<Row>, Fault> {
    let header_fault = |why: String| Fault::Header { path: name.to_owned(), why };
    let mut reader = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(text.as_bytes());
    let header = reader.headers().map_err(|_| header_fault("the header line cannot be read".to_owned()))?.clone();
    for column in ["id", "provider", "key"] {
        if !header.iter().any(|found| found == column) {
            return Err(header_fault(format!("the header line lacks the column `{column}`; allowed are: {}", COLUMNS.join(", "))));
        }
    }
    for (index, column) in header.iter().enumerate() {
        if !COLUMNS.contains(&column) {
            return Err(header_fault(format!("unknown column {}, expected one of: {}", column.escape_debug(), COLUMNS.join(", "))));
        }
        if header.iter().take(index).any(|earlier| earlier == column) {
            return Err(header_fault(format!("the column {column} is there twice")));
        }
    }
    let mut rows = Vec::new();
    for record in reader.records() {
        // The text is UTF-8 and rows may have any length, so no record can fail to be read.
        let Ok(record) = record else { continue };
        let line = record.position().map_or(1, |at| usize::try_from(at.line()).unwrap_or(1));
        let fault = (record.len() != header.len())
            .then(|| format!("{name}:{line}: the row has {} fields and the header line {}", record.len(), header.len()));
        rows.push(Row { line, key: csv_key(&header, &record), fault });
    }
    Ok(rows)
}

fn csv_key(header: &csv::StringRecord, record: &csv::StringRecord) -> super::raw::Key {
    let text = |column: &str| header.iter().position(|found| found == column).and_then(|index| record.get(index)).unwrap_or("");
    let some = |column: &str| Some(text(column).to_owned()).filter(|found| !found.is_empty());
    super::raw::Key {
        id: text("id").to_owned(),
        provider: text("provider").to_owned(),
        key: text("key").to_owned(),
        workspaces: text("workspaces").split(';').map(str::trim).filter(|w| !w.is_empty()).map(str::to_owned).collect(),
        policy: some("policy"),
        owner: some("owner"),
        ..super::raw::Key::default()
    }
}

/// The texts one after the other, each with its length before it.
fn bundle(main: &str, files: &[(String, String)]) -> String {
    let mut out = BUNDLE.to_owned();
    for (name, text) in std::iter::once(("", main)).chain(files.iter().map(|(name, text)| (name.as_str(), text.as_str()))) {
        out.push_str(&format!("#!part {} {}\n", name.len(), text.len()));
        out.push_str(name);
        out.push('\n');
        out.push_str(text);
        out.push('\n');
    }
    out
}

fn unbundle(mut rest: &str) -> Option<(String, Vec<(String, String)>)> {
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let (head, after) = rest.strip_prefix("#!part ")?.split_once('\n')?;
        let (name_length, text_length) = head.split_once(' ')?;
        let (name, after) = after.split_at_checked(name_length.parse().ok()?)?;
        let (text, after) = after.strip_prefix('\n')?.split_at_checked(text_length.parse().ok()?)?;
        parts.push((name.to_owned(), text.to_owned()));
        rest = after.strip_prefix('\n')?;
    }
    if parts.is_empty() {
        return None;
    }
    let main = parts.remove(0).1;
    Some((main, parts))
}
