//! outside
//! The key file on disk: read whole, replaced whole, changed by one writer at a time. A reader sees
//! the old file or the new one, never a mixture; a file that does not parse is never guessed at.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use zeroize::Zeroizing;

use super::rows::{Book, FORMAT, StandingWord};
use crate::key::{BadName, KeyRef, KeyVersion};
use crate::time::Wall;
use crate::words::ProviderKind;

/// Upper bound of the file, in bytes; some 100,000 keys.
const MAX_BYTES: u64 = 64 << 20;

/// Why the key file could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum LocalKmsError {
    #[error("local key file {} does not exist", path.display())]
    Missing { path: PathBuf },
    #[error("cannot {act} local key file {}: {source}", path.display())]
    Io { path: PathBuf, act: &'static str, source: io::Error },
    /// The text of the parser is left out: it may quote key material.
    #[error("local key file {} is torn or damaged at line {line}, column {column}", path.display())]
    Damaged { path: PathBuf, line: usize, column: usize },
    #[error("local key file {} has format {found}; this build reads format {FORMAT}", path.display())]
    Format { path: PathBuf, found: u32 },
    #[error("local key file {} would have more than {MAX_BYTES} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("local key file {}: there is no key `{key}`", path.display())]
    UnknownKey { path: PathBuf, key: String },
    #[error("local key file {}: key `{key}` exists already", path.display())]
    KeyExists { path: PathBuf, key: String },
    #[error("local key file {}: key `{key}` has no version `{version}`", path.display())]
    UnknownVersion { path: PathBuf, key: String, version: KeyVersion },
    #[error("local key file {}: cannot {act} key `{key}` while it is {standing}", path.display())]
    Standing { path: PathBuf, key: String, act: &'static str, standing: StandingWord },
    #[error("local key file {}: cannot {act} version `{version}` of key `{key}`: it was destroyed", path.display())]
    VersionDestroyed { path: PathBuf, key: String, act: &'static str, version: KeyVersion },
    #[error("local key file {}: {source}", path.display())]
    Name { path: PathBuf, source: BadName },
    #[error("local key file {}: the system gives no random bytes for key `{key}`", path.display())]
    Random { path: PathBuf, key: String },
}

impl LocalKmsError {
    /// A short code for an answer of the KMS.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "FileMissing",
            Self::Io { .. } => "FileUnreadable",
            Self::Damaged { .. } | Self::Format { .. } | Self::TooLarge { .. } => "FileDamaged",
            Self::UnknownKey { .. }
            | Self::KeyExists { .. }
            | Self::UnknownVersion { .. }
            | Self::Standing { .. }
            | Self::VersionDestroyed { .. }
            | Self::Name { .. }
            | Self::Random { .. } => "Refused",
        }
    }
    fn path(&self) -> &Path {
        match self {
            Self::Missing { path }
            | Self::Io { path, .. }
            | Self::Damaged { path, .. }
            | Self::Format { path, .. }
            | Self::TooLarge { path }
            | Self::UnknownKey { path, .. }
            | Self::KeyExists { path, .. }
            | Self::UnknownVersion { path, .. }
            | Self::Standing { path, .. }
            | Self::VersionDestroyed { path, .. }
            | Self::Name { path, .. }
            | Self::Random { path, .. } => path,
        }
    }
    /// The text with the file's own name in place of its path.
    pub(super) fn without_folder(&self) -> String {
        let name = self.path().file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        self.to_string().replace(&self.path().display().to_string(), &name)
    }
}

/// A handle on the key file; clones share one cache. Every method blocks on the disk.
#[derive(Clone)]
pub struct LocalKmsFile {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    cache: Mutex<Option<Cached>>,
}

struct Cached {
    stamp: Stamp,
    book: Arc<Book>,
    /// Kept open so that its inode number cannot be given to a successor, which would look unchanged.
    _held: File,
}

/// What tells one content of the file from another.
#[derive(PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &std::fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            length: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

