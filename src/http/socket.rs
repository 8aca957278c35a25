//! outside
//! The control socket of the command line: a unix socket that the owner and its group may open.
//! A leftover of a dead daemon is replaced; that of a living one is never touched.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// Name of the socket in `run_dir`.
pub const NAME: &str = "control.sock";

/// Why the control socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketFault {
    #[error("another daemon listens on {}", .0.display())]
    InUse(PathBuf),
    #[error("{} is there and is not a socket", .0.display())]
    NotASocket(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A bound control socket; the file goes away with it.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl ControlSocket {
    /// Binds `run_dir/control.sock` with mode 0660; makes `run_dir` (0750) if it is missing.
    ///
    /// # Errors
    /// If another daemon listens there, something else than a socket is in the way, or the system
    /// refuses; the error names the path.
    pub fn bind(run_dir: &Path) -> Result<Self, SocketFault> {
        let path = run_dir.join(NAME);
        let io = |source| SocketFault::Io { path: path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o750).create(run_dir).map_err(io)?;
        clear(&path)?;
        // Bound beside and moved into place, so that it is never there with wider rights or without
        // anybody listening.
        let beside = run_dir.join(format!(".{}", std::process::id()));
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(io(error)),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&beside).map_err(io)?;
        let placed = fs::set_permissions(&beside, Permissions::from_mode(0o660))
            .and_then(|()| fs::rename(&beside, &path))
            .and_then(|()| fs::symlink_metadata(&path));
        match placed {
            Ok(metadata) => Ok(Self { listener, path, inode: metadata.ino() }),
            Err(source) => {
                let _ = fs::remove_file(&beside);
                Err(SocketFault::Io { path, source })
            }
        }
    }

    #[must_use]
    pub const fn listener(&self) -> &UnixListener {
        &self.listener
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Removes the file, unless another daemon has put its own there since.
impl Drop for ControlSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes room: nothing is there, or a socket on which nobody listens.
fn clear(path: &Path) -> Result<(), SocketFault> {
    let io = |source| SocketFault::Io { path: path.to_owned(), source };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketFault::NotASocket(path.to_owned()));
    }
    match StdStream::connect(path) {
        Ok(_) => Err(SocketFault::InUse(path.to_owned())),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(io),
        Err(error) => Err(io(error)),
    }
}
