//! A directory of kernel modules: an installed one (`/lib/modules/RELEASE`), or the build tree of a kernel.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::boot::decompress::Compression;
use crate::exec::files::MAX_FILE;
use crate::sys::os_error;

/// The deepest directory that is searched for modules.
const MAX_DEPTH: usize = 16;
/// The suffixes of a module's file. The kernel may compress modules when it installs them.
const SUFFIXES: [&str; 4] = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"];

/// A module that is read and decompressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, with `_` for `-`.
    pub name: String,
    /// An ELF file.
    pub content: Vec<u8>,
}

/// The directory, and the lists in it.
#[derive(Debug)]
pub struct ModuleDirectory {
    path: PathBuf,
    /// `modules.dep`: the files with those that each needs (modules.dep(5)).
    dependencies: Option<String>,
    /// The files, if there is no `modules.dep`: depmod(8) has not run.
    files: Vec<PathBuf>,
    /// `modules.builtin`: what would be modules, but is a part of the kernel.
    builtin: Option<String>,
}

impl ModuleDirectory {
    /// Reads the lists of the directory `path`.
    ///
    /// # Errors
    ///
    /// The directory cannot be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::read_dir(path)?;
        let read = |name: &str| fs::read_to_string(path.join(name)).ok();
        let dependencies = read("modules.dep");
        let files = match (&dependencies, read("modules.order")) {
            (Some(_), _) => Vec::new(),
            (None, Some(order)) => order.lines().filter_map(|line| built_file(path, line)).collect(),
            (None, None) => find_files(path),
        };
        Ok(Self { path: path.to_owned(), dependencies, files, builtin: read("modules.builtin") })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether `name` is a part of the kernel; `None` if the directory has no list of these.
    pub fn has_builtin(&self, name: &str) -> Option<bool> {
        self.builtin.as_ref().map(|list| list.lines().any(|file| module_name(file) == canonical(name)))
    }

    /// Whether the directory has the module `name`.
    pub fn has_module(&self, name: &str) -> bool {
        self.dependencies.as_ref().is_some_and(|list| load_order(list, name).is_some()) || self.file(name).is_some()
    }

    fn file(&self, name: &str) -> Option<&PathBuf> {
        self.files.iter().find(|file| module_name(&file.to_string_lossy()) == canonical(name))
    }

    /// Adds the module `name` to `modules`, after those that it needs, each unless it is in the list already. Returns
    /// whether the directory has the module.
    ///
    /// # Errors
    ///
    /// A module cannot be read, or one that it needs is missing. The error is a message for the user.
    pub fn add(&self, name: &str, modules: &mut Vec<Module>) -> Result<bool, String> {
        if let Some(list) = &self.dependencies {
            let Some(order) = load_order(list, name) else { return Ok(false) };
            for file in order {
                if !modules.iter().any(|module| module.name == module_name(file)) {
                    modules.push(read(&self.path.join(file))?);
                }
            }
            return Ok(true);
        }
        if !self.files.is_empty() { self.add_by_modinfo(name, modules, &mut Vec::new()) } else { Ok(false) }
    }

    /// The same without `modules.dep`: a module itself names those that it needs. `open` are the modules whose needs
    /// are being added.
    fn add_by_modinfo(&self, name: &str, modules: &mut Vec<Module>, open: &mut Vec<String>) -> Result<bool, String> {
        let name = canonical(name);
        if modules.iter().any(|module| module.name == name) || open.contains(&name) {
            return Ok(true);
        }
        let Some(file) = self.file(&name) else { return Ok(false) };
        let module = read(file)?;
        open.push(name);
        for needed in needs(&module.content) {
            if !self.add_by_modinfo(&needed, modules, open)? && self.has_builtin(&needed) != Some(true) {
                return Err(format!("module '{}' needs '{needed}', which is not in this directory", file.display()));
            }
        }
        modules.push(module);
        Ok(true)
    }
}

/// The files of module `name` and its dependencies in `list`, in the order in which they must be loaded.
fn load_order<'a>(list: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let mut entries = list.lines().filter_map(|line| line.split_once(':'));
    let (file, needs) = entries.find(|(file, _)| module_name(file) == canonical(name))?;
    // depmod lists direct dependencies before those that they need.
    Some(needs.split_whitespace().rev().chain([file]).collect())
}

/// The name of the module in `file`.
fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    canonical(base.split_once(".ko").map_or(base, |(base, _)| base))
}

/// Module names do not distinguish `-` from `_`.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The file of a line of `modules.order`, which names what was compiled: with `kernel/` before it or not, as `.ko` or
/// as `.o`, and not compressed.
fn built_file(directory: &Path, line: &str) -> Option<PathBuf> {
    let stem = line.strip_suffix(".ko").or(line.strip_suffix(".o"))?;
    let stems = [Some(stem), stem.strip_prefix("kernel/")].into_iter().flatten();
    let mut files = stems.flat_map(|stem| SUFFIXES.map(|suffix| directory.join(format!("{stem}{suffix}"))));
    files.find(|file| file.is_file())
}

