//! Why kickvm could not do what it was asked for.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::boot;
use crate::device::virtio::block::DiskError;
use crate::device::virtio::net::tap::TapError;
use crate::device::virtio::vsock::ListenError;
use crate::event;
use crate::sys::os_error;

/// Everything that can go wrong with kickvm itself; how a guest ends is not an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/kvm` cannot be opened.
    #[error("cannot open /dev/kvm: {}{}", os_error::describe(.0), hint(.0))]
    OpenKvm(io::Error),
    /// `/dev/kvm` is not KVM, or not one that this program knows.
    #[error("/dev/kvm has API version {0}, but 12 is needed: it is not the KVM device, or not of a Linux since 2.6.22")]
    ApiVersion(i32),
    /// KVM lacks something.
    #[error("this host's KVM cannot {0}: a newer Linux is needed")]
    Capability(&'static str),
    /// KVM refused something.
    #[error("cannot {action}: {}", os_error::describe(.source))]
    Kvm {
        /// What it refused.
        action: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
    /// More vCPUs than there can be, or none.
    #[error("cannot have {asked} vCPUs: this host's KVM allows 1 to {limit}")]
    Cpus {
        /// Number asked for.
        asked: u8,
        /// Number allowed.
        limit: usize,
    },
    /// Guest memory cannot be had.
    #[error("cannot have {size} of guest memory: {why}")]
    Memory {
        /// ByteSize asked for.
        size: boot::ByteSize,
        /// Why not.
        why: String,
    },
    /// A kernel or initramfs cannot be loaded.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// The console's file cannot be opened.
    #[error("cannot open console file '{path}': {}{}", os_error::describe(.source), nobody_reads(path, .source))]
    ConsoleFile {
        /// As the user wrote it.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A rule for the console is none.
    #[error("{0}")]
    Rule(String),
    /// A tap interface cannot be used.
    #[error("cannot use tap interface '{tap}': {source}")]
    Tap {
        /// Its name.
        tap: String,
        /// Why not.
        source: TapError,
    },
    /// The host's end of the socket device cannot be made.
    #[error("cannot listen at vsock socket '{path}': {source}")]
    Vsock {
        /// As the user wrote it.
        path: PathBuf,
        /// Why not.
        source: ListenError,
    },
    /// The event loop cannot be set up.
    #[error("cannot set up the event loop: {}", os_error::describe(&(*.0).into()))]
    Event(#[from] event::Error),
    /// The host is out of something.
    #[error("cannot {action}: {}", os_error::describe(.source))]
    Host {
        /// What could not be done.
        action: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A balloon as large as the guest.
    #[error("cannot have a balloon of {size}: it must be smaller than the guest's memory, {memory}")]
    Balloon {
        /// ByteSize asked for.
        size: boot::ByteSize,
        /// The guest's memory.
        memory: boot::ByteSize,
    },
    /// More virtio devices than there are interrupts for.
    #[error("a machine has {0} virtio devices at most (disks, network interfaces, vsock, rng, console and balloon)")]
    TooManyDevices(usize),
    /// Threads that do not end.
    #[error("vCPU {0} did not stop within a second")]
    Stuck(String),
}

impl Error {
    /// For `map_err`: KVM refused `action`.
    pub(crate) fn kvm<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Kvm { action, source: source.into() }
    }

    /// For `map_err`: the host refused `action`.
    pub(crate) fn host<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host { action, source: source.into() }
    }
}

/// What it means that a FIFO cannot be opened (fifo(7)).
fn nobody_reads(path: &Path, error: &io::Error) -> &'static str {
    let no_reader = error.raw_os_error() == Some(libc::ENXIO);
    let fifo = no_reader && fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo());
    if fifo { "; nobody reads from it" } else { "" }
}

/// What mends a /dev/kvm that cannot be opened.
pub(crate) fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "; load KVM with 'sudo modprobe -a kvm_intel kvm_amd', and switch virtualization on in the firmware"
        }
        io::ErrorKind::PermissionDenied => "; join its group with 'sudo usermod -aG kvm $USER' and log in again",
        _ => "",
    }
}
