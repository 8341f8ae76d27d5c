//! `--results`: what a guest's test results make of the exit code and of the reports.

use crate::common::TempDir;
use crate::need_kvm;
use crate::verdicts::{BANNER, End, PANIC, PANICKED, check, print_and};
use serde_json::Value;
use std::fs;

const PASSED: &str = "KTAP version 1\r\n1..1\r\n    KTAP version 1\r\n    # Subtest: list\r\n    1..2\r\n    ok 1 add\r\n    \
                      ok 2 del # SKIP later\r\nok 1 list\r\n";

fn failed() -> String {
    PASSED.replace("ok 1 add", "# add: 1 != 2\r\n    not ok 1 add").replace("\nok 1 list", "\nnot ok 1 list")
}

#[test]
fn failed_missing_and_absent_tests_are_123() {
    need_kvm!();
    let results = ["--results", "ktap"];
    check(End::PowerOff, PASSED, &results, 0, &[]);
    check(End::PowerOff, &format!("{BANNER}# ./test\r\n{PASSED}"), &["--results", "ktap:console"], 0, &[]);
    check(End::PowerOff, &failed(), &results, 123, &["kickvm: 1 of 2 tests failed: list > add"]);
    let cut = &PASSED[..PASSED.find("    ok 2").unwrap()];
    let missing = "kickvm: 1 of 2 tests failed: list > test 2 of 2";
    check(End::PowerOff, cut, &results, 123, &[missing]);
    let bail_out = "kickvm: 1 of 2 tests failed: test 2 of 2; the test results are incomplete: Bail out! no disk";
    check(End::PowerOff, "TAP version 13\n1..2\nok 1\nBail out! no disk\n", &["--results", "tap"], 123, &[bail_out]);
    let none = "kickvm: the console has no test results (--results go)";
    check(End::PowerOff, PASSED, &["--results", "go"], 123, &[none]);
    check(End::PowerOff, PASSED, &[], 0, &[]);
}

#[test]
fn another_bad_end_keeps_its_code_and_the_tests_are_in_the_reports() {
    need_kvm!();
    let dir = TempDir::new();
    let (json, junit) = (dir.path().join("json"), dir.path().join("junit"));
    let options = ["--results", "ktap", "--report", json.to_str().unwrap(), "--junit", junit.to_str().unwrap()];
    let cut = failed().replace("    ok 2 del # SKIP later\r\nnot ok 1 list\r\n", "");
    check(End::Reset, &format!("{BANNER}{cut}{PANIC}"), &options, 120, &[PANICKED]);
    let value: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let tests = &value["tests"];
    let names: Vec<_> = tests["cases"].as_array().unwrap().iter().map(|case| case["name"].as_str().unwrap()).collect();
    assert_eq!((names, &tests["failed"]), (vec!["add", "test 2 of 2"], &2.into()));
    assert_eq!(tests["cases"][0]["output"], "    # add: 1 != 2\n");
    let xml = fs::read_to_string(junit).unwrap();
    let document = roxmltree::Document::parse(&xml).unwrap();
    let suites: Vec<_> = document.root_element().children().filter(roxmltree::Node::is_element).collect();
    assert_eq!(suites.iter().map(|suite| suite.attribute("tests").unwrap()).collect::<Vec<_>>(), ["1", "2"]);
    let last = suites[1].last_element_child().unwrap();
    assert!(last.children().any(|it| it.has_tag_name("system-out") && it.text().unwrap().contains("Kernel panic")));

    let code = |end, options: &[&str]| print_and(end, &failed(), options).code;
    assert_eq!(code(End::Hang, &["--results", "ktap", "--timeout", "1s"]), Some(124));
    assert_eq!(code(End::Hang, &["--results", "ktap", "--expect", "^not ok 1 list"]), Some(123));
    assert_eq!(code(End::Hang, &["--results", "ktap", "--reject", "^not ok 1 list"]), Some(123));
}

#[test]
fn a_message_of_the_kernel_in_a_result_does_not_change_it() {
    need_kvm!();
    let log = format!("{BANNER}1..2\r\nok 1 a\r\nnot [    1.000000] usb 1-1: x\r\nok 2 b\r\n");
    check(End::PowerOff, &log, &["--results", "ktap"], 123, &["kickvm: 1 of 2 tests failed: b"]);
}
