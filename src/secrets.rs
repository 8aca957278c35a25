//! outside
//! Resolves secret references from the environment, files and systemd credentials. An error names the
//! missing variable, file or credential; the value never reaches a log, an error or `Debug`.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::config::values::{self, BadText};
use crate::config::{SecretRef, UrlRef};

/// A secret is a line of text, never a large file.
const MOST_BYTES: u64 = 64 * 1024;

/// A secret value: wiped when dropped, hidden in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
    /// The value itself, for the one call that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// Why a secret is not to be had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SecretError {
    #[error("{place} is missing")]
    Missing { place: String },
    #[error("{place} is empty")]
    Empty { place: String },
    #[error("{place} is not UTF-8 text")]
    NotText { place: String },
    #[error("{place} is longer than 65536 bytes")]
    TooLarge { place: String },
    #[error("{place} cannot be read: {why}")]
    Unreadable { place: String, why: std::io::ErrorKind },
    #[error("{place}: {why}")]
    Malformed { place: String, why: BadText },
    #[error("CREDENTIALS_DIRECTORY is not set, so {place} cannot be found; the unit needs LoadCredential")]
    NoCredentials { place: String },
}

/// Resolves a reference in the environment of this process.
///
/// # Errors
/// If the variable, file or credential is missing, unreadable, empty or no text.
pub fn resolve(secret: &SecretRef) -> Result<Secret, SecretError> {
    resolve_with(secret, &|name| std::env::var_os(name))
}

/// Resolves a reference; `variable` looks variables up.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_with(secret: &SecretRef, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Secret, SecretError> {
    let place = place_of(secret);
    match secret {
        SecretRef::Env(name) => {
            let value = variable(name).ok_or_else(|| SecretError::Missing { place: place.clone() })?;
            let text = value.into_string().map(Zeroizing::new).map_err(|bytes| {
                drop(Zeroizing::new(bytes.into_encoded_bytes()));
                SecretError::NotText { place: place.clone() }
            })?;
            trimmed(&text, place)
        }
        SecretRef::File(path) => read(Path::new(path), place),
        SecretRef::Credential(name) => {
            let folder = variable("CREDENTIALS_DIRECTORY").ok_or_else(|| SecretError::NoCredentials { place: place.clone() })?;
            read(&PathBuf::from(folder).join(name), place)
        }
    }
}

/// Resolves an address and checks it: `http(s)` only, no user part.
///
/// # Errors
/// As [`resolve`], or if what the reference led to is no such address.
pub fn resolve_url(url: &UrlRef) -> Result<Secret, SecretError> {
    resolve_url_with(url, &|name| std::env::var_os(name))
}

/// Resolves an address; `variable` looks variables up.
///
/// # Errors
/// As [`resolve_url`].
pub fn resolve_url_with(url: &UrlRef, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Secret, SecretError> {
    match url {
        UrlRef::Plain(text) => Ok(Secret::new(text.clone())),
        UrlRef::Secret(secret) => {
            let found = resolve_with(secret, variable)?;
            match values::authority(found.expose(), &["http", "https"], "http://, https://") {
                Ok(_) => Ok(found),
                Err(why) => Err(SecretError::Malformed { place: place_of(secret), why }),
            }
        }
    }
}

/// Resolves a text that may be a reference or plain, such as the external id of a role.
///
/// # Errors
/// As [`resolve`], or if it begins like a reference and is none.
pub fn resolve_text(text: &str) -> Result<Secret, SecretError> {
    match text.split_once(':') {
        Some(("env" | "file" | "credential", _)) => match values::secret_ref(text, "") {
            Ok(secret) => resolve(&secret),
            Err(why) => Err(SecretError::Malformed { place: "secret reference".to_owned(), why }),
        },
        Some(_) | None => Ok(Secret::new(text.to_owned())),
    }
}

fn place_of(secret: &SecretRef) -> String {
    match secret {
        SecretRef::Env(name) => format!("variable {name}"),
        SecretRef::File(path) => format!("file {path}"),
        SecretRef::Credential(name) => format!("credential {name}"),
    }
}

fn read(path: &Path, place: String) -> Result<Secret, SecretError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    let opened = std::fs::File::open(path).and_then(|file| file.take(MOST_BYTES.saturating_add(1)).read_to_end(&mut bytes));
    match opened {
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Err(SecretError::Missing { place }),
        Err(why) => return Err(SecretError::Unreadable { place, why: why.kind() }),
        Ok(length) if length as u64 > MOST_BYTES => return Err(SecretError::TooLarge { place }),
        Ok(_) => {}
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => trimmed(text, place),
        Err(_) => Err(SecretError::NotText { place }),
    }
}

