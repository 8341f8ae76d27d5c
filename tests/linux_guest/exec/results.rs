//! `--results`: the test results of a command or of the kernel.

use super::run::Exec;
use serde_json::Value;
use std::fs;

on_kernel!(
    ours_only,
    BzImage,
    tests_that_pass,
    a_test_that_fails,
    a_crash_between_tests,
    results_of_the_kernel,
    a_file,
    a_file_without_an_end
);

const PASSED: &str = "TAP version 13\n1..2\n# selftests: a: b\n# TAP version 13\n# 1..1\n# ok 1 c\nok 1 selftests: a: b\n\
                      ok 2 selftests: a: d # SKIP\n";

/// The output is also forwarded byte for byte.
fn tests_that_pass(exec: Exec) {
    exec.options(&["--results", "ktap"]).busybox().run(&["busybox", "printf", PASSED]).assert(0, PASSED, "");
}

fn a_test_that_fails(exec: Exec) {
    let text = PASSED.replace("ok 1", "not ok 1");
    let ended = exec.options(&["--results", "ktap:stdout"]).busybox().run(&["busybox", "printf", &text]);
    ended.assert_verdict(123, "kickvm: 1 of 2 tests failed: selftests: a: b > c");
    assert_eq!(ended.text(), text);
}

fn a_crash_between_tests(exec: Exec) {
    let json = exec.scratch.path().join("out.json");
    let exec = exec.options(&["--results", "ktap", "--report"]).options(&[json.as_os_str()]);
    let ended =
        exec.sh("echo 1..3; echo ok 1 a; busybox sleep 1; echo c >/proc/sysrq-trigger; echo ok 2 b; echo ok 3 c");
    ended.assert_verdict(120, "kickvm: the guest kernel panicked");
    let value: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let tests = &value["tests"];
    assert_eq!((&tests["passed"], &tests["failed"]), (&1.into(), &2.into()), "{tests}");
    assert_eq!(tests["cases"][2]["name"], "test 3 of 3");
}

/// What is written to /dev/kmsg is a message of the kernel, here with the level of KUnit's results.
fn results_of_the_kernel(exec: Exec) {
    let lines = [
        "KTAP version 1",
        "1..1",
        "    KTAP version 1",
        "    # Subtest: a",
        "    1..1",
        "    not ok 1 b",
        "not ok 1 a",
    ];
    let script: String = lines.iter().map(|line| format!("echo '<6>{line}' >/dev/kmsg; ")).collect();
    let ended = exec.options(&["--results", "ktap:console"]).sh(&(script + "echo ok 1 c"));
    ended.assert_verdict(123, "kickvm: 1 of 1 tests failed: a > b");
    assert_eq!(ended.text(), "ok 1 c\n");
}

/// It is read when the command has ended. A file that is not there has no results.
fn a_file(exec: Exec) {
    let write =
        "echo '<testsuite><testcase name=\"a\"/><testcase name=\"b\"><failure/></testcase></testsuite>' >/tmp/x.xml";
    let ended = exec.options(&["--results", "junit:file=/tmp/x.xml", "--fail-on", "oops"]).sh(write);
    ended.assert_verdict(123, "kickvm: 1 of 2 tests failed: b");
}

fn a_file_without_an_end(exec: Exec) {
    let ended = exec.options(&["--results", "ktap:file=/dev/zero"]).sh("true");
    ended.assert_verdict(123, "kickvm: the guest's file '/dev/zero' has no test results (--results ktap)");
}
