//! `kickvm report merge`, with the JUnit files of runs.

use crate::common::TempDir;
use crate::common::process::{Ended, contained, end, kickvm};
use crate::need_kvm;
use crate::support::guests::{EXIT_7, HELLO, SPIN};
use crate::support::run::run;
use std::fs;
use std::path::Path;
use std::process::Command;

fn merge(files: &[&Path]) -> Ended {
    let mut command = kickvm(&["report", "merge"]);
    command.args(files);
    end(command)
}

/// The counts of the root, and the elements of that name.
fn totals(xml: &str, element: &str) -> (String, usize) {
    let document = roxmltree::Document::parse(xml).unwrap();
    let counts = ["tests", "failures", "errors"].map(|it| document.root_element().attribute(it).unwrap());
    (counts.join(" "), document.descendants().filter(|it| it.has_tag_name(element)).count())
}

#[test]
fn merged_reports_have_the_verdicts_of_all_runs() {
    need_kvm!();
    let dir = TempDir::new();
    let path = |name: &str| dir.path().join(name);
    let (green, red, killed, merged) = (path("green"), path("red"), path("killed"), path("merged"));
    for (guest, junit, code) in [(&HELLO, &green, 0), (&EXIT_7, &red, 7)] {
        assert_eq!(run(guest, &["--junit", junit.to_str().unwrap()]).end().code, Some(code));
    }
    let mut running = run(&SPIN, &["--junit", killed.to_str().unwrap()]).start();
    running.wait_for("up");
    running.child.kill().unwrap();
    running.child.wait().unwrap();

    let stdout = merge(&[&green, &red, &killed]);
    assert_eq!((stdout.code, stdout.stderr.as_str()), (Some(0), ""));
    assert_eq!(totals(&stdout.stdout, "testcase"), ("3 1 1".to_owned(), 3));
    merge(&[&green, &red, &killed, "--output".as_ref(), &merged]).assert(0, "", &[]);
    assert_eq!(fs::read_to_string(&merged).unwrap(), stdout.stdout);
    merge(&[&green, "-o".as_ref(), &merged]).assert(0, "", &[]);
    assert_eq!(totals(&fs::read_to_string(&merged).unwrap(), "testcase"), ("1 0 0".to_owned(), 1));
}

#[test]
fn an_input_that_cannot_be_merged_is_an_error_in_the_result() {
    let dir = TempDir::new();
    let good = dir.file("good", b"<testsuite><testcase name='a'/></testsuite>");
    let missing = dir.path().join("missing");
    let huge = dir.path().join("huge");
    fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
    let bomb = b"<!DOCTYPE x [<!ENTITY a 'aa'><!ENTITY b '&a;&a;'>]><testsuite><testcase>&b;</testcase></testsuite>";
    for (file, problem) in [
        (missing.clone(), "cannot open JUnit file 'FILE': No such file or directory"),
        (dir.file("empty", b""), "cannot use JUnit file 'FILE': it is empty"),
        (
            dir.file("text", b"ok 1"),
            "cannot use JUnit file 'FILE': it is not valid XML: text outside the root element at byte 4",
        ),
        (dir.file("binary", b"<\xff>"), "cannot use JUnit file 'FILE': it is not UTF-8"),
        (
            dir.file("bomb", bomb),
            "cannot use JUnit file 'FILE': it has a document type declaration, which kickvm does not read",
        ),
        (huge, "cannot use JUnit file 'FILE': it is larger than 32M"),
    ] {
        let problem = problem.replace("FILE", file.to_str().unwrap());
        let ended = merge(&[&file, &good]);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(125), format!("kickvm: {problem}\n").as_str()));
        assert_eq!(totals(&ended.stdout, "error"), ("2 0 1".to_owned(), 1));
        assert!(ended.stdout.contains(&problem), "{}", ended.stdout);
    }
    let same = format!(
        "kickvm: cannot write --output '{0}': the command line uses the same file, '{0}', for something else",
        good.display()
    );
    merge(&[&good, "-o".as_ref(), &good]).assert(125, "", &[&same]);
    assert_eq!(fs::read_to_string(&good).unwrap(), "<testsuite><testcase name='a'/></testsuite>");
}

#[test]
fn pipes_and_standard_input_are_read_to_their_end() {
    let dir = TempDir::new();
    let a = dir.file("a", b"<testsuite><testcase name='a'/></testsuite>");
    let b =
        dir.file("b", &[&b"<testsuite><testcase name='b'>"[..], &[b'x'; 200_000], b"</testcase></testsuite>"].concat());
    let merged = dir.path().join("merged");
    let mut command = Command::new("bash");
    let script = r#"cat "$1" | "$0" report merge <(cat "$1") /dev/stdin <(cat "$2") -o "$3""#;
    contained(&mut command).args(["-c", script, env!("CARGO_BIN_EXE_kickvm")]).args([&a, &b, &merged]);
    end(command).assert(0, "", &[]);
    assert_eq!(totals(&fs::read_to_string(merged).unwrap(), "testcase"), ("3 0 0".to_owned(), 3));
}

/// A FIFO may never get a writer.
#[test]
fn a_fifo_with_a_name_is_refused() {
    let dir = TempDir::new();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let ended = merge(&[&fifo]);
    let why = format!("kickvm: cannot use JUnit file '{}': it is not a regular file\n", fifo.display());
    assert_eq!((ended.code, ended.stderr), (Some(125), why));
}

#[test]
fn a_file_that_is_given_twice_is_refused() {
    let dir = TempDir::new();
    let file = dir.file("file", b"<testsuite><testcase/></testsuite>");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("file", &link).unwrap();
    let output = dir.file("output", b"old");
    let why = format!("kickvm: the inputs '{}' and '{}' are the same file", file.display(), link.display());
    merge(&[&file, &link, "-o".as_ref(), &output]).assert(125, "", &[&why]);
    assert_eq!(fs::read(&output).unwrap(), b"old");
}

/// What the output was before is never left in place: the result is complete, or an error.
#[test]
fn a_result_that_cannot_be_written_leaves_an_error() {
    let dir = TempDir::new();
    let merged = dir.file("merged", b"<testsuite tests='1'><testcase name='old'/></testsuite>");
    let text = [&b"<testsuite><testcase>"[..], &[b'x'; 100_000], b"</testcase></testsuite>"].concat();
    let input = dir.file("input", &text);
    let mut command = Command::new("sh");
    let kickvm = ["sh", env!("CARGO_BIN_EXE_kickvm"), "report", "merge", "-o"];
    contained(&mut command).args(["-c", "ulimit -f 2; exec \"$@\""]).args(kickvm).args([&merged, &input]);
    let why = format!("kickvm: cannot write --output '{}': File too large", merged.display());
    end(command).assert(125, "", &[&why]);
    let left = fs::read_to_string(&merged).unwrap();
    assert_eq!(totals(&left, "error"), ("1 0 1".to_owned(), 1));
    assert!(left.contains("kickvm has not ended yet, or was killed"), "{left}");
}
