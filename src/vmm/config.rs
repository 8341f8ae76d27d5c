//! What a user asks for.

use std::path::PathBuf;
use std::time::Duration;

use crate::boot::Image;
use crate::console::Rules;

/// Where the guest's console goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ConsoleConfig {
    /// Standard input and output.
    #[default]
    Stdio,
    /// Standard input and output, through a virtio console (the guest's hvc0). What comes from the serial port is output too.
    Virtio,
    /// Nowhere.
    None,
    /// Output to standard error, no input.
    Stderr,
    /// Output to this file, no input.
    File(PathBuf),
}

/// A disk: a raw image or a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// The file.
    pub path: PathBuf,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// What the guest reads as the disk's serial number, at most 20 bytes.
    pub id: Option<String>,
    /// Whether the host's page cache is passed by (`O_DIRECT`).
    pub direct: bool,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// The host's tap interface.
    pub tap: String,
    /// The guest's MAC address; one is made up if there is none.
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

/// One virtual machine, as its user wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Where the console goes.
    pub console: ConsoleConfig,
    /// Disks, the first of which is /dev/vda.
    pub disks: Vec<DiskConfig>,
    /// Network interfaces, the first of which is eth0.
    pub nets: Vec<NetConfig>,
    /// Attachment between host and guest.
    pub vsock: Option<VsockConfig>,
    /// Whether the guest has an entropy device.
    pub rng: bool,
    /// Bytes of RAM a balloon takes from the guest at first; without one there is no balloon.
    pub balloon: Option<u64>,
    /// How long the guest may run.
    pub timeout: Option<Duration>,
    /// How much is said on standard error: 0 to 2.
    pub verbosity: u8,
    /// What the console must say and must not.
    pub rules: Rules,
    /// Whether the ACPI tables describe a second serial port (COM2).
    pub second_serial: bool,
    /// Whether a terminal on standard input is raw although the console is not there.
    pub raw_terminal: bool,
    /// Whether each step of the exit-handler pattern is told on standard error.
    pub narrate: bool,
}

/// The command line a guest gets unless its user says otherwise: a serial console, and no waiting after a panic.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1";
/// The same for a guest with a virtio console.
pub const VIRTIO_CMDLINE: &str = "console=hvc0 panic=-1";
/// Bytes of RAM a guest gets unless its user says otherwise.
pub const DEFAULT_MEMORY: u64 = 256 << 20;
/// The most vCPUs: APIC IDs have eight bits, and 255 means "all".
pub const MAX_CPUS: u8 = 254;
/// The least RAM: the first megabyte is the tables', the second the kernel's.
pub const MIN_MEMORY: u64 = 2 << 20;

impl VMMConfig {
    /// A machine of one vCPU and [`DEFAULT_MEMORY`] that boots `image`.
    pub fn new(image: Image) -> Self {
        Self {
            image,
            initramfs: Vec::new(),
            cmdline: DEFAULT_CMDLINE.to_owned(),
            cpus: 1,
            memory: DEFAULT_MEMORY,
            console: ConsoleConfig::default(),
            disks: Vec::new(),
            nets: Vec::new(),
            vsock: None,
            rng: true,
            balloon: None,
            timeout: None,
            verbosity: 0,
            rules: Rules::default(),
            second_serial: false,
            raw_terminal: false,
            narrate: false,
        }
    }
}
