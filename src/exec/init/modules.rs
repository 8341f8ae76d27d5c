//! Loading kernel modules with their dependencies, which are in `/lib/modules/RELEASE/modules.dep`, as for modprobe(8).

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use super::cannot;

/// MODULE_INIT_COMPRESSED_FILE: the kernel decompresses the module (linux/module.h, since Linux 5.17).
const COMPRESSED_FILE: i32 = 4;

/// Loads each of `names` and the modules that it depends on.
///
/// # Errors
///
/// A module does not exist, or the kernel refuses it. The error is a message for the user.
pub fn load(names: &[OsString]) -> Result<(), String> {
    if names.is_empty() {
        return Ok(());
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").map_err(cannot("read the kernel release"))?;
    let directory = Path::new("/lib/modules").join(release.trim());
    let list = directory.join("modules.dep");
    let dependencies = fs::read_to_string(&list);
    let dependencies = dependencies.map_err(cannot(format_args!("load modules: '{}' in the guest", list.display())))?;
    let builtin = fs::read_to_string(directory.join("modules.builtin")).unwrap_or_default();
    for name in names {
        let name = name.to_string_lossy();
        match load_order(&dependencies, &name) {
            Some(files) => files.iter().try_for_each(|file| insert(&directory.join(file)))?,
            None if builtin.lines().any(|file| is_module(file, &name)) => {}
            None => return Err(format!("no module '{name}' in '{}'", list.display())),
        }
    }
    Ok(())
}

/// The files of module `name` and its dependencies, in the order in which they must be loaded.
fn load_order<'a>(dependencies: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let mut entries = dependencies.lines().filter_map(|line| line.split_once(':'));
    let (file, needs) = entries.find(|(file, _)| is_module(file, name))?;
    // depmod lists direct dependencies before those that they need.
    Some(needs.split_whitespace().rev().chain([file]).collect())
}

/// Whether `file` contains the module `name`. Module names do not distinguish `-` from `_`.
fn is_module(file: &str, name: &str) -> bool {
    let base = file.rsplit('/').next().unwrap_or(file);
    let base = base.split_once(".ko").map_or(base, |(base, _)| base);
    base.replace('-', "_") == name.replace('-', "_")
}

fn insert(path: &Path) -> Result<(), String> {
    let action = || format!("load module '{}'", path.display());
    let file = File::open(path).map_err(cannot(action()))?;
    let uncompressed = path.extension().is_some_and(|extension| extension == "ko");
    let flags = ModuleInitFlags::from_bits_retain(if uncompressed { 0 } else { COMPRESSED_FILE as _ });
    match finit_module(&file, c"", flags) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(cannot(action())(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_loaded_before_the_module() {
        let list = "kernel/a/virtio_net.ko.xz: kernel/net_failover.ko kernel/failover.ko\nkernel/b/9p-net.ko:\n";
        let files = ["kernel/failover.ko", "kernel/net_failover.ko", "kernel/a/virtio_net.ko.xz"];
        assert_eq!(load_order(list, "virtio-net"), Some(files.to_vec()));
        assert_eq!(load_order(list, "9p_net"), Some(vec!["kernel/b/9p-net.ko"]));
        assert_eq!((load_order(list, "net"), load_order("", "x")), (None, None));
    }
}
