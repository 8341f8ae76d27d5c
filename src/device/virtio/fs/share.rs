//! A directory of the host that a guest can use.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, fstatfs, open};

use super::super::HostError;
use crate::sys::os_error;

/// How long the guest may use what it has cached of a directory that the host may change.
const SHORT: Duration = Duration::from_secs(1);
/// The same for a directory that does not change. Linux also keeps the content of its files.
const LONG: Duration = Duration::from_secs(24 * 3600);

/// A directory of the host, opened.
#[derive(Debug)]
pub struct Share {
    pub(super) root: OwnedFd,
    pub(super) read_only: bool,
    pub(super) stable: bool,
}

impl Share {
    /// Opens `directory`. In a `stable` share the guest does not see what the host changes while it runs.
    ///
    /// # Errors
    ///
    /// `directory` cannot be opened, or is in `/proc`, `/sys` or `/dev`.
    pub fn open(directory: &Path, read_only: bool, stable: bool) -> Result<Self, HostError> {
        let cannot = |error: io::Error| HostError(os_error::describe(&error));
        let path = directory.canonicalize().map_err(cannot)?;
        let root = open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let root = root.map_err(|error| cannot(error.into()))?;
        if is_pseudo(&root) || path.starts_with("/dev") {
            return Err(HostError("the files of /proc, /sys and /dev are the guest's own".to_owned()));
        }
        Ok(Self { root, read_only, stable })
    }

    /// How long the guest may use attributes and names.
    pub(super) fn validity(&self) -> Duration {
        if self.stable { LONG } else { SHORT }
    }
}

/// Whether `directory` is in a file system whose files are interfaces of the host's kernel (magic numbers of
/// linux/magic.h).
pub(super) fn is_pseudo(directory: &impl AsFd) -> bool {
    const PSEUDO: [i64; 16] = [
        0x9fa0,      // proc
        0x6265_6572, // sysfs
        0x1cd1,      // devpts
        0x6462_6720, // debugfs
        0x7472_6163, // tracefs
        0x7363_6673, // securityfs
        0x6367_7270, // cgroup2
        0x27_e0eb,   // cgroup
        0xcafe_4a11, // bpf
        0x6265_6570, // configfs
        0xde5e_81e4, // efivarfs
        0x6165_676c, // pstore
        0x6573_5543, // fusectl
        0x4249_4e4d, // binfmt_misc
        0x1980_0202, // mqueue
        0xf97c_ff8c, // selinuxfs
    ];
    fstatfs(directory).is_ok_and(|fs| PSEUDO.contains(&fs.f_type))
}
