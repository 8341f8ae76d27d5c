//! The chapters of the course that boot Linux: `tests/course.rs` has the others.

use crate::common::can_run;
use crate::this_test;
use std::process::Command;
use transcript::transcript;

#[path = "../common/transcript.rs"]
mod transcript;

/// The output has each line of the chapter's text, in order. `…` stands for any text, and alone for any lines.
#[track_caller]
fn prints_its_transcript(test: &str, chapter: &str) {
    let variables = ["KICKVM_STOCK_KERNEL", "KICKVM_INITRAMFS", "KICKVM_STOCK_MODULES"];
    let files: Result<Vec<_>, _> = variables.iter().map(|name| std::env::var(name).map_err(|_| *name)).collect();
    if !can_run(test, files.as_ref().map(drop).map_err(|name| format!("{name} is not set"))) {
        return;
    }
    // `cargo test` builds the examples, `cargo test --test linux_guest` does not.
    let program = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples").join(chapter);
    let output = Command::new(&program).args(files.unwrap()).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stderr.is_empty(), "{}\n{stdout}\n{stderr}", output.status);
    let mut lines = stdout.lines();
    for expected in transcript(chapter).lines().filter(|line| *line != "…") {
        assert!(lines.any(|line| matches(line.trim_end(), expected)), "{chapter} lacks '{expected}' in\n{stdout}");
    }
}

fn matches(line: &str, pattern: &str) -> bool {
    match pattern.split_once('…') {
        None => line == pattern,
        Some((start, rest)) => line.strip_prefix(start).is_some_and(|line| {
            line.char_indices().map(|(at, _)| at).chain([line.len()]).any(|at| matches(&line[at..], rest))
        }),
    }
}

#[test]
fn chapter_8_boots_a_stock_kernel() {
    prints_its_transcript(this_test!(), "08-linux");
}

#[test]
fn chapter_9_boots_two_processors_and_powers_off() {
    prints_its_transcript(this_test!(), "09-acpi-smp");
}

#[test]
fn chapter_10_boots_with_a_disk_and_leaves_by_a_kick() {
    prints_its_transcript(this_test!(), "10-virtio");
}
