//! A FUSE server for one file, which can be slow or stop answering (fuse(4), linux/fuse.h).

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The size of the file.
pub const SIZE: usize = 16 << 20;

const NAME: &[u8] = b"disk\0";
const ROOT: u64 = 1;
const FILE: u64 = 2;

/// A file system with the file `disk`. It is unmounted, and all requests fail, when this is dropped.
pub struct Fuse {
    directory: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    silent: AtomicBool,
    unanswered: AtomicU32,
    delay: AtomicU64, // milliseconds
    content: Mutex<Vec<u8>>,
}

impl Fuse {
    /// Mounts the file system on an empty directory.
    pub fn mount(directory: &Path) -> Result<Self, String> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let device = device.map_err(|error| format!("/dev/fuse: {error}"))?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("kickvm-test"), directory, Some("fuse"), flags, Some(options.as_str()))
            .map_err(|error| format!("cannot mount a FUSE file system: {error}"))?;
        let shared = Arc::new(Shared { content: Mutex::new(vec![0; SIZE]), ..Shared::default() });
        let server = shared.clone();
        let thread = Some(thread::spawn(move || serve(device, &server)));
        Ok(Self { directory: directory.to_owned(), shared, thread })
    }

    pub fn file(&self) -> PathBuf {
        self.directory.join("disk")
    }

    /// Reads requests from now on, but answers none.
    pub fn stop_answering(&self) {
        self.shared.silent.store(true, Ordering::SeqCst);
    }

    /// Delays the answer of each read and write from now on.
    pub fn slow_down(&self, delay: Duration) {
        self.shared.delay.store(delay.as_millis().try_into().unwrap(), Ordering::SeqCst);
    }

    /// The number of requests that were read but not answered.
    pub fn unanswered(&self) -> u32 {
        self.shared.unanswered.load(Ordering::SeqCst)
    }

    pub fn content(&self) -> Vec<u8> {
        self.shared.content.lock().unwrap().clone()
    }

    /// Ends the server: all requests fail, also those that were not answered.
    pub fn abort(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.abort();
        let _ = self.thread.take().map(JoinHandle::join);
        let _ = umount2(&self.directory, MntFlags::MNT_DETACH);
    }
}

fn serve(mut device: File, shared: &Shared) {
    let mut buffer = vec![0; 1 << 18];
    while !shared.stop.load(Ordering::SeqCst) {
        let ready = poll(&mut [PollFd::new(device.as_fd(), PollFlags::POLLIN)], PollTimeout::from(10u16)).unwrap();
        if ready == 0 {
            continue;
        }
        let Ok(len) = device.read(&mut buffer) else { return }; // unmounted
        if shared.silent.load(Ordering::SeqCst) {
            shared.unanswered.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let unique = &buffer[8..16];
        if let Some(answer) = answer(&buffer[..len], shared) {
            let (error, body) = match answer {
                Ok(body) => (0, body),
                Err(error) => (-error, Vec::new()),
            };
            let len = 16 + body.len();
            let reply = [&len.to_le_bytes()[..4], &error.to_le_bytes(), unique, &body].concat();
            let _ = device.write(&reply); // the request may have been interrupted
        }
    }
}

/// The answer to a request; none for those that have none.
fn answer(request: &[u8], shared: &Shared) -> Option<Result<Vec<u8>, i32>> {
    let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
    let long = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().unwrap());
    let (opcode, node) = (word(4), long(16));
    if matches!(opcode, 15 | 16) {
        thread::sleep(Duration::from_millis(shared.delay.load(Ordering::SeqCst)));
    }
    Some(Ok(match opcode {
        2 | 36 | 42 => return None, // FORGET, INTERRUPT, BATCH_FORGET
        // LOOKUP: node, generation, how long name and attributes are valid, and attributes
        1 if request[40..] == *NAME => {
            [&FILE.to_le_bytes()[..], &[0; 8], &60u64.to_le_bytes(), &60u64.to_le_bytes(), &[0; 8], &attributes(FILE)]
                .concat()
        }
        1 => return Some(Err(libc::ENOENT)),
        3 => [&60u64.to_le_bytes()[..], &[0; 8], &attributes(node)].concat(), // GETATTR
        14 => [&[0; 8][..], &1u32.to_le_bytes(), &[0; 4]].concat(), // OPEN: bypass the page cache (FOPEN_DIRECT_IO)
        27 => vec![0; 16],                                          // OPENDIR
        15 => {
            let start = usize::try_from(long(48)).unwrap().min(SIZE);
            let end = (start + word(56) as usize).min(SIZE);
            shared.content.lock().unwrap()[start..end].to_vec()
        }
        16 => {
            let (start, len) = (usize::try_from(long(48)).unwrap(), word(56) as usize);
            shared.content.lock().unwrap()[start..start + len].copy_from_slice(&request[80..80 + len]);
            len.to_le_bytes().to_vec()
        }
        18 | 20 | 25 | 29 => Vec::new(), // RELEASE, FSYNC, FLUSH, RELEASEDIR
        // INIT: version 7.31, no flags, the largest write
        26 => {
            let mut body = vec![0; 64];
            body[..4].copy_from_slice(&7u32.to_le_bytes());
            body[4..8].copy_from_slice(&31u32.to_le_bytes());
            body[20..24].copy_from_slice(&(128u32 << 10).to_le_bytes());
            body
        }
        _ => return Some(Err(libc::ENOSYS)),
    }))
}

fn attributes(node: u64) -> Vec<u8> {
    let (mode, size) = if node == ROOT { (libc::S_IFDIR | 0o755, 0) } else { (libc::S_IFREG | 0o644, SIZE as u64) };
    let mut attributes = vec![0; 88];
    attributes[..8].copy_from_slice(&node.to_le_bytes());
    attributes[8..16].copy_from_slice(&size.to_le_bytes());
    attributes[60..64].copy_from_slice(&mode.to_le_bytes());
    attributes[64..68].copy_from_slice(&1u32.to_le_bytes()); // links
    attributes[80..84].copy_from_slice(&4096u32.to_le_bytes()); // block size
    attributes
}
