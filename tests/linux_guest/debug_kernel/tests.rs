//! The kernel's own tests, with real results: KUnit and kselftest.

use super::run;
use crate::common::{TempDir, can_run};
use crate::exec::run::Exec;
use crate::support::assets::Kernel;
use crate::support::transcript::{lines, unstamped};
use crate::this_test;
use serde_json::json;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// The numbers of tests: those that passed, failed and were skipped.
type Counts = [u64; 3];

/// The numbers in the lines with totals that KUnit and kselftest print, such as "# Totals: pass:1 fail:2 skip:3
/// total:6".
fn totals<'a>(lines: impl Iterator<Item = &'a str>) -> Counts {
    let number = |line: &str, word: &str| -> u64 {
        let numbers = line.split(' ').filter_map(|field| field.strip_prefix(word)?.strip_prefix(':'));
        numbers.map(|number| number.parse::<u64>().expect("it is a number")).sum()
    };
    let counts = |line: &str| [number(line, "pass"), number(line, "fail"), number(line, "skip")];
    lines
        .filter(|line| line.contains("# Totals: "))
        .map(counts)
        .fold([0; 3], |[a, b, c], [d, e, f]| [a + d, b + e, c + f])
}

/// The numbers of test cases in a JUnit file, behind that of the run.
fn cases(junit: &Path) -> Counts {
    let xml = fs::read_to_string(junit).expect("there is a file");
    let (_, tests) = xml.split_once(r#"<testsuite name="ktap""#).expect("it has tests");
    let count = |element: &str| tests.matches(element).count() as u64;
    let (failed, skipped) = (count("<failure "), count("<skipped "));
    [count("<testcase ") - failed - skipped, failed, skipped]
}

/// The guest has no user space: KUnit powers it off. The suite of KFENCE fails, because KFENCE is off.
#[test]
fn each_test_of_kunit_is_a_case() {
    let dir = TempDir::new();
    let junit = dir.path().join("junit");
    let guest = linux!(Debug).without_initramfs().options(&["--console", "virtio", "--results", "ktap"]);
    let guest = guest.options(&["--junit", junit.to_str().expect("it is text")]);
    // All suites but that of KASAN, which prints hundreds of reports.
    let words = "kunit.enable=1 kunit.stats_enabled=2 kunit.filter_glob=*[!n] kunit_shutdown=poweroff";
    let (ended, report) = run(guest.append(&format!("loglevel=8 {words}")));
    ended.assert_code(123);
    let counts = totals(lines(&ended.stdout).into_iter().map(unstamped));
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    assert_eq!(cases(&junit), counts);
    let tests = &report["tests"];
    assert_eq!(["passed", "failed", "skipped"].map(|field| tests[field].as_u64().expect("a number")), counts);
    let failed: Vec<_> =
        tests["cases"].as_array().expect("it has cases").iter().filter(|case| case["outcome"] == "failed").collect();
    assert!(failed.iter().all(|case| case["suite"] == "kfence"), "{failed:#?}");
    let why = format!(
        "kickvm: {} of {} tests failed: kfence > test_out_of_bounds_read, ",
        counts[1],
        counts.iter().sum::<u64>()
    );
    assert!(ended.stderr.starts_with(&why), "{}", ended.stderr);
}

/// The test passes, because it causes the report of KASAN on purpose.
#[test]
fn a_report_during_a_test_of_kunit_ends_the_run() {
    let guest = linux!(Debug).without_initramfs().options(&["--console", "virtio", "--fail-on", "default"]);
    let (ended, report) = run(guest.append("loglevel=8 kunit.enable=1 kunit.filter_glob=kasan.kmalloc_oob_right"));
    ended.assert_code(123);
    let fault = &report["faults"][0];
    let title = "KASAN: slab-out-of-bounds Write in kmalloc_oob_right";
    assert_eq!((&fault["title"], &fault["classes"]), (&title.into(), &json!(["kasan"])), "{fault:#}");
}

/// scripts/build-kernel has built them.
#[test]
fn each_test_of_kselftest_is_a_case() {
    let exec = Exec::new(Kernel::BzImage);
    let debug = env::var_os("KICKVM_DEBUG_KERNEL_DIR").ok_or("KICKVM_DEBUG_KERNEL_DIR");
    let possible = exec.as_ref().and(debug.as_ref()).map(drop).map_err(|missing| format!("{missing} is not set"));
    if !can_run(this_test!(), possible) {
        return;
    }
    let (exec, debug) = (exec.expect("it can run"), PathBuf::from(debug.expect("it can run")));
    let junit = exec.scratch.path().join("junit");
    let copy = format!("{}:/kselftest", debug.join("kselftest").display());
    let exec = exec.options(&["--results", "ktap", "--copy", &copy, "--junit"]).options(&[&junit]);
    let ended = exec.sh("exec /kselftest/run_kselftest.sh");
    assert_eq!(ended.status.code(), Some(0), "{}{}", ended.text(), ended.stderr);
    let [passed, failed, skipped] = totals(ended.text().lines());
    assert!(passed > 40, "{}", ended.text());
    assert_eq!(cases(&junit), [passed + 1, failed, skipped], "{}", ended.text()); // get_size prints no totals
}
