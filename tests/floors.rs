//! Imports run one way: a floor uses only the floors below it.

use std::fs;
use std::path::{Path, PathBuf};

/// The floors, lowest first. `lib.rs` only declares them.
const FLOORS: [&str; 16] = [
    "event", "sys", "memory", "device", "boot", "vcpu", "results", "console", "vmm", "exec", "report", "matrix",
    "doctor", "cli", "main", "lib",
];

fn rank(floor: &str) -> Option<usize> {
    FLOORS.iter().position(|name| *name == floor)
}

/// The floor that the file at `path`, relative to `src`, belongs to.
fn floor_of(path: &Path) -> &str {
    let first = path.iter().next().and_then(|first| first.to_str()).expect("paths are not empty and ASCII");
    first.strip_suffix(".rs").unwrap_or(first)
}

/// `text` without comments and literals, whose words are not imports.
fn code(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if c == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let end = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                end
            });
            end.map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("'\"'") || rest.starts_with("b'\"'") {
            3
        } else {
            code.push(c);
            c.len_utf8()
        };
        rest = &rest[skip..];
    }
    code
}

/// The floors that `text` names, in paths such as `crate::vmm::Vmm`, `kickvm::{boot, exec::run}` and
/// `super::super::sys`.
fn imports(text: &str, depth: usize) -> Vec<String> {
    let code = code(text);
    let ups = "super::".repeat(depth.max(1));
    let mut found = Vec::new();
    for prefix in ["crate::", "kickvm::", &ups] {
        for (at, _) in code.match_indices(prefix) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue; // a longer path or name
            }
            let rest = &code[at + prefix.len()..];
            match rest.strip_prefix('{') {
                Some(group) => found.extend(members(group)),
                None => found.extend(word(rest)),
            }
        }
    }
    found
}

fn word(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!word.is_empty()).then_some(word)
}

/// The first word of each member of a `{…}` group that has just been opened.
fn members(group: &str) -> Vec<String> {
    let (mut depth, mut members, mut start) = (1, Vec::new(), 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || depth == 1 && c == ',' {
            members.extend(word(group[start..at].trim_start()));
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    members
}

/// The imports of `text`, a file of `floor` that is `depth` modules deep, that point upward.
fn upward(floor: &str, depth: usize, text: &str) -> Vec<String> {
    let own = rank(floor);
    imports(text, depth).into_iter().filter(|import| rank(import) > own).collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, found),
            false => found.extend(Some(path).filter(|path| path.extension().is_some_and(|it| it == "rs"))),
        }
    }
}

#[test]
fn no_import_points_upward() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 100, "{} files", files.len());
    for file in files {
        let path = file.strip_prefix(&src).unwrap();
        let floor = floor_of(path);
        assert!(rank(floor).is_some(), "{} belongs to no floor", path.display());
        if floor == "lib" {
            continue;
        }
        // `super` of src/a/mod.rs and src/a.rs is the crate, that of src/a/b.rs is `a`.
        let depth = path.iter().count() - usize::from(path.ends_with("mod.rs"));
        let found = upward(floor, depth, &fs::read_to_string(&file).unwrap());
        assert!(found.is_empty(), "{} ({floor}) imports {}", path.display(), found.join(", "));
    }
}

#[test]
fn an_upward_import_is_found_in_every_spelling() {
    for text in [
        "use crate::vmm::Vmm;",
        "use crate::{event, vmm::{Vmm, code}};",
        "fn f() -> crate::vmm::Error { todo!() }",
        "use super::super::vmm;",
        "use kickvm::vmm;",
    ] {
        assert_eq!(upward("device", 2, text), ["vmm"], "{text}");
    }
    for text in [
        "use crate::event::{Events, vmm};",
        "// see crate::vmm\nuse crate::sys;",
        "/// [`crate::vmm::Vmm`]\nconst TEXT: &str = \"crate::vmm\";",
        "use super::vmm;",
        "use my_crate::vmm;",
    ] {
        assert!(upward("device", 2, text).is_empty(), "{text}");
    }
}