impl std::fmt::Debug for LocalKmsFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LocalKmsFile").field(&self.shared.path).finish()
    }
}

impl LocalKmsFile {
    /// A handle on a file that may or may not exist; touches nothing.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self { shared: Arc::new(Shared { path: path.to_owned(), cache: Mutex::new(None) }) }
    }

    /// Creates the file with these keys if it does not exist yet; an existing file is left as it
    /// is, readable or not, so that a damaged one shows in each probe and stops nothing else.
    ///
    /// # Errors
    /// If a name is not that of a local key, or the file cannot be written.
    pub fn open_or_create(path: &Path, names: &[&str], now: Wall) -> Result<Self, LocalKmsError> {
        let file = Self::at(path);
        let exists = || path.try_exists().map_err(|source| file.io("look for", source));
        // Before the lock, so that a folder that we may only read is good enough for reading.
        if exists()? {
            return Ok(file);
        }
        // A first run finds no folder either.
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|source| file.io("make the folder of", source))?;
        }
        let _lock = file.lock()?;
        // And after it: another may have been first.
        if exists()? {
            return Ok(file);
        }
        let mut book = empty();
        for name in names {
            // The same name from two places of a configuration is one key.
            if !book.keys.contains_key(*name) {
                file.add(&mut book, name, now)?;
            }
        }
        file.replace(&book)?;
        Ok(file)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The present content, from memory if the file is unchanged.
    pub(super) fn read(&self) -> Result<Arc<Book>, LocalKmsError> {
        let mut cache = self.shared.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let meta = std::fs::metadata(self.path()).map_err(|source| self.io("read", source))?;
        if let Some(cached) = cache.as_ref().filter(|c| c.stamp == Stamp::of(&meta)) {
            return Ok(Arc::clone(&cached.book));
        }
        let (held, stamp, book) = self.load()?;
        let book = Arc::new(book);
        *cache = Some(Cached { stamp, book: Arc::clone(&book), _held: held });
        Ok(book)
    }

    fn load(&self) -> Result<(File, Stamp, Book), LocalKmsError> {
        let mut file = File::open(self.path()).map_err(|source| self.io("read", source))?;
        let meta = file.metadata().map_err(|source| self.io("read", source))?;
        if meta.len() > MAX_BYTES {
            return Err(LocalKmsError::TooLarge { path: self.path().to_owned() });
        }
        // One byte more than the length, so that reading to the end never moves the buffer and
        // leaves no copy of the material behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0).saturating_add(1)));
        io::Read::by_ref(&mut file).take(MAX_BYTES).read_to_end(&mut bytes).map_err(|source| self.io("read", source))?;
        let book: Book = serde_json::from_slice(&bytes).map_err(|e| self.not_parsed(&bytes, &e))?;
        if book.format != FORMAT {
            return Err(LocalKmsError::Format { path: self.path().to_owned(), found: book.format });
        }
        Ok((file, Stamp::of(&meta), book))
    }

    /// A newer layout is named as such; anything else is damage.
    fn not_parsed(&self, bytes: &[u8], error: &serde_json::Error) -> LocalKmsError {
        #[derive(serde::Deserialize)]
        struct OnlyFormat {
            format: u32,
        }
        match serde_json::from_slice::<OnlyFormat>(bytes) {
            Ok(OnlyFormat { format }) if format != FORMAT => LocalKmsError::Format { path: self.path().to_owned(), found: format },
            Ok(_) | Err(_) => LocalKmsError::Damaged { path: self.path().to_owned(), line: error.line(), column: error.column() },
        }
    }

    /// Changes the file under the lock. Keys whose scheduled time has passed lose their material here.
    pub(super) fn change<T>(
        &self,
        or_new: bool,
        now: Wall,
        act: impl FnOnce(&mut Book) -> Result<T, LocalKmsError>,
    ) -> Result<T, LocalKmsError> {
        let _lock = self.lock()?;
        let mut book = match self.load() {
            Ok((_, _, book)) => book,
            Err(LocalKmsError::Missing { .. }) if or_new => empty(),
            Err(error) => return Err(error),
        };
        for row in book.keys.values_mut() {
            if let super::rows::Standing::Destroyed { at } = row.standing_at(now) {
                row.erase(at);
            }
        }
        let done = act(&mut book)?;
        self.replace(&book)?;
        Ok(done)
    }

    /// Waits for the lock, which is a file of its own: the key file is replaced at each change and
    /// so cannot carry it. The lock goes with the returned file, also when its process dies.
    fn lock(&self) -> Result<File, LocalKmsError> {
        let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(self.beside(".lock"));
        let lock = opened.map_err(|source| self.io("lock", source))?;
        self.same_owner(&lock)?;
        lock.lock().map_err(|source| self.io("lock", source))?;
        Ok(lock)
    }

    /// Puts a new content in place: all of it on disk under another name first, then renamed.
    fn replace(&self, book: &Book) -> Result<(), LocalKmsError> {
        let versions: usize = book.keys.values().map(|row| row.versions.len()).sum();
        let guess = versions.saturating_mul(256).saturating_add(book.keys.len().saturating_mul(512)).saturating_add(1024);
        let mut bytes = Zeroizing::new(Vec::with_capacity(guess));
        serde_json::to_writer_pretty(&mut *bytes, book).map_err(|e| self.io("write", e.into()))?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BYTES {
            return Err(LocalKmsError::TooLarge { path: self.path().to_owned() });
        }
        let fresh = self.beside(".new");
        self.write_fresh(&fresh, &bytes).inspect_err(|_| {
            // What is left of it holds key material.
            let _ = std::fs::remove_file(&fresh);
        })
    }

    fn write_fresh(&self, fresh: &Path, bytes: &[u8]) -> Result<(), LocalKmsError> {
        // A writer that was killed leaves its file behind; we hold the lock, so nobody writes it now.
        match std::fs::remove_file(fresh) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(self.io("write", source)),
            Ok(()) | Err(_) => {}
        }
        let opened = OpenOptions::new().create_new(true).write(true).mode(0o600).open(fresh);
        let mut file = opened.map_err(|source| self.io("write", source))?;
        self.same_owner(&file)?;
        let folder = match self.path().parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        };
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .and_then(|()| std::fs::rename(fresh, self.path()))
            .and_then(|()| File::open(folder)?.sync_all())
            .map_err(|source| self.io("write", source))
    }

    /// Root changing a key at the command line must not take the file away from the daemon's user.
    fn same_owner(&self, file: &File) -> Result<(), LocalKmsError> {
        let Ok(present) = std::fs::metadata(self.path()) else { return Ok(()) };
        let meta = file.metadata().map_err(|source| self.io("write", source))?;
        if (meta.uid(), meta.gid()) == (present.uid(), present.gid()) {
            return Ok(());
        }
        std::os::unix::fs::fchown(file, Some(present.uid()), Some(present.gid())).map_err(|source| self.io("keep the owner of", source))
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.path().as_os_str().to_owned();
        path.push(suffix);
        path.into()
    }

    fn io(&self, act: &'static str, source: io::Error) -> LocalKmsError {
        let path = self.path().to_owned();
        if act == "read" && source.kind() == io::ErrorKind::NotFound {
            return LocalKmsError::Missing { path };
        }
        LocalKmsError::Io { path, act, source }
    }

    /// # Errors
    /// If the text could not be the name of a local key in a configuration.
    pub(super) fn check_name(&self, key: &str) -> Result<(), LocalKmsError> {
        let parsed = KeyRef::parse(ProviderKind::Local, key);
        parsed.map(|_| ()).map_err(|source| LocalKmsError::Name { path: self.path().to_owned(), source })
    }
}

const fn empty() -> Book {
    Book { format: FORMAT, keys: std::collections::BTreeMap::new() }
}
