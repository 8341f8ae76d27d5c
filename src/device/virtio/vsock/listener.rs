//! The Unix sockets on the host: the one by which host programs reach the guest, and those that the guest reaches.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::sys::os_error;

/// The longest path: an address has 108 bytes with a zero at the end, and `_` and a port of ten digits may be added.
const LONGEST: usize = 108 - 1 - 11;

/// A socket that listens, and its file, which is removed when this is dropped.
#[derive(Debug)]
pub struct UdsListener {
    socket: UnixListener,
    path: PathBuf,
    file: (u64, u64), // device and inode
}

/// Why there is no listening at a path.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// An address has no room for it.
    #[error("a socket's path may have {LONGEST} bytes at most")]
    TooLong,
    /// There is a file that is not ours to replace.
    #[error("there is something else than a socket; remove it, or take another path")]
    NotASocket,
    /// There is a socket that may not be connected to.
    #[error("there is a socket that you may not connect to; remove it if nobody uses it, or take another path")]
    Forbidden,
    /// There is one that somebody listens on.
    #[error("another program listens there")]
    Taken,
    /// The kernel refused.
    #[error("{}", os_error::describe(.0))]
    Host(#[source] io::Error),
}

impl UdsListener {
    /// Listens at `path`. A socket that was left there by a program that is gone is replaced.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        if path.as_os_str().len() > LONGEST {
            return Err(ListenError::TooLong);
        }
        if let Ok(found) = fs::symlink_metadata(path) {
            if !found.file_type().is_socket() {
                return Err(ListenError::NotASocket);
            }
            match connect_to(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(ListenError::Host)?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // gone meanwhile
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(ListenError::Forbidden),
                Err(error) if is_out_of_descriptors(&error) => return Err(ListenError::Host(error)),
                _ => return Err(ListenError::Taken), // even if it is too busy to answer
            }
        }
        let socket = UnixListener::bind(path).map_err(ListenError::Host)?;
        socket.set_nonblocking(true).map_err(ListenError::Host)?;
        let file = fs::symlink_metadata(path).map_err(ListenError::Host)?;
        Ok(Self { socket, path: path.to_owned(), file: (file.dev(), file.ino()) })
    }

    /// Takes the next connection, which is non-blocking.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.socket.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// Connects to the program that serves `port` to the guest.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        connect_to(Path::new(&path))
    }
}

/// Connects without waiting, as `UnixStream::connect` does while a listener's backlog is full.
fn connect_to(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// Whether a descriptor could not be had because there are too many.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

impl AsRawFd for UdsListener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for UdsListener {
    fn drop(&mut self) {
        // Somebody may have put another file there.
        if fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.file) {
            let _ = fs::remove_file(&self.path); // there is nobody to tell
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("kickvm-listener-{test}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = Dir::new("stale");
        let path = dir.0.join("socket");
        drop(UnixListener::bind(&path).unwrap()); // the file stays
        let listener = UdsListener::bind(&path).unwrap();
        assert!(matches!(UdsListener::bind(&path), Err(ListenError::Taken)));
        assert!(listener.accept().is_ok(), "that was an attempt to connect");
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_not_a_socket_stays() {
        let dir = Dir::new("file");
        let path = dir.0.join("socket");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(UdsListener::bind(&path), Err(ListenError::NotASocket)));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn what_somebody_else_put_there_stays() {
        let dir = Dir::new("other");
        let path = dir.0.join("socket");
        let listener = UdsListener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "new").unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn a_path_has_room_for_every_port() {
        let dir = Dir::new("long");
        let name = |len: usize| dir.0.join("x".repeat(len - dir.0.as_os_str().len() - 1));
        let longest = UdsListener::bind(&name(LONGEST)).unwrap();
        let mut peer = name(LONGEST).into_os_string();
        peer.push("_4294967295");
        let peer = UnixListener::bind(peer).unwrap();
        longest.connect(u32::MAX).unwrap();
        peer.accept().unwrap();
        assert!(matches!(UdsListener::bind(&name(LONGEST + 1)), Err(ListenError::TooLong)));
        let missing = longest.connect(1).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
