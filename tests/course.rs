//! The course in `docs` and `course`: each reference of the text exists, each program prints what its chapter states,
//! and each solution passes the check of its exercise.
#![cfg(feature = "vmm")]

#[path = "common/can_run.rs"]
mod can_run;
#[path = "../course/checks/mod.rs"]
mod checks;
#[path = "common/has_kvm.rs"]
mod has_kvm;
#[path = "common/transcript.rs"]
mod transcript;
#[path = "../course/solutions/mod.rs"]
mod work;

use can_run::can_run;
use has_kvm::has_kvm;
use regex_lite::Regex;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use transcript::transcript;

/// For `checks`: these are the solutions.
const ARE_STARTERS: bool = false;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(Path::new(ROOT).join(folder)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(path.to_str().unwrap(), extension));
        } else if path.extension().is_some_and(|it| it == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn pages() -> Vec<(PathBuf, String)> {
    files("docs/src", "md").into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// The first groups of all matches.
fn matches<'a>(text: &'a str, expression: &str) -> Vec<&'a str> {
    let groups = Regex::new(expression).unwrap();
    groups.captures_iter(text).map(|found| found.get(1).unwrap().as_str()).collect()
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap().to_str().unwrap().to_owned()
}

/// The chapters: folders of `course` whose name begins with a number.
fn chapters() -> Vec<String> {
    let folders = fs::read_dir(Path::new(ROOT).join("course")).unwrap();
    let names = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut chapters: Vec<_> = names.filter(|name| name.starts_with(|c: char| c.is_ascii_digit())).collect();
    chapters.sort();
    chapters
}

/// mdBook prints an empty listing, and no error, for an anchor that does not exist.
#[test]
fn each_listing_is_an_anchor_and_each_anchor_is_shown() {
    let mut shown = BTreeSet::new();
    for (page, text) in pages() {
        for include in matches(&text, r"\{\{#include ([^}]*)\}\}") {
            let (file, anchor) = include.split_once(':').unwrap_or_else(|| panic!("{include} has no anchor"));
            let file =
                page.parent().unwrap().join(file).canonicalize().unwrap_or_else(|why| panic!("{include}: {why}"));
            shown.insert((file, anchor.to_owned()));
        }
    }
    let mut anchors = BTreeSet::new();
    for file in files("course", "rs") {
        let text = fs::read_to_string(&file).unwrap();
        let begins = matches(&text, r"// ANCHOR: (\w+)\n");
        assert_eq!(begins, matches(&text, r"// ANCHOR_END: (\w+)\n"), "{}", file.display());
        anchors.extend(begins.into_iter().map(|anchor| (file.clone(), anchor.to_owned())));
    }
    assert_eq!(shown, anchors);
}

#[test]
fn each_link_and_each_path_in_the_text_exists() {
    for (page, text) in pages() {
        let links = matches(&text, r"\]\(([^)]+)\)");
        let relative = links.into_iter().filter(|link| !link.starts_with("https://"));
        for link in relative.map(|link| link.split('#').next().unwrap()).filter(|file| !file.is_empty()) {
            assert!(page.parent().unwrap().join(link).exists(), "{} links to {link}", page.display());
        }
        for path in matches(&text, r"`((?:src|course|tests|scripts|docs|examples|resources)/[^`\s]*)`") {
            assert!(Path::new(ROOT).join(path).exists(), "{} names {path}", page.display());
        }
    }
}

#[test]
fn the_summary_lists_each_page_and_each_page_is_listed() {
    let summary = fs::read_to_string(Path::new(ROOT).join("docs/src/SUMMARY.md")).unwrap();
    let listed: BTreeSet<_> = matches(&summary, r"\((\S+)\.md\)").into_iter().map(str::to_owned).collect();
    let pages: BTreeSet<_> = pages().iter().map(|(page, _)| name(page)).filter(|it| it != "SUMMARY").collect();
    assert_eq!(listed, pages);
    let numbered: Vec<_> = pages.into_iter().filter(|page| page.starts_with(|c: char| c.is_ascii_digit())).collect();
    assert_eq!(numbered, chapters());
}

#[test]
fn chapter_1_has_100_lines_at_most_and_no_program_more_than_700() {
    for chapter in chapters() {
        let lines: usize = files(&format!("course/{chapter}"), "rs")
            .iter()
            .map(|file| fs::read_to_string(file).unwrap().lines().count())
            .sum();
        assert!(lines <= if chapter.starts_with("01-") { 100 } else { 700 }, "{chapter}: {lines} lines");
    }
}

#[test]
fn each_chapter_has_a_diagram_and_two_exercises() {
    for chapter in chapters() {
        let text = fs::read_to_string(Path::new(ROOT).join(format!("docs/src/{chapter}.md"))).unwrap();
        assert!(text.contains(&format!("](images/{chapter}.svg)")), "{chapter} has no diagram");
        let stated = matches(&text, r"make exercise N=(\w+)`");
        let exercises: Vec<_> = files("course/exercises", "rs").iter().map(|file| name(file)).collect();
        let own = exercises.iter().filter_map(|file| file.strip_prefix('e')).filter(|it| it.starts_with(&chapter[..2]));
        assert_eq!(stated, own.collect::<Vec<_>>(), "{chapter}");
        assert!(stated.len() >= 2, "{chapter}");
    }
}

/// An example is built with the tests unless only some of them are.
fn build(programs: &[String]) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(ROOT).args(["build", "--quiet"]);
    cargo.args(cfg!(feature = "remote_endpoint").then_some("--all-features"));
    cargo.args(programs.iter().flat_map(|program| ["--example", program]));
    assert!(cargo.status().unwrap().success());
    // This test is in `deps`.
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples")
}

/// `tests/linux_guest/course.rs` runs the chapters from 8 on, which boot Linux.
#[test]
fn each_program_prints_what_its_chapter_states() {
    if !can_run(this_test!(), has_kvm()) {
        return;
    }
    let mut chapters = chapters();
    chapters.retain(|chapter| chapter.as_str() < "08");
    let programs = build(&chapters);
    for chapter in chapters {
        let output = Command::new(programs.join(&chapter)).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(transcript(&chapter), String::from_utf8_lossy(&output.stdout), "{chapter}\n{stderr}");
        assert!(output.status.success() && stderr.is_empty(), "{chapter}: {}\n{stderr}", output.status);
    }
}
