//! The configuration of a VM.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::boot::Image;
use crate::console::{Rules, RunLog};

/// The destination of the guest's console.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ConsoleConfig {
    /// Standard input and output.
    #[default]
    Stdio,
    /// Standard input and output, through a virtio console (the guest's hvc0). The output of the serial port is shown,
    /// too.
    Virtio,
    /// Nowhere.
    None,
    /// Output to standard error, no input.
    Stderr,
    /// Output to this file, no input.
    File(PathBuf),
}

impl ConsoleConfig {
    /// Whether standard input is the guest's.
    pub fn has_input(&self) -> bool {
        matches!(self, Self::Stdio | Self::Virtio)
    }
}

/// A disk: a raw image or a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// The file.
    pub path: PathBuf,
    /// Whether the file is used as it is, even if it looks like an image in another format.
    pub raw: bool,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// What the guest reads as the disk's serial number, at most 20 bytes.
    pub id: Option<String>,
    /// Whether I/O bypasses the host's page cache (`O_DIRECT`).
    pub direct: bool,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// The host's tap interface.
    pub tap: String,
    /// The guest's MAC address; `None` for a random one.
    pub mac: Option<[u8; 6]>,
}

/// A socket device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockConfig {
    /// The guest's context identifier, 3 or more.
    pub cid: u32,
    /// The Unix socket by which host programs reach the guest.
    pub socket: PathBuf,
}

/// A directory of the host that the guest can mount (virtio-fs).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareConfig {
    /// The directory.
    pub path: PathBuf,
    /// The name by which the guest mounts it, at most 36 bytes.
    pub tag: String,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Whether the guest may ignore changes that the host makes.
    pub stable: bool,
}

/// One virtual machine.
#[derive(Clone, Debug)]
pub struct VMMConfig {
    /// The kernel.
    pub image: Image,
    /// Archives of the first root file system, in order.
    pub initramfs: Vec<PathBuf>,
    /// The kernel command line, opaque to kickvm.
    pub cmdline: String,
    /// Number of vCPUs, 1 to 254.
    pub cpus: u8,
    /// Bytes of RAM, a multiple of 4 KiB.
    pub memory: u64,
    /// The destination of the console.
    pub console: ConsoleConfig,
    /// Disks, the first of which is /dev/vda.
    pub disks: Vec<DiskConfig>,
    /// Network interfaces, the first of which is eth0.
    pub nets: Vec<NetConfig>,
    /// Attachment between host and guest.
    pub vsock: Option<VsockConfig>,
    /// Shared directories.
    pub shares: Vec<ShareConfig>,
    /// Whether the guest has an entropy device.
    pub rng: bool,
    /// Bytes of RAM that a balloon takes from the guest at first; `None` for no balloon.
    pub balloon: Option<u64>,
    /// The longest time the guest may run.
    pub timeout: Option<Duration>,
    /// Whether the exits of each port are counted.
    pub port_stats: bool,
    /// Lines that the console must show and must not show.
    pub rules: Rules,
    /// Receives all output of the run.
    pub log: RunLog,
}

/// The default command line: a serial console, and an immediate reboot after a panic.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1";
/// The default command line with a virtio console.
pub const VIRTIO_CMDLINE: &str = "console=hvc0 panic=-1";
/// The maximum number of vCPUs: APIC IDs have eight bits, and 255 means "all".
pub const MAX_CPUS: u8 = 254;
/// The minimum of RAM in bytes: the first megabyte holds the tables, the second the kernel.
pub const MIN_MEMORY: u64 = 2 << 20;

impl VMMConfig {
    /// A machine of one vCPU and 256 MiB of RAM that boots `image`.
    pub fn new(image: Image) -> Self {
        Self {
            image,
            initramfs: Vec::new(),
            cmdline: DEFAULT_CMDLINE.to_owned(),
            cpus: 1,
            memory: 256 << 20,
            console: ConsoleConfig::default(),
            disks: Vec::new(),
            nets: Vec::new(),
            vsock: None,
            shares: Vec::new(),
            rng: true,
            balloon: None,
            timeout: None,
            port_stats: false,
            rules: Rules::default(),
            log: RunLog::default(),
        }
    }

    /// The files that the guest is loaded from: kernel, initramfs archives and disks.
    pub fn input_files(&self) -> impl Iterator<Item = &Path> {
        let kernel = match &self.image {
            Image::File(kernel) => Some(kernel),
            Image::Raw(_) => None,
        };
        let disks = self.disks.iter().map(|disk| &disk.path);
        kernel.into_iter().chain(&self.initramfs).chain(disks).map(PathBuf::as_path)
    }
}