/// The modules below `directory`. Symbolic links to directories, such as `build`, are not followed.
fn find_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![(directory.to_owned(), 0)];
    while let Some((directory, depth)) = open.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && depth < MAX_DEPTH => open.push((entry.path(), depth + 1)),
                Ok(_) if SUFFIXES.iter().any(|suffix| name.to_string_lossy().ends_with(suffix)) => {
                    files.push(entry.path());
                }
                _ => {}
            }
        }
    }
    files.sort();
    files
}

fn read(path: &Path) -> Result<Module, String> {
    let cannot = |error: io::Error| format!("cannot read module '{}': {}", path.display(), os_error::describe(&error));
    let mut file = File::open(path).map_err(cannot)?;
    let mut content = Vec::new();
    file.by_ref().take(MAX_FILE as u64).read_to_end(&mut content).map_err(cannot)?;
    if let Some(compression) = Compression::detect(&content) {
        let reader = compression.reader(io::Cursor::new(std::mem::take(&mut content))).map_err(cannot)?;
        reader.take(MAX_FILE as u64).read_to_end(&mut content).map_err(cannot)?;
    }
    if !content.starts_with(b"\x7fELF") {
        return Err(cannot(io::Error::other("it is not an ELF file")));
    }
    Ok(Module { name: module_name(&path.to_string_lossy()), content })
}

/// The modules that a module needs: the field `depends` of its section `.modinfo`, in which NULs separate the fields.
fn needs(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let Some(at) = module.windows(FIELD.len()).position(|bytes| bytes == FIELD) else { return Vec::new() };
    let value = module[at + FIELD.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(canonical).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::tempdir::TempDir;

    fn directory(files: &[(&str, &str)]) -> TempDir {
        let directory = TempDir::new().unwrap();
        for (path, content) in files {
            let path = directory.as_path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        directory
    }

    /// The modules that `name` adds, in their order.
    fn order(directory: &TempDir, name: &str) -> Result<Vec<String>, String> {
        let mut modules = Vec::new();
        let found = ModuleDirectory::open(directory.as_path()).unwrap().add(name, &mut modules)?;
        assert!(found || modules.is_empty());
        Ok(modules.into_iter().map(|module| module.name).collect())
    }

    #[test]
    fn dependencies_are_loaded_before_the_module() {
        let list = "kernel/a/virtio_net.ko.xz: kernel/net_failover.ko kernel/failover.ko\nkernel/b/9p-net.ko:\n";
        let files = ["kernel/failover.ko", "kernel/net_failover.ko", "kernel/a/virtio_net.ko.xz"];
        assert_eq!(load_order(list, "virtio-net"), Some(files.to_vec()));
        assert_eq!(load_order(list, "9p_net"), Some(vec!["kernel/b/9p-net.ko"]));
        assert_eq!((load_order(list, "net"), load_order("", "x")), (None, None));
    }

    #[test]
    fn a_directory_in_which_depmod_has_not_run_has_the_order_of_the_modules_own_fields() {
        let elf = |needs: &str| format!("\x7fELF\0license=GPL\0depends={needs}\0intree=Y\0");
        for (list, prefix) in [(None, "kernel/"), (Some("kernel/a-b.ko\nkernel/c.ko\nkernel/d.ko\n"), "kernel/")]
            .into_iter()
            .chain([(Some("kernel/a-b.ko\nkernel/c.ko\nkernel/d.ko\n"), ""), (Some("a-b.o\nc.o\nd.o\n"), "")])
        {
            let names = ["a-b.ko", "c.ko", "d.ko"].map(|name| format!("{prefix}{name}"));
            let contents = [elf(""), elf("a_b,core"), elf("c,d")];
            let mut files: Vec<_> = names.iter().zip(&contents).map(|(n, c)| (n.as_str(), c.as_str())).collect();
            files.push(("modules.builtin", "kernel/core.ko\n"));
            files.extend(list.map(|list| ("modules.order", list)));
            let directory = directory(&files);
            assert_eq!(order(&directory, "d").unwrap(), ["a_b", "c", "d"], "{list:?}");
            assert_eq!(order(&directory, "core").unwrap(), [""; 0], "{list:?}");
            let opened = ModuleDirectory::open(directory.as_path()).unwrap();
            assert_eq!((opened.has_builtin("core"), opened.has_builtin("c")), (Some(true), Some(false)));
            assert!(opened.has_module("a_b") && !opened.has_module("core"));
        }
    }

    #[test]
    fn invalid_modules_are_errors() {
        let files =
            [("a.ko", "text"), ("b.ko.xz", "\x7fELF"), ("c.ko.gz", "\x1f\u{8b}"), ("d.ko", "\x7fELF\0depends=e\0")];
        let directory = directory(&files);
        let path = |name: &str| directory.as_path().join(name).display().to_string();
        assert_eq!(
            order(&directory, "a").unwrap_err(),
            format!("cannot read module '{}': it is not an ELF file", path("a.ko"))
        );
        assert_eq!(order(&directory, "b").unwrap(), ["b"], "the content decides");
        let missing = format!("module '{}' needs 'e', which is not in this directory", path("d.ko"));
        assert_eq!(order(&directory, "d").unwrap_err(), missing);
    }
}
