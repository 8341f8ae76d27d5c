//! Errors of the VMM itself.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::boot;
use crate::device::BusError;
use crate::device::virtio::HostError;
use crate::event;
use crate::sys::os_error;

/// An error of the VMM itself. The end of a guest is not an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/kvm` cannot be opened.
    #[error("cannot open /dev/kvm: {}{}", os_error::describe(.0), open_kvm_hint(.0))]
    OpenKvm(io::Error),
    /// `/dev/kvm` is not KVM, or has another API version.
    #[error(
        "/dev/kvm has API version {0}, but 12 is needed: it is not the KVM device, or the host is older than Linux 2.6.22"
    )]
    ApiVersion(i32),
    /// KVM lacks a capability.
    #[error("this host's KVM cannot {0}: a newer Linux is needed")]
    Capability(&'static str),
    /// Too many vCPUs, or none.
    #[error("{requested} vCPUs requested, but this host supports 1 to {limit}")]
    Cpus {
        /// Number requested.
        requested: u8,
        /// Number allowed.
        limit: usize,
    },
    /// Guest memory cannot be allocated.
    #[error("cannot allocate {size} of guest memory: {why}")]
    Memory {
        /// The size requested.
        size: boot::ByteSize,
        /// The cause.
        why: String,
    },
    /// A kernel or initramfs cannot be loaded.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// The console's file cannot be opened.
    #[error("cannot open console file '{path}': {}{}", os_error::describe(.source), no_reader_hint(path, .source))]
    ConsoleFile {
        /// As the user wrote it.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// An `--expect` or `--reject` pattern is not a valid regular expression.
    #[error("{0}")]
    Rule(String),
    /// A tap interface cannot be used.
    #[error("cannot use tap interface '{tap}': {source}")]
    Tap {
        /// Its name.
        tap: String,
        /// The cause.
        source: HostError,
    },
    /// The Unix socket of the vsock device cannot be created.
    #[error("cannot listen at vsock socket '{path}': {source}")]
    Vsock {
        /// As the user wrote it.
        path: PathBuf,
        /// The cause.
        source: HostError,
    },
    /// A directory cannot be shared.
    #[error("cannot share '{path}': {source}")]
    Share {
        /// As the user wrote it.
        path: PathBuf,
        /// The cause.
        source: HostError,
    },
    /// The event loop cannot be set up.
    #[error("cannot set up the event loop: {}", os_error::describe(&(*.0).into()))]
    Event(#[from] event::Error),
    /// A system call failed, of KVM or another.
    #[error("cannot {action}: {}", os_error::describe(.source))]
    Host {
        /// What failed.
        action: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A device cannot be placed on a bus.
    #[error("cannot place a device: {0}")]
    Bus(#[from] BusError),
    /// A disk cannot be used.
    #[error(transparent)]
    Disk(#[from] HostError),
    /// The balloon is as large as the guest's memory.
    #[error("cannot create a balloon of {size}: it must be smaller than the guest's memory, {memory}")]
    Balloon {
        /// The size requested.
        size: boot::ByteSize,
        /// The guest's memory.
        memory: boot::ByteSize,
    },
    /// More virtio devices than interrupts.
    #[error("a VM has at most {0} virtio devices (disks, network interfaces, vsock, shares, rng, console and balloon)")]
    TooManyDevices(usize),
}

impl Error {
    /// For `map_err`: the host, or its KVM, refused `action`.
    pub(crate) fn host<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host { action, source: source.into() }
    }
}

/// The explanation of `ENXIO` for a FIFO (fifo(7)).
fn no_reader_hint(path: &Path, error: &io::Error) -> &'static str {
    let no_reader = error.raw_os_error() == Some(libc::ENXIO);
    let fifo = no_reader && fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo());
    if fifo { "; no process reads from it" } else { "" }
}

/// The remedy for a /dev/kvm that cannot be opened, after a semicolon; empty if none is known.
pub fn open_kvm_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "; load KVM with 'sudo modprobe -a kvm_intel kvm_amd', and switch virtualization on in the firmware"
        }
        io::ErrorKind::PermissionDenied => "; join its group with 'sudo usermod -aG kvm $USER' and log in again",
        _ => "",
    }
}
