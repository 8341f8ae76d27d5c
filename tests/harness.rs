//! The scripts that run tests in nested machines, with a machine that stalls on demand, and the summary of a run.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Stands in for a test binary. Each test writes its name to `log`; the one named in `stalls` stops its machine so many
/// times.
const TESTS: &str = r#"#!/bin/bash
cd "$(dirname "$0")"
if [[ $1 == --list ]]; then printf '%s: test\n' a::first a::broken a::stalls a::last a::ignored; exit; fi
name=$2
echo "$name" >>log
echo 'running 1 test'
read -r left <stalls
if [[ $name == a::stalls && $left != 0 ]]; then
    echo $((left - 1)) >stalls
    touch stalled
    while [[ -e stalled ]]; do sleep 0.01; done
    exit 1
fi
counts='1 passed; 0 failed; 0 ignored' result=ok
case $name in
    a::broken) echo 'it is broken' && counts='0 passed; 1 failed; 0 ignored' result=FAILED ;;
    a::ignored) counts='0 passed; 0 failed; 1 ignored' result=ignored ;;
esac
echo "test $name ... $result"
echo "test result: $result. $counts; 0 measured; 4 filtered out; finished in 0.00s"
[[ $result != FAILED ]]
"#;

/// Stands in for scripts/nested: runs the command here until the machine is to stall.
const MACHINE: &str = r#"#!/bin/bash
cd "$(dirname "$0")"
[[ ! -e none ]] || exit 125
"$@" &
command=$!
until [[ -e stalled ]]; do
    kill -0 "$command" 2>/dev/null || { wait "$command"; exit; }
    sleep 0.01
done
kill -KILL "$command"
wait "$command" 2>/dev/null
rm stalled
exit 124
"#;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

/// A directory with both stand-ins, in which the machine is to stall so many times.
fn set_up(name: &str, stalls: u32) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("kickvm-harness-{}-{name}", std::process::id()));
    fs::create_dir(&directory).unwrap();
    for (file, text) in [("linux_stand_in-0", TESTS), ("machine", MACHINE)] {
        fs::write(directory.join(file), text).unwrap();
        fs::set_permissions(directory.join(file), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(directory.join("stalls"), format!("{stalls}\n")).unwrap();
    directory
}

/// Runs `tests` and returns the exit code, what was printed, and the tests in the order in which they began.
fn run(directory: &Path, require: &str, tests: &[&str]) -> (Option<i32>, String, Vec<String>) {
    let mut command = Command::new(script("nested-tests"));
    command.arg(directory.join("linux_stand_in-0")).arg("--").args(tests);
    command.env("KICKVM_NESTED", directory.join("machine")).env("KICKVM_REQUIRE_KVM", require);
    let output = command.output().unwrap();
    let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
    fs::remove_dir_all(directory).unwrap();
    (output.status.code(), printed(&output), log.lines().map(str::to_owned).collect())
}

fn printed(output: &Output) -> String {
    String::from_utf8([&output.stdout[..], &output.stderr[..]].concat()).unwrap()
}

#[track_caller]
fn assert_lines(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|it| it.starts_with(line)), "no line '{line}':\n{text}");
    }
}

// At most three tests, so that they run in one machine.

#[test]
fn after_a_stall_the_test_that_was_running_runs_again_and_no_other() {
    let (code, text, log) = run(&set_up("once", 1), "1", &["a::first", "a::stalls", "a::ignored"]);
    assert_eq!(
        (code, &log[..]),
        (Some(0), &["a::first", "a::stalls", "a::stalls", "a::ignored"].map(String::from)[..])
    );
    assert_lines(
        &text,
        &[
            "test a::first ... ok",
            "kickvm: stall 1 of a::stalls",
            "test a::stalls ... ok",
            "test a::ignored ... ignored",
            "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in ",
        ],
    );
}

#[test]
fn a_test_during_which_three_machines_stall_fails_and_the_others_run() {
    let (code, text, log) = run(&set_up("thrice", 9), "1", &["a::stalls", "a::last"]);
    assert_eq!(
        (code, &log[..]),
        (Some(101), &["a::stalls", "a::stalls", "a::stalls", "a::last"].map(String::from)[..])
    );
    assert_lines(
        &text,
        &[
            "kickvm: stall 3 of a::stalls",
            "test a::stalls ... FAILED",
            "test a::last ... ok",
            "    a::stalls",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 3 filtered out; finished in ",
        ],
    );
}

#[test]
fn a_test_that_failed_is_not_run_again() {
    let (code, text, log) = run(&set_up("broken", 1), "1", &["a::broken", "a::stalls"]);
    assert_eq!((code, &log[..]), (Some(101), &["a::broken", "a::stalls", "a::stalls"].map(String::from)[..]));
    assert_lines(&text, &["it is broken", "test a::broken ... FAILED", "test a::stalls ... ok"]);
}

#[test]
fn without_a_machine_no_test_has_passed() {
    for (require, expected) in [("1", 1), ("", 0)] {
        let directory = set_up(&format!("none{require}"), 0);
        fs::write(directory.join("none"), "").unwrap();
        let (code, text, log) = run(&directory, require, &["a::first", "a::last"]);
        assert_eq!((code, log.len()), (Some(expected), 0));
        assert_lines(&text, &["test result: ok. 0 passed;", "kickvm: could not run linux_stand_in (2 tests): "]);
    }
}

/// The last line of the summary of `log`, and whether it counts as a success.
fn summary(log: &str, require: &str) -> (String, bool) {
    let mut command = Command::new(script("summary"));
    command.arg("0").env("KICKVM_REQUIRE_KVM", require).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(log.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (printed(&output), output.status.success())
}

#[test]
fn a_test_that_could_not_run_is_not_counted_as_passed() {
    let log = "
     Running tests/tiny.rs (target/debug/deps/tiny-0)
test a ... ok
kickvm: could not run tiny::b: /dev/kvm: Permission denied
test b ... ok
test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
     Running tests/linux_net.rs (target/debug/deps/linux_net-0)
kickvm: could not run linux_net (7 tests): there is no stock kernel
     Running tests/linux_boot.rs (target/debug/deps/linux_boot-0)
kickvm: running linux_boot in a nested machine
kickvm: stall 1 of c::d
test c::d ... ok
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 9s
";
    let expected = "in place: 1 passed; nested: 1 passed; could not run: 8; ignored: 1; stalls: 1
kickvm: 2 passed, 0 failed, 9 skipped
";
    assert_eq!(summary(log, ""), (expected.to_owned(), true));
    assert_eq!(summary(log, "1"), (expected.to_owned(), false));
}
