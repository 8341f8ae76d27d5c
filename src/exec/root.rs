//! Where the files of the guest's root come from, and whether they are shared or copied.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use super::modules::{KernelModules, Support};
use crate::boot::{self, ByteSize};

/// What a guest needs for a shared root.
const DRIVERS: [&str; 3] = ["virtio_mmio", "virtiofs", "overlay"];

/// The files that become the guest's root. Its changes to them are lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// A directory, or a tar archive of one, which may be compressed.
    pub path: PathBuf,
    /// Whether a directory is copied into the guest's memory. Otherwise it is shared below an overlay in that, unless
    /// the guest's kernel has no driver for this. An archive is always copied.
    pub copy: bool,
}

impl Root {
    /// Whether the guest gets a directory without a copy, if its kernel can share one.
    pub fn can_be_shared(&self) -> bool {
        !self.copy && self.path.is_dir()
    }

    /// Whether this is the host's own root.
    pub fn is_host(&self) -> bool {
        self.path.canonicalize().is_ok_and(|path| path == Path::new("/"))
    }

    /// Whether a guest with this kernel gets the directory without a copy. If the host does not have enough of the
    /// kernel to decide, the attempt is made.
    ///
    /// # Errors
    ///
    /// The image cannot be read, or the root would have to be copied and is larger than `memory`.
    pub(super) fn is_shared(&self, kernel: &mut KernelModules, memory: u64) -> Result<bool, boot::Error> {
        if !self.can_be_shared() {
            return Ok(false);
        }
        kernel.read_embedded_config(&DRIVERS)?;
        let missing: Vec<_> = DRIVERS.into_iter().filter(|name| kernel.support(name) == Support::Missing).collect();
        if missing.is_empty() {
            return Ok(true);
        }
        let why = kernel.missing(&missing, "a shared root");
        match used_by_file_system(&self.path).filter(|used| *used > memory) {
            Some(used) => Err(boot::Error::InitramfsSource(
                format!(
                    "{why}; '{}', with {} of files, is too large to be copied into {} of memory: give another kernel, or a \
                     smaller root by --root or --copy",
                    self.path.display(),
                    ByteSize(used),
                    ByteSize(memory)
                )
                .into(),
            )),
            None => {
                log::info!("'{}' is copied: {why}", self.path.display());
                Ok(false)
            }
        }
    }
}

/// How many bytes the files of a file system take, if `path` is its root.
fn used_by_file_system(path: &Path) -> Option<u64> {
    let (own, parent) = (path.metadata().ok()?, path.join("..").metadata().ok()?);
    let is_root = own.dev() != parent.dev() || own.ino() == parent.ino();
    let fs = statvfs(path).ok().filter(|_| is_root)?;
    Some((fs.blocks() - fs.blocks_free()).saturating_mul(fs.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::modules::tests::tree;

    #[test]
    fn a_directory_is_copied_if_the_kernel_lacks_a_driver_and_memory_can_hold_it() {
        let root = |path: &str, copy| Root { path: path.into(), copy };
        let all = "CONFIG_VIRTIO_MMIO=y\nCONFIG_VIRTIO_FS=y\nCONFIG_OVERLAY_FS=y\n";
        for (config, shared) in [(all, true), ("CONFIG_VIRTIO_MMIO=y\nCONFIG_VIRTIO_FS=y\n", false)] {
            let (_directory, image) = tree("boot/vmlinuz", "0.1-kickvm", &[("boot/config-0.1-kickvm", config)]);
            let mut kernel = KernelModules::find(&image, None).unwrap();
            let mut is_shared = |root: Root, memory| root.is_shared(&mut kernel, memory).map_err(|it| it.to_string());
            assert_eq!(is_shared(root("/usr", false), 0), Ok(shared));
            assert_eq!(is_shared(root("/", false), u64::MAX), Ok(shared));
            assert_eq!(is_shared(root("/", true), 0), Ok(false));
            assert_eq!(is_shared(root("/proc/self/exe", false), 0), Ok(false), "an archive");
            let too_large = is_shared(root("/", false), 0);
            assert_eq!(too_large.is_ok(), shared);
            let why = "a shared root needs the driver overlay (CONFIG_OVERLAY_FS, module overlay), but kernel ";
            assert!(too_large.is_ok() || too_large.is_err_and(|error| error.starts_with(why)));
        }
        let mut unknown = KernelModules::default();
        assert!(root("/", false).is_shared(&mut unknown, 0).unwrap());
    }

    #[test]
    fn the_size_of_a_file_system_is_known_at_its_root() {
        assert!(used_by_file_system("/".as_ref()).is_some_and(|used| used > 0));
        assert_eq!(used_by_file_system("/usr/bin".as_ref()), None);
    }
}
