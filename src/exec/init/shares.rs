//! Mounting the host's directories: as they are, or below an overlay in memory, which takes the guest's changes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use super::cannot;
use super::system::mount_at;
use crate::exec::job::SHARES_PATH;
use crate::exec::shares::{Mount, ShareMode};

/// A tmpfs takes half of the memory by default. The largest part of this one is the guest's own choice.
const TMPFS_OPTIONS: &str = "size=90%,nr_inodes=0";

/// How far Linux reads ahead: the largest request of virtio-fs.
const READ_AHEAD_KIB: &str = "1024";

/// Mounts the shares in order. The one at `/` becomes the root, and those after it are mounted in it.
///
/// # Errors
///
/// The kernel refuses a mount. The error is a message for the user.
pub fn mount_all(mounts: &[Mount]) -> Result<(), String> {
    mounts.iter().try_for_each(|share| {
        let Mount { tag, guest, mode } = share;
        let guest = Path::new(guest);
        let is_root = guest == Path::new("/");
        let why = |error| match error {
            // There is no such file system, or no such device.
            Errno::ENODEV | Errno::EINVAL => format!(
                "the guest's kernel has no CONFIG_VIRTIO_FS, CONFIG_VIRTIO_MMIO or CONFIG_OVERLAY_FS, or they are \
                 modules that the host does not have beside the kernel{}",
                if is_root { "; --root DIR,copy needs none of them" } else { "" }
            ),
            error => cannot::<Errno>("mount it")(error),
        };
        let mounted = match mode {
            _ if is_root => enter_root(tag),
            ShareMode::ReadWrite => mount_share(tag, guest, MsFlags::empty()),
            ShareMode::ReadOnly => mount_share(tag, guest, MsFlags::MS_RDONLY),
            ShareMode::Overlay => mount_overlay(tag, guest, None),
        };
        mounted.map_err(|error| format!("cannot share '{}': {}", guest.display(), why(error)))
    })
}

fn mount_share(tag: &str, path: &Path, flags: MsFlags) -> nix::Result<()> {
    create(path)?;
    mount(Some(tag), path, Some("virtiofs"), flags, None::<&str>)?;
    // Linux reads ahead 128 KiB by default, in requests of that size. Without sysfs it continues to do so.
    let _ = mount_at("sysfs", "/sys", None);
    let _ = fs::metadata(path).and_then(|metadata| {
        let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
        fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), READ_AHEAD_KIB)
    });
    Ok(())
}

/// Mounts an overlay at `path`: a tmpfs over `above`, if given, over the share.
fn mount_overlay(tag: &str, path: &Path, above: Option<&str>) -> nix::Result<()> {
    let base = PathBuf::from(SHARES_PATH).join(tag);
    let [lower, memory] = ["lower", "memory"].map(|name| base.join(name));
    mount_share(tag, &lower, MsFlags::MS_RDONLY)?;
    create(&memory)?;
    mount(Some("tmpfs"), &memory, Some("tmpfs"), MsFlags::empty(), Some(TMPFS_OPTIONS))?;
    let [upper, work] = ["upper", "work"].map(|name| memory.join(name));
    create(&upper)?;
    create(&work)?;
    create(path)?;
    let above = above.map_or(String::new(), |above| format!("{above}:"));
    let [lower, upper, work] = [lower, upper, work].map(|path| path.display().to_string());
    let options = format!("lowerdir={above}{lower},upperdir={upper},workdir={work}");
    mount(Some("overlay"), path, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
}

/// Makes the share the root, below the files of the initramfs.
fn enter_root(tag: &str) -> nix::Result<()> {
    let none = None::<&str>;
    let root = PathBuf::from(SHARES_PATH).join("root");
    mount_overlay(tag, &root, Some("/"))?;
    for path in ["proc", "dev"] {
        create(&root.join(path))?;
        mount(Some(&Path::new("/").join(path)), &root.join(path), none, MsFlags::MS_MOVE, none)?;
    }
    chdir(&root)?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
    chroot(".")
}

fn create(path: &Path) -> nix::Result<()> {
    fs::create_dir_all(path).map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}
