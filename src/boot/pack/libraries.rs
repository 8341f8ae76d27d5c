//! The libraries of a dynamic executable, found as the dynamic linker would find them.

use super::elf::{self, Dynamic};
use super::linker_cache;
use crate::boot::Error;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

/// Where libraries are, whatever the cache may say.
const DEFAULT_DIRECTORIES: [&str; 6] =
    ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"];

/// What a dynamic executable needs besides itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Linked {
    /// Its dynamic linker.
    pub linker: PathBuf,
    /// Its libraries, and theirs.
    pub libraries: Vec<PathBuf>,
}

impl Linked {
    /// All files that the executable needs in a guest, and what tells the linker there where they are.
    pub fn files(self) -> impl Iterator<Item = PathBuf> {
        let cache = Path::new(linker_cache::PATH);
        let cache = cache.exists().then(|| cache.to_owned());
        self.libraries.into_iter().chain([self.linker]).chain(cache)
    }
}

/// Finds what the executable at `path` needs; `None` if that is nothing.
pub fn libraries_of(path: &Path) -> Result<Option<Linked>, Error> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Pack { path, source }
    };
    if !path.is_file() {
        return Ok(None);
    }
    let Some(executable) = elf::read(path).map_err(fail(path))? else { return Ok(None) };
    let Some(linker) = executable.linker.clone() else { return Ok(None) };
    let cache = linker_cache::parse(&fs::read(linker_cache::PATH).unwrap_or_default());
    let mut found = Linked { linker: linker.into(), libraries: Vec::new() };
    let mut seen: HashSet<String> =
        found.linker.file_name().map(|name| name.to_string_lossy().into()).into_iter().collect();
    let inherited = search_path(path, executable.rpath.as_deref());
    let mut todo = VecDeque::from([(path.to_owned(), executable)]);
    while let Some((user, dynamic)) = todo.pop_front() {
        for name in &dynamic.needed {
            if !seen.insert(name.clone()) {
                continue;
            }
            let library = find(name, &user, &dynamic, &inherited, &cache)
                .ok_or_else(|| Error::NoLibrary { executable: path.to_owned(), library: name.clone() })?;
            if let Some(dynamic) = elf::read(&library).map_err(fail(&library))? {
                todo.push_back((library.clone(), dynamic));
            }
            found.libraries.push(library);
        }
    }
    found.libraries.sort();
    Ok(Some(found))
}

fn find(
    name: &str,
    user: &Path,
    dynamic: &Dynamic,
    inherited: &[PathBuf],
    cache: &HashMap<String, PathBuf>,
) -> Option<PathBuf> {
    let is_library = |path: &PathBuf| path.is_file();
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(is_library);
    }
    let own = match &dynamic.runpath {
        Some(runpath) => search_path(user, Some(runpath)), // which makes an rpath void
        None => [search_path(user, dynamic.rpath.as_deref()), inherited.to_vec()].concat(),
    };
    let in_directories = |directories: &[PathBuf]| directories.iter().map(|it| it.join(name)).find(is_library);
    in_directories(&own)
        .or_else(|| cache.get(name).cloned().filter(is_library))
        .or_else(|| in_directories(&DEFAULT_DIRECTORIES.map(PathBuf::from)))
}

/// The directories of a search path, in which `$ORIGIN` is where `user` is.
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
