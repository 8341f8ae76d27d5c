//! Kernel modules, found as modprobe finds them: by `/lib/modules/RELEASE/modules.dep`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::sys::os_error;

/// The kernel unpacks a module that is compressed (linux/module.h, Linux 5.17).
const COMPRESSED_FILE: i32 = 4;

/// Loads each of `names` with what it depends on.
pub fn load(names: &[OsString]) -> Result<(), String> {
    if names.is_empty() {
        return Ok(());
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").map_err(|error| error.to_string())?;
    let directory = Path::new("/lib/modules").join(release.trim());
    let list = directory.join("modules.dep");
    let dependencies = fs::read_to_string(&list).map_err(|error| {
        format!("cannot load modules: '{}' in the guest: {}", list.display(), os_error::describe(&error))
    })?;
    let builtin = fs::read_to_string(directory.join("modules.builtin")).unwrap_or_default();
    for name in names {
        let name = name.to_string_lossy();
        match order(&dependencies, &name) {
            Some(files) => files.iter().try_for_each(|file| insert(&directory.join(file)))?,
            None if builtin.lines().any(|file| is_module(file, &name)) => {}
            None => return Err(format!("there is no module '{name}' in '{}'", list.display())),
        }
    }
    Ok(())
}

/// The files to load for module `name`, what is needed first at the front.
fn order<'a>(dependencies: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let (file, needs) =
        dependencies.lines().find_map(|line| line.split_once(':').filter(|(file, _)| is_module(file, name)))?;
    // depmod lists what a module needs from the nearest to the farthest.
    Some(needs.split_whitespace().rev().chain([file]).collect())
}

/// Whether `file` is the module `name`, in which `-` and `_` are the same.
fn is_module(file: &str, name: &str) -> bool {
    let base = file.rsplit('/').next().unwrap_or(file);
    let base = base.split_once(".ko").map_or(base, |(base, _)| base);
    base.replace('-', "_") == name.replace('-', "_")
}

fn insert(path: &Path) -> Result<(), String> {
    let fail = |error: io::Error| format!("cannot load module '{}': {}", path.display(), os_error::describe(&error));
    let file = File::open(path).map_err(fail)?;
    let flags = match path.extension().is_some_and(|extension| extension == "ko") {
        true => ModuleInitFlags::empty(),
        false => ModuleInitFlags::from_bits_retain(COMPRESSED_FILE as _),
    };
    match finit_module(&file, c"", flags) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(fail(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_loaded_before_it() {
        let list = "kernel/a/virtio_net.ko.xz: kernel/net_failover.ko kernel/failover.ko\nkernel/b/9p-net.ko:\n";
        let files = ["kernel/failover.ko", "kernel/net_failover.ko", "kernel/a/virtio_net.ko.xz"];
        assert_eq!(order(list, "virtio-net"), Some(files.to_vec()));
        assert_eq!(order(list, "9p_net"), Some(vec!["kernel/b/9p-net.ko"]));
        assert_eq!((order(list, "net"), order("", "x")), (None, None));
    }
}
