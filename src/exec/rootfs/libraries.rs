//! The libraries of a dynamically linked executable, searched for as the dynamic linker does (ld.so(8)).

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::elf::{self, Dynamic};
use super::{Error, ld_cache};

/// Where the dynamic linkers of distributions search after the cache.
const DEFAULT_DIRECTORIES: [&str; 6] =
    ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"];

/// The files that a dynamically linked executable needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked {
    /// The dynamic linker.
    pub linker: PathBuf,
    /// The libraries of the executable and of these libraries, sorted.
    pub libraries: Vec<PathBuf>,
}

impl Linked {
    /// All files that the executable needs in a guest, with the cache by which the dynamic linker finds the libraries.
    pub fn files(self) -> impl Iterator<Item = PathBuf> {
        let cache = Some(PathBuf::from(ld_cache::PATH)).filter(|path| path.exists());
        self.libraries.into_iter().chain([self.linker]).chain(cache)
    }
}

/// Finds what the executable at `path` needs; `None` if it is not dynamically linked.
///
/// # Errors
///
/// The executable or a library cannot be read, or a library cannot be found.
pub fn libraries_of(path: &Path) -> Result<Option<Linked>, Error> {
    let read = |path: &Path| elf::read(path).map_err(|source| Error::Pack { path: path.to_owned(), source });
    if !path.is_file() {
        return Ok(None);
    }
    let Some(executable) = read(path)? else { return Ok(None) };
    let Some(linker) = executable.linker.as_ref().map(PathBuf::from) else { return Ok(None) };
    let cache = ld_cache::parse(&fs::read(ld_cache::PATH).unwrap_or_default());
    let inherited = search_path(path, executable.rpath.as_deref());
    let mut libraries = Vec::new();
    // The dynamic linker is loaded already; libraries name it, too.
    let mut seen = HashSet::from([linker.file_name().unwrap_or_default().to_owned()]);
    let mut todo = VecDeque::from([(path.to_owned(), executable)]);
    while let Some((user, Dynamic { needed, rpath, runpath, .. })) = todo.pop_front() {
        let directories = match runpath {
            Some(runpath) => search_path(&user, Some(&runpath)), // an rpath is then ignored
            None => [search_path(&user, rpath.as_deref()), inherited.clone()].concat(),
        };
        for library in needed {
            if !seen.insert(OsString::from(&library)) {
                continue;
            }
            let Some(found) = find(&library, &directories, &cache) else {
                return Err(Error::NoLibrary { executable: path.to_owned(), library });
            };
            if let Some(dynamic) = read(&found)? {
                todo.push_back((found.clone(), dynamic));
            }
            libraries.push(found);
        }
    }
    libraries.sort();
    Ok(Some(Linked { linker, libraries }))
}

/// Searches for a library in `directories`, which the executable states, in the cache, and in the default directories.
fn find(library: &str, directories: &[PathBuf], cache: &HashMap<String, PathBuf>) -> Option<PathBuf> {
    if library.contains('/') {
        return Some(PathBuf::from(library)).filter(|path| path.is_file());
    }
    let before = directories.iter().map(|directory| directory.join(library));
    let after = DEFAULT_DIRECTORIES.iter().map(|directory| Path::new(directory).join(library));
    before.chain(cache.get(library).cloned()).chain(after).find(|path| path.is_file())
}

/// The directories of a search path, in which `$ORIGIN` is the directory of `user`.
fn search_path(user: &Path, text: Option<&str>) -> Vec<PathBuf> {
    let origin = user.canonicalize().ok().and_then(|path| path.parent().map(Path::to_owned)).unwrap_or_default();
    let origin = origin.to_string_lossy();
    let directories = text.into_iter().flat_map(|text| text.split(':')).filter(|part| !part.is_empty());
    directories.map(|part| part.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin).into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// The host's own linker must agree.
    #[test]
    fn an_executable_needs_what_ldd_says() {
        let mut compared = 0;
        for program in ["/bin/sh", "/bin/ls", "/usr/bin/git", "/usr/bin/python3", "/usr/bin/perl"] {
            let Ok(output) = Command::new("ldd").arg(program).output() else { continue };
            if !output.status.success() {
                continue;
            }
            let text = String::from_utf8(output.stdout).unwrap();
            let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
            let mut expected: Vec<PathBuf> = paths.map(|path| path.trim_end_matches(':').into()).collect();
            let found = libraries_of(Path::new(program)).unwrap().unwrap();
            expected.retain(|path| *path != found.linker);
            expected.sort();
            let found: Vec<_> = found.libraries.iter().map(|path| path.canonicalize().unwrap()).collect();
            let expected: Vec<_> = expected.iter().map(|path| path.canonicalize().unwrap()).collect();
            assert_eq!(found, expected, "{program}");
            compared += 1;
        }
        assert!(compared > 0 || !Path::new("/usr/bin/ldd").exists(), "nothing was compared");
    }

    #[test]
    fn what_is_not_dynamic_needs_nothing() {
        for path in ["/etc/hostname", "/bin", "/dev/null"] {
            assert_eq!(libraries_of(Path::new(path)).unwrap(), None, "{path}");
        }
        let own = libraries_of(Path::new("/proc/self/exe")).unwrap();
        assert_eq!(own.is_none(), cfg!(target_feature = "crt-static"), "{own:?}");
    }
}
