//! Finds the file of a kernel that an option or the environment names: a file, a directory, or the running kernel.

use std::collections::HashSet;
use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::utsname::uname;

use super::error::Error;
use crate::sys::os_error;

/// The variable with the default of `--kernel`.
const VARIABLE: &str = "KICKVM_KERNEL";
/// The name of the running kernel.
const HOST: &str = "host";
/// A bzImage in a build tree.
const BZ_IMAGE: &str = "arch/x86/boot/bzImage";
/// A file of each build tree in which a kernel was built. It has the kernel's release.
pub(crate) const RELEASE_FILE: &str = "include/config/kernel.release";
/// Where distributions install modules.
pub(crate) const MODULE_DIRECTORIES: [&str; 2] = ["lib/modules", "usr/lib/modules"];

/// The file of the kernel `name`: a path to a file; a directory, which is a build tree of Linux or an unpacked package;
/// or `host`, the running kernel.
///
/// # Errors
///
/// A directory has no kernel or several, or the running kernel's file cannot be read. That a file exists is not
/// checked.
pub fn find_kernel(name: &Path) -> Result<PathBuf, Error> {
    match name.to_str() {
        Some(HOST) => {
            let release =
                uname().map_err(|error| unusable(name, error.desc()))?.release().to_string_lossy().into_owned();
            running_kernel("/".as_ref(), &release)
        }
        _ if name.is_dir() => in_directory(name),
        _ => Ok(name.to_owned()),
    }
}

/// The default kernel: that of the environment variable `KICKVM_KERNEL`, else that of the build tree that contains the
/// current directory.
///
/// # Errors
///
/// There is no such tree, or [`find_kernel`] fails.
pub fn default_kernel() -> Result<PathBuf, Error> {
    if let Some(name) = env::var_os(VARIABLE).filter(|name| !name.is_empty()) {
        return find_kernel(name.as_ref());
    }
    let current = env::current_dir().unwrap_or_default();
    current.ancestors().find(|directory| is_build_tree(directory)).map_or(Err(Error::NoKernel), in_directory)
}

fn unusable(path: &Path, why: impl Into<String>) -> Error {
    Error::File { action: "use", role: "kernel", path: path.to_owned(), why: why.into() }
}

/// Whether `directory` is a source tree of Linux, or has the output of a build (`make O=`).
fn is_build_tree(directory: &Path) -> bool {
    let has = |name: &str| directory.join(name).exists();
    has(RELEASE_FILE) || has("Kbuild") && has("Kconfig") && has("arch/x86")
}

fn in_directory(directory: &Path) -> Result<PathBuf, Error> {
    if is_build_tree(directory) {
        let built = [BZ_IMAGE, "vmlinux"].map(|name| directory.join(name)).into_iter().find(|path| path.is_file());
        return built.ok_or_else(|| unusable(directory, "no kernel is built in this tree for x86; run make there"));
    }
    let mut kernels = installed_in(directory);
    match kernels.len() {
        0 => Err(unusable(
            directory,
            "it is a directory, but neither a build tree of Linux nor an unpacked package \
             (no boot/vmlinuz-*, no lib/modules/*/vmlinuz)",
        )),
        1 => Ok(kernels.remove(0)),
        _ => {
            let names: Vec<_> = kernels.iter().map(|path| format!("'{}'", path.display())).collect();
            Err(unusable(directory, format!("it has several kernels; give one of {}", names.join(", "))))
        }
    }
}

/// The kernels that are installed below `root`, each once.
fn installed_in(root: &Path) -> Vec<PathBuf> {
    let list = |directory: PathBuf| fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_kernel = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("vmlinuz") || name.starts_with("bzImage") || name.starts_with("kernel-")
    };
    let modules =
        MODULE_DIRECTORIES.into_iter().flat_map(|name| list(root.join(name))).map(|path| path.join("vmlinuz"));
    let all = ["boot", ""].into_iter().flat_map(|name| list(root.join(name))).filter(is_kernel).chain(modules);
    let mut kernels: Vec<_> = all.filter(|path| path.is_file()).collect();
    kernels.sort();
    retain_distinct(&mut kernels); // boot/vmlinuz is a link to another of the list
    kernels
}

/// Removes paths that do not exist, or lead to the same file as one before.
pub(crate) fn retain_distinct(paths: &mut Vec<PathBuf>) {
    let mut seen = HashSet::new();
    paths.retain(|path| path.canonicalize().is_ok_and(|file| seen.insert(file)));
}

