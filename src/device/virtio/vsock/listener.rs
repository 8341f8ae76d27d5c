//! The Unix sockets of the host: the listening socket of the device, and connections to the sockets of host programs.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::device::virtio::HostError;
use crate::sys::os_error;

/// Maximum length of the path: a socket address has 108 bytes, of which one is the terminator and up to 11 are `_PORT`.
const MAX_PATH_LEN: usize = 108 - 1 - 11;

/// A listening socket. Its file is removed on drop.
#[derive(Debug)]
pub struct UdsListener {
    pub(super) socket: UnixListener,
    path: PathBuf,
    file_id: (u64, u64), // device and inode
}

impl UdsListener {
    /// Listens at `path`. Replaces a socket that a program has left behind.
    ///
    /// # Errors
    ///
    /// The path is too long, it is the path of another file or of a socket in use, or a system call failed.
    pub fn bind(path: &Path) -> Result<Self, HostError> {
        let host = |error| HostError(os_error::describe(&error));
        let refuse = |why: &str| Err(HostError(why.to_owned()));
        if path.as_os_str().len() > MAX_PATH_LEN {
            return refuse(&format!("the path is too long; use one of at most {MAX_PATH_LEN} bytes"));
        }
        if let Ok(found) = fs::symlink_metadata(path) {
            if !found.file_type().is_socket() {
                return refuse("the file exists and is not a socket; remove it or use another path");
            }
            match connect_to(path).map_err(|error| (error.kind(), error)) {
                Err((io::ErrorKind::ConnectionRefused, _)) => fs::remove_file(path).map_err(host)?,
                Err((io::ErrorKind::NotFound, _)) => {} // removed meanwhile
                Err((io::ErrorKind::PermissionDenied, _)) => {
                    let remedy = "remove it if it is unused, or use another path";
                    return refuse(&format!("no permission to connect to the existing socket; {remedy}"));
                }
                Err((_, error)) if is_out_of_descriptors(&error) => return Err(host(error)),
                _ => return refuse("another program listens on it; use another path"), // perhaps its backlog is full
            }
        }
        let socket = UnixListener::bind(path).map_err(host)?;
        socket.set_nonblocking(true).map_err(host)?;
        let file = fs::symlink_metadata(path).map_err(host)?;
        Ok(Self { socket, path: path.to_owned(), file_id: (file.dev(), file.ino()) })
    }

    /// Accepts a connection. The stream is non-blocking.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is no connection to accept, or the error of accept(2).
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.socket.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// Connects to the host program that listens for `port` of the host. The stream is non-blocking.
    ///
    /// # Errors
    ///
    /// No program listens, its backlog is full (`WouldBlock`), or there are too many open files.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        connect_to(Path::new(&path))
    }
}

/// Connects without blocking; `UnixStream::connect` blocks while the listener's backlog is full.
fn connect_to(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// Whether the process or the system has too many open files.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

impl Drop for UdsListener {
    fn drop(&mut self) {
        // Another program may have replaced the file.
        if fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.file_id) {
            let _ = fs::remove_file(&self.path); // `drop` cannot report an error
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

    fn refusal(path: &Path) -> String {
        UdsListener::bind(path).unwrap_err().to_string()
    }

    #[test]
    fn a_stale_socket_is_replaced_and_one_in_use_is_not() {
        let dir = Dir::new("stale");
        let path = dir.0.join("socket");
        drop(UnixListener::bind(&path).unwrap()); // leaves the file behind
        let listener = UdsListener::bind(&path).unwrap();
        assert_eq!(refusal(&path), "another program listens on it; use another path");
        assert!(listener.accept().is_ok(), "`bind` has tried to connect");
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_not_a_socket_is_kept() {
        let dir = Dir::new("file");
        let path = dir.0.join("socket");
        fs::write(&path, "precious").unwrap();
        assert!(refusal(&path).starts_with("the file exists and is not a socket"));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_file_that_has_replaced_the_socket_is_kept() {
        let dir = Dir::new("other");
        let path = dir.0.join("socket");
        let listener = UdsListener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "new").unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn the_longest_path_leaves_space_for_every_port() {
        let dir = Dir::new("long");
        let name = |len: usize| dir.0.join("x".repeat(len - dir.0.as_os_str().len() - 1));
        let longest = UdsListener::bind(&name(MAX_PATH_LEN)).unwrap();
        let mut peer = name(MAX_PATH_LEN).into_os_string();
        peer.push("_4294967295");
        let peer = UnixListener::bind(peer).unwrap();
        longest.connect(u32::MAX).unwrap();
        peer.accept().unwrap();
        assert!(refusal(&name(MAX_PATH_LEN + 1)).starts_with("the path is too long"));
        let missing = longest.connect(1).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
