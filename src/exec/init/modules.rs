//! Loading kernel modules: those that kickvm has packed, then those of `--module` that are in the guest's root.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::init_module;

use super::cannot;
use crate::exec::job::MODULES_PATH;
use crate::exec::modules::{Module, ModuleDirectory};

/// Loads the packed modules, in the order of their names, and deletes them.
///
/// # Errors
///
/// The kernel refuses a module. The error is a message for the user.
pub fn load_packed() -> Result<(), String> {
    let Ok(entries) = fs::read_dir(MODULES_PATH) else { return Ok(()) };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        let content = fs::read(&file).map_err(cannot("read a module"))?;
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        insert(name.split_once('-').map_or(&*name, |(_number, name)| name), &content)?;
    }
    let _ = fs::remove_dir_all(MODULES_PATH); // it only takes memory
    Ok(())
}

/// Loads each of `names` and the modules that it depends on, from `/lib/modules/RELEASE`.
///
/// # Errors
///
/// A module does not exist, or the kernel refuses it. The error is a message for the user.
pub fn load(names: &[OsString]) -> Result<(), String> {
    if names.is_empty() {
        return Ok(());
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").map_err(cannot("read the kernel release"))?;
    let path = Path::new("/lib/modules").join(release.trim());
    let directory = ModuleDirectory::open(&path);
    let first = names[0].display();
    let what = format_args!("load --module '{first}', which the host does not have: '{}' in the guest", path.display());
    let directory = directory.map_err(cannot(what))?;
    let mut modules = Vec::new();
    for name in names {
        let name = name.to_string_lossy();
        if !directory.add(&name, &mut modules)? && directory.has_builtin(&name) != Some(true) {
            return Err(format!("no --module '{name}' on the host, and none in '{}' of the guest", path.display()));
        }
    }
    modules.iter().try_for_each(|Module { name, content }| insert(name, content))
}

fn insert(name: &str, content: &[u8]) -> Result<(), String> {
    match init_module(content, c"") {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        // The kernel's log has the reason: usually a module of another build (`vermagic`).
        Err(Errno::ENOEXEC) => Err(format!("cannot load module '{name}': it does not belong to this kernel")),
        Err(error) => Err(cannot(format_args!("load module '{name}'"))(error)),
    }
}
