//! File system device (virtio 1.3, 5.11): a directory of the host that the guest mounts, by the FUSE protocol.
//!
//! ```text
//!   guest driver            process `kickvm-fs`, one per share             host
//!     │ FUSE request ── ioeventfd ──▶ a worker takes it
//!     │                              │ Session::handle ── openat2, preadv … ──▶ files
//!     │ interrupt ◀───── irqfd ──────┘
//! ```
//!
//! The event loop takes no part: the workers wait for the queues' eventfds themselves, and raise the interrupt. File
//! system calls may block, even forever; see [`crate::sys`] on the process. The data of reads and writes move between
//! guest memory and the page cache of the host without another copy.
//!
//! The guest cannot leave the directory: each name is resolved by openat2(2) in one directory without following links
//! (`inodes`), and the guest follows symbolic links itself. Only regular files and directories are opened.
//!
//! `session` has the requests, `names`, `attributes` and `content` what they do; `inodes`, with its `table`, and
//! `handles` are what the guest uses; `protocol` reads and writes messages, and `worker` has the threads.

mod attributes;
mod content;
mod handles;
mod inodes;
mod names;
mod protocol;
mod session;
mod share;
mod table;
#[cfg(test)]
mod tests;
mod worker;

pub use share::Share;
pub use worker::Server;

use super::VirtioDevice;

/// Bytes of a tag.
const TAG: usize = 36;

/// The device of one share. [`Server`] executes the requests.
#[derive(Debug)]
pub struct Fs {
    config: [u8; TAG + 4], // tag, num_request_queues
    in_flight: u32,        // requests that workers execute
    idle: u32,             // workers that wait
}

impl Fs {
    /// A device that the guest mounts by `tag`, of which 36 bytes count.
    pub fn new(tag: &str) -> Self {
        let mut config = [0; TAG + 4];
        config.iter_mut().take(TAG).zip(tag.bytes()).for_each(|(to, byte)| *to = byte);
        config[TAG] = 1;
        Self { config, in_flight: 0, idle: 0 }
    }
}

impl VirtioDevice for Fs {
    const TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_FS;
    /// For requests of high priority (FORGET), and for all others. A request has up to 256 pages.
    const QUEUES: &'static [u16] = &[128, 512];

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn has_workers(&self) -> bool {
        true
    }

    fn has_io_in_flight(&self) -> bool {
        self.in_flight > 0
    }
}