/// The file of the kernel `release`, which runs, below `root`.
fn running_kernel(root: &Path, release: &str) -> Result<PathBuf, Error> {
    let installed = MODULE_DIRECTORIES.map(|directory| root.join(directory).join(release).join("vmlinuz"));
    let paths: Vec<_> = [root.join(format!("boot/vmlinuz-{release}"))].into_iter().chain(installed).collect();
    let package = format!("'apt-get download linux-image-{release}' and 'dpkg -x' get it without root");
    let mut denied = None;
    for path in &paths {
        match File::open(path) {
            Ok(_) => return Ok(path.clone()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => denied = denied.or(Some((path, error))),
            Err(_) => {}
        }
    }
    Err(match denied {
        Some((path, error)) => {
            let (why, file) = (os_error::describe(&error), path.display());
            let why = format!("{why}; 'sudo chmod a+r {file}' lets users read it, or {package}");
            Error::File { action: "open", role: "kernel", path: path.clone(), why }
        }
        None => {
            let paths: Vec<_> = paths.iter().map(|path| format!("'{}'", path.display())).collect();
            let why = format!(
                "the running kernel is not installed as {}; on Debian and Ubuntu, {package}",
                paths.join(" or ")
            );
            unusable(HOST.as_ref(), why)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(paths: &[&str]) -> vmm_sys_util::tempdir::TempDir {
        let directory = vmm_sys_util::tempdir::TempDir::new().unwrap();
        for path in paths {
            let path = directory.as_path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        directory
    }

    #[test]
    fn the_kernel_of_a_directory_is_found() {
        let release = "lib/modules/6.1.0-1/modules.dep";
        for (paths, expected) in [
            (&[RELEASE_FILE, "vmlinux", BZ_IMAGE][..], BZ_IMAGE),
            (&[RELEASE_FILE, "vmlinux"], "vmlinux"),
            (&["Kbuild", "Kconfig", "arch/x86/boot/bzImage"], BZ_IMAGE),
            (
                &["boot/vmlinuz-6.1.0-1", "boot/config-6.1.0-1", "boot/System.map-6.1.0-1", release],
                "boot/vmlinuz-6.1.0-1",
            ),
            (&["lib/modules/6.1/vmlinuz"], "lib/modules/6.1/vmlinuz"),
            (&["usr/lib/modules/6.1/vmlinuz"], "usr/lib/modules/6.1/vmlinuz"),
            (&["vmlinuz"], "vmlinuz"),
        ] {
            let directory = files(paths);
            let found = find_kernel(directory.as_path()).unwrap();
            assert_eq!(found, directory.as_path().join(expected), "{paths:?}");
        }
        let linked = files(&["boot/vmlinuz-6.1"]);
        std::os::unix::fs::symlink("vmlinuz-6.1", linked.as_path().join("boot/vmlinuz")).unwrap();
        assert!(find_kernel(linked.as_path()).unwrap().starts_with(linked.as_path().join("boot")));
        assert_eq!(find_kernel("missing".as_ref()).unwrap(), Path::new("missing"));
    }

    #[test]
    fn a_directory_without_one_kernel_is_an_error_with_a_remedy() {
        for (paths, why) in [
            (&["README"][..], "it is a directory, but neither a build tree of Linux nor an unpacked package"),
            (&["Kbuild", "Kconfig", "arch/x86/Kconfig"], "no kernel is built in this tree for x86; run make there"),
            (&["boot/vmlinuz-1", "boot/vmlinuz-2"], "it has several kernels; give one of '"),
        ] {
            let directory = files(paths);
            let error = find_kernel(directory.as_path()).unwrap_err().to_string();
            let expected = format!("cannot use kernel '{}': {why}", directory.as_path().display());
            assert!(error.starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn the_running_kernel_is_found_where_distributions_install_it() {
        for path in ["boot/vmlinuz-6.1-x", "lib/modules/6.1-x/vmlinuz", "usr/lib/modules/6.1-x/vmlinuz"] {
            let root = files(&[path, "boot/vmlinuz-6.2"]);
            assert_eq!(running_kernel(root.as_path(), "6.1-x").unwrap(), root.as_path().join(path));
        }
        let error = running_kernel("/no".as_ref(), "6.1-x").unwrap_err().to_string();
        let expected = "cannot use kernel 'host': the running kernel is not installed as '/no/boot/vmlinuz-6.1-x' or \
                        '/no/lib/modules/6.1-x/vmlinuz' or '/no/usr/lib/modules/6.1-x/vmlinuz'; on Debian and Ubuntu, \
                        'apt-get download linux-image-6.1-x' and 'dpkg -x' get it without root";
        assert_eq!(error, expected);
    }
}