/// Without line breaks at the end, which editors and `echo` add.
fn trimmed(text: &str, place: String) -> Result<Secret, SecretError> {
    let text = text.trim_end_matches(['\n', '\r']);
    if text.is_empty() { Err(SecretError::Empty { place }) } else { Ok(Secret::new(text.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    fn env(name: &str) -> Option<OsString> {
        match name {
            "GOOD" => Some("hunter2\n".into()),
            "EMPTY" => Some("\n".into()),
            "BYTES" => Some(OsString::from_vec(vec![0xff, 0xfe])),
            "URL" => Some("https://hooks.example.com/T0/hunter2".into()),
            "BAD_URL" => Some("https://u:hunter2@example.com/".into()),
            _ => None,
        }
    }

    fn secret(kind: SecretRef) -> Result<String, String> {
        resolve_with(&kind, &env).map(|s| s.expose().to_owned()).map_err(|e| e.to_string())
    }

    #[test]
    fn variables_are_read_and_a_missing_one_is_named() {
        assert_eq!(secret(SecretRef::Env("GOOD".into())), Ok("hunter2".into()));
        assert_eq!(secret(SecretRef::Env("NONE".into())), Err("variable NONE is missing".into()));
        assert_eq!(secret(SecretRef::Env("EMPTY".into())), Err("variable EMPTY is empty".into()));
        assert_eq!(secret(SecretRef::Env("BYTES".into())), Err("variable BYTES is not UTF-8 text".into()));
    }

    #[test]
    fn files_and_credentials_are_read_and_trimmed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        std::fs::write(at("token"), "hunter2\r\n").unwrap();
        std::fs::write(at("large"), vec![b'x'; 70_000]).unwrap();
        std::fs::write(at("bytes"), [0xff, 0xfe]).unwrap();
        assert_eq!(secret(SecretRef::File(at("token"))), Ok("hunter2".into()));
        assert_eq!(secret(SecretRef::File(at("none"))), Err(format!("file {} is missing", at("none"))));
        assert_eq!(secret(SecretRef::File(at("large"))), Err(format!("file {} is longer than 65536 bytes", at("large"))));
        assert_eq!(secret(SecretRef::File(at("bytes"))), Err(format!("file {} is not UTF-8 text", at("bytes"))));
        assert_eq!(secret(SecretRef::File(at(""))), Err(format!("file {} cannot be read: is a directory", at(""))));
        let folder_of = |name: &str| (name == "CREDENTIALS_DIRECTORY").then(|| folder.path().as_os_str().to_owned());
        let credential = SecretRef::Credential("token".into());
        assert_eq!(resolve_with(&credential, &folder_of).unwrap().expose(), "hunter2");
        assert!(matches!(resolve_with(&credential, &env), Err(SecretError::NoCredentials { .. })));
        assert_eq!(resolve_with(&SecretRef::Credential("none".into()), &folder_of).unwrap_err().to_string(), "credential none is missing");
    }

    #[test]
    fn an_address_behind_a_reference_is_checked_and_not_shown() {
        let url = |name: &str| resolve_url_with(&UrlRef::Secret(SecretRef::Env(name.into())), &env);
        assert_eq!(url("URL").unwrap().expose(), "https://hooks.example.com/T0/hunter2");
        for name in ["BAD_URL", "GOOD"] {
            let error = url(name).unwrap_err();
            assert!(error.to_string().starts_with(&format!("variable {name}: ")), "{error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
        assert_eq!(resolve_url(&UrlRef::Plain("http://h".into())).unwrap().expose(), "http://h");
    }

    #[test]
    fn a_plain_text_stays_and_a_malformed_reference_is_refused() {
        assert_eq!(resolve_text("ext-1234").unwrap().expose(), "ext-1234");
        assert!(resolve_text("env:NOT A NAME").is_err());
    }

    #[test]
    fn debug_hides_the_value() {
        assert_eq!(format!("{:?}", Secret::new("hunter2".into())), "(secret)");
    }
}
