//! Directories of the host that the guest uses without a copy.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::vmm::ShareConfig;

/// What the guest's changes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareMode {
    /// They change the directory of the host.
    ReadWrite,
    /// They fail.
    ReadOnly,
    /// They are in the guest's memory, and lost at its end.
    Overlay,
}

/// A directory of the host and its path in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedDirectory {
    /// Its path on the host.
    pub host: PathBuf,
    /// Its absolute path in the guest. `/` is the root, whose mode is an overlay.
    pub guest: PathBuf,
    /// What the guest's changes do.
    pub mode: ShareMode,
}

/// What init has to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The tag of the device.
    pub tag: String,
    /// The path.
    pub guest: OsString,
    /// What the guest's changes do.
    pub mode: ShareMode,
}

impl ShareMode {
    /// Its code in the job, and its name on the command line.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::ReadWrite, "rw"), (Self::ReadOnly, "ro"), (Self::Overlay, "overlay")];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(mode, _)| *mode == self).map_or("", |(_, name)| name)
    }

    /// The mode with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(mode, _)| *mode)
    }
}

impl SharedDirectory {
    /// The device of the share with this number, and what init mounts.
    pub fn device(&self, number: usize) -> (ShareConfig, Mount) {
        let (tag, mode) = (format!("kickvm{number}"), self.mode);
        let (read_only, stable) = (mode != ShareMode::ReadWrite, mode == ShareMode::Overlay);
        let mount = Mount { tag: tag.clone(), guest: self.guest.clone().into(), mode };
        (ShareConfig { path: self.host.clone(), tag, read_only, stable }, mount)
    }
}
