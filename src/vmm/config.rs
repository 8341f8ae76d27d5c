//! What a user asks for.

use crate::boot::Image;
use std::path::PathBuf;
use std::time::Duration;

/// Where the guest's console goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Console {
    /// Standard input and output.
    #[default]
    Stdio,
    /// Nowhere.
    None,
    /// Output to this file, no input.
    File(PathBuf),
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
    pub console: Console,
    /// How long the guest may run.
    pub timeout: Option<Duration>,
    /// How much is said on standard error: 0 to 2.
    pub verbosity: u8,
    /// Whether each step of the exit-handler pattern is told on standard error.
    pub narrate: bool,
}

/// The command line a guest gets unless its user says otherwise: a serial console, and no waiting after a panic.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1";
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
            console: Console::default(),
            timeout: None,
            verbosity: 0,
            narrate: false,
        }
    }
}
