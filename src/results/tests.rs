use super::*;
use TestOutcome::{Failed, Passed, Skipped, Todo};

const KSELFTEST: &str = include_str!("fixtures/kselftest.txt");
const KUNIT: &str = include_str!("fixtures/kunit.txt");
const TAP14: &str = include_str!("fixtures/tap14.txt");
const GO: &str = include_str!("fixtures/go.jsonl");
const LIBTEST: &str = include_str!("fixtures/libtest.jsonl");
const JUNIT: &str = include_str!("fixtures/junit.xml");
/// All of them have failed tests.
const FIXTURES: [(Format, &str); 6] = [
    (Format::Ktap, KSELFTEST),
    (Format::Ktap, KUNIT),
    (Format::Tap, TAP14),
    (Format::Go, GO),
    (Format::Libtest, LIBTEST),
    (Format::Junit, JUNIT),
];

fn parse(format: Format, text: impl AsRef<[u8]>, complete: bool) -> TestResults {
    let mut parser = ResultParser::new(format, "the file");
    parser.push(text.as_ref());
    parser.finish(complete)
}

fn failed(why: &str) -> TestOutcome {
    Failed(why.to_owned())
}

fn skipped(why: &str) -> TestOutcome {
    Skipped(why.to_owned())
}

/// The full names and outcomes.
fn cases(results: &TestResults) -> Vec<(String, TestOutcome)> {
    results.cases.iter().map(|case| (case.to_string(), case.outcome.clone())).collect()
}

#[track_caller]
fn assert_cases(results: &TestResults, expected: &[(&str, TestOutcome)]) {
    let expected: Vec<_> = expected.iter().map(|(name, outcome)| ((*name).to_owned(), outcome.clone())).collect();
    assert_eq!(cases(results), expected);
}

#[track_caller]
fn output<'a>(results: &'a TestResults, name: &str) -> &'a str {
    &results.cases.iter().find(|case| case.name == name).unwrap().output
}

/// The outcomes of tests that are only numbered, as letters.
#[track_caller]
fn outcomes(format: Format, text: &str) -> String {
    let letter = |case: &TestCase| match case.outcome {
        Passed => 'P',
        Failed(_) => 'F',
        Skipped(_) => 'S',
        Todo(_) => 'T',
    };
    let results = parse(format, text, true);
    let letters = results.cases.iter().map(letter).collect::<String>();
    letters + results.problem.as_deref().map_or("", |_| "!")
}

#[test]
fn each_test_of_a_kselftest_is_a_case() {
    let results = parse(Format::Ktap, KSELFTEST, true);
    assert_cases(
        &results,
        &[
            ("selftests: pipe: capacity > grow", Passed),
            ("selftests: pipe: capacity > shrink", Todo("the kernel rounds up".into())),
            ("selftests: pipe: capacity > limit", failed("")),
            ("selftests: pipe: capacity > huge: needs CAP_SYS_RESOURCE", skipped("huge: needs CAP_SYS_RESOURCE")),
            ("selftests: pipe: splice.sh", Passed),
            ("selftests: pipe: slow > first", Passed),
            ("selftests: pipe: slow > test 2 of 3", failed("TIMEOUT 2 seconds")),
            ("selftests: pipe: slow > test 3 of 3", failed("TIMEOUT 2 seconds")),
            ("selftests: pipe: tee", skipped("tee(2) is not supported")),
            ("selftests: pipe: crash > global.write", Passed),
            ("selftests: pipe: crash", failed("exit=139")),
            ("selftests: size: get_size > get runtime memory use", Passed),
        ],
    );
    assert_eq!((results.total(), results.failed, results.problem.as_deref()), (12, 4, None));
    assert_eq!(output(&results, "limit"), "# # capacity.c:41: expected 4096, but it is 8192\n");
    assert!(output(&results, "selftests: pipe: splice.sh").ends_with("# copying 4 pages\n"));
    assert!(output(&results, "selftests: pipe: crash").ends_with("# Segmentation fault\n"));
}

#[test]
fn each_test_of_kunit_is_a_case_and_a_suite_is_none() {
    let results = parse(Format::Ktap, KUNIT, true);
    assert_cases(
        &results,
        &[
            ("list-test > list_add", Passed),
            ("list-test > list_del", failed("")),
            ("list-test > list_debug", skipped("needs CONFIG_DEBUG_LIST")),
            ("hash > hash_32 > 8 bits", Passed),
            ("hash > hash_32 > 16 bits", Passed),
            ("hash > hash_64", Passed),
            ("broken", failed("")),
            ("cmdline > noint", Passed),
            ("cmdline > lead_int", Passed),
        ],
    );
    assert!(output(&results, "list_del").ends_with("to be true, but is false\n"));
    assert_eq!(output(&results, "8 bits"), "random: crng init done\n");
    assert_eq!(output(&results, "broken"), "    # broken: failed to initialize (-12)\n");
    assert_eq!(results.failure().unwrap(), "2 of 9 tests failed: list-test > list_del, broken");
    // Kernels before 5.19 have no version line in a suite, and indent by a tab.
    let old = KUNIT.replace("        KTAP version 1\n", "").replace("    KTAP version 1\n", "").replace("    ", "\t");
    assert_eq!(cases(&parse(Format::Ktap, old, true)), cases(&results));
}

#[test]
fn tests_after_a_crash_are_failed() {
    let cut = KUNIT.find("        ok 2 16 bits").unwrap();
    let text = format!("{}BUG: kernel NULL pointer dereference\n", &KUNIT[..cut]);
    let results = parse(Format::Ktap, text, false);
    assert_cases(
        &results,
        &[
            ("list-test > list_add", Passed),
            ("list-test > list_del", failed("")),
            ("list-test > list_debug", skipped("needs CONFIG_DEBUG_LIST")),
            ("hash > hash_32 > 8 bits", Passed),
            ("hash > hash_32", failed("it has no result")),
            ("hash > test 2 of 2", failed("it has no result")),
            ("test 3 of 4", failed("it has no result")),
            ("test 4 of 4", failed("it has no result")),
        ],
    );
    assert!(output(&results, "hash_32").contains("BUG: kernel NULL pointer"));
    // The runner of kselftest prints the name of a test before it starts it.
    let cut = KSELFTEST.find("# copying").unwrap();
    let results = parse(Format::Ktap, format!("{}BUG: x\n", &KSELFTEST[..cut]), false);
    let names: Vec<_> = results.cases[4..].iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names, ["selftests: pipe: splice.sh", "test 3 of 5", "test 4 of 5", "test 5 of 5"]);
    assert!(results.cases[4].output.ends_with("BUG: x\n"));
}

#[test]
fn tap_has_subtests_yaml_and_diagnostics_after_a_failure() {
    let results = parse(Format::Tap, TAP14, true);
    assert_cases(
        &results,
        &[
            ("parser > an empty file", Passed),
            ("parser > a long line", failed("")),
            ("parser > issue #42", Passed),
            ("writer > bare", Passed),
            ("unfinished", Todo("the header".into())),
            ("sync", failed("")),
            ("no network", skipped("no network")),
        ],
    );
    assert_eq!(results.problem, None);
    let times: Vec<_> = results.cases[1..3].iter().map(|case| case.time.unwrap().as_micros()).collect();
    assert_eq!(times, [12_500, 1_500]);
    assert!(output(&results, "a long line").contains("message: it was cut"));
    assert_eq!((&results.cases[3].output, results.cases[3].time), (&String::new(), None));
    assert_eq!(output(&results, "sync").lines().count(), 3, "the note before it, and two lines after it");
}

#[test]
fn results_of_ktap_and_tap_are_counted_once() {
    for (text, expected) in [
        ("1..2\nok 1\nok 2\n", "PP"),
        ("ok 1\nok 2\n1..2\n", "PP"),
        ("TAP version 13\n1..1\nok 1 a\nTAP version 13\n1..2\nok 1 b\nok 2 c\n", "PPP"),
        ("1..1\nok 1 a\n1..1\nnot ok 1 b\n", "PF"),
        ("ok 1 a\n1..1\nok 1 b\nok 2 c\n1..2\n", "PPP"),
        ("1..2\nok 1\n", "PF"),
        ("1..1\nok 1\nok 2\n", "PP!"),
        ("1..3\nok 1\nBail out! no disk\n", "PFF!"),
        ("1..0 # SKIP no device\n", "S"),
        ("1..0\n", ""),
        ("1..0 # SKIP no device\n1..1\nok 1\n", "SP"),
        // Suites of a kernel module have no plan.
        ("1..1\nok 1 a\nok 1 b\nok 1 c\n", "PPP"),
        // Tests that run in parallel (kselftest --netns).
        ("1..3\nok 2 b\nok 3 c\nok 1 a\n", "PPP"),
        ("1..3\nok 1\nok 3\n", "PPF"),
        ("ok 1\nok 3\n", "PPF"),
        ("1..2\nok 1\nok 3\n", "PPF!"),
        ("1..2\nok 1\nok 1\n", "PPF!"),
        ("1..2\nok 2\nok 2\n", "PPF!"),
        ("1..1\n1..1\nok 1\n", "P!"),
        ("1..2\nok 1\n1..1\nok 2\n", "PP!"),
        ("KTAP version 1\n1..1\n  1..2\n  ok 1\n  ok 1\nok 1 a\n", "PPF!"),
        ("KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n  ok 1 x\nnot ok 1 y\n", "PF"),
        ("KTAP version 1\n1..1\n  KTAP version 1\n  1..2\n  ok 1 x\nok 1 y # SKIP\n", "P"),
        ("KTAP version 1\n1..1\n  KTAP version 1\n  1..2\n  ok 1 x\nok 1 y\n", "PF"),
        ("KTAP version 1\n1..1\n  1..1\n  ok 1 x\n  1..1\n  ok 1 y\nok 1 z\n", "PP"),
        (
            "1..6\nok 1 a # skipped: x\nnot ok 2 # XFAIL y\nok 3 a # TIMEOUT 3 s\nnot ok 4 # error no\nok 5 a #1\nok 6 a # x\n",
            "STFFPP",
        ),
        ("1..1\n  ---\nok 1 a\n", "P"),
        ("1..2\nok 1 a\n  ---\n  ok 9 in a YAML block\nok 2 a\n", "PP"),
        ("1..2\nok 1 a\n# ---\n# not ok 1 b\nnot ok 2 a\n", "PF"),
        ("okay\nok, then\nok 2nd\nnot okay\nTAP version\nTAP version 1x\n1..x\n1..5 bottles\n", "FFFFF"),
    ] {
        assert_eq!(outcomes(Format::Ktap, text), expected, "{text}");
    }
    assert_eq!(outcomes(Format::Tap, "TAP version 13\n1..2\nok\nnot ok - b\n"), "PF");
    assert_eq!(outcomes(Format::Tap, "ok 1\nok 2\n"), "PP!", "a plan is mandatory");
    let stream = "TAP version 14\n    1..1\n    ok 1\nok 1 a\n1..1\n";
    assert_eq!(outcomes(Format::Tap, &stream.repeat(2)), "PP", "a version begins another stream");
    assert_eq!(outcomes(Format::Ktap, "1..1\nok\nok 1\nnot ok b\n"), "PF!", "a success needs a number");
}

/// The problems are those of `prove -e cat`.
#[test]
fn results_of_tap_are_in_order_and_have_one_plan() {
    for (text, expected, problem) in [
        ("1..2\nok 1 - a\nok 3 - b\n", "PPF!", "there is result 3 instead of 2"),
        ("1..2\nok 1\nok 1\n", "PPF!", "there is result 1 instead of 2"),
        ("1..2\nok 2\nok 2\n", "PPF!", "there is result 2 instead of 1"),
        ("1..2\nok 2\nok 1\n", "PP!", "there is result 2 instead of 1"),
        ("1..1\nok 0\n", "PF!", "there is result 0 instead of 1"),
        ("ok 1\nok 1\n1..2\n", "PPF!", "there is result 1 instead of 2"),
        ("1..1\n1..1\nok 1\n", "P!", "there is more than one plan"),
        ("1..1\nok 1\n1..1\n", "P!", "there is more than one plan"),
        ("1..1\nok 1\n1..1\nok 1\n", "PP!", "there is more than one plan"),
        ("ok 1\n1..2\nok 2\n", "PP!", "the plan is neither before the results nor behind them"),
        ("1..0 # SKIP x\n1..1\nok 1\n", "P!", "there is more than one plan"),
        ("1..1\n    1..1\n    ok 2\nok 1\n", "PF!", "there is result 2 instead of 1"),
    ] {
        assert_eq!(outcomes(Format::Tap, text), expected, "{text}");
        assert_eq!(parse(Format::Tap, text, true).problem.as_deref(), Some(problem), "{text}");
    }
}

#[test]
fn results_of_the_kernel_do_not_disturb_those_of_a_program() {
    let mut parser = ResultParser::new(Format::Ktap, "the console");
    let program =
        "TAP version 13\n1..2\n# selftests: a: b\nok 1 selftests: a: b\n# selftests: a: c\n!\nnot ok 2 selftests: a: c";
    for line in program.lines() {
        if line == "!" {
            parser.read_line("WARNING: before", true);
            KUNIT.lines().for_each(|line| parser.read_line(line, true));
            parser.read_line("WARNING: after", true);
        } else {
            parser.read_line(line, false);
        }
    }
    let results = parser.finish(true);
    let mut expected = vec![("selftests: a: b".to_owned(), Passed), ("selftests: a: c".to_owned(), failed(""))];
    expected.extend(cases(&parse(Format::Ktap, KUNIT, true)));
    assert_eq!(cases(&results), expected);
    assert_eq!(results.cases[1].output, "# selftests: a: c\nWARNING: before\nWARNING: after\n");
}

#[test]
fn go_tests_and_packages_that_fail_are_cases() {
    let results = parse(Format::Go, GO, true);
    assert_cases(
        &results,
        &[
            ("example.com/a > TestOpen/missing", failed("")),
            ("example.com/a > TestOpen", failed("")),
            ("example.com/a > TestRoot", skipped("")),
            ("example.com/b > (package)", failed("the package failed")),
            ("example.com/c > TestExit", failed("it did not end")),
            ("example.com/d > TestFine", Passed),
        ],
    );
    assert_eq!(results.cases[0].time, Some(Duration::from_millis(250)));
    assert_eq!(output(&results, "TestOpen/missing"), "    open_test.go:9: want ENOENT\n");
    assert!(output(&results, "(package)").ends_with("b/b_test.go:3:1: syntax error\n"));
    assert_eq!(results.problem, None);
    let cut = &GO[..GO.find("{\"Action\":\"pass\",\"Package\":\"example.com/d\",\"Elapsed\"").unwrap()];
    assert_eq!(parse(Format::Go, cut, true).problem.unwrap(), "package 'example.com/d' did not end");
}

#[test]
fn tests_of_libtest_and_nextest_are_cases() {
    let results = parse(Format::Libtest, LIBTEST, true);
    assert_cases(
        &results,
        &[
            ("disk::tests::reads", Passed),
            ("disk::tests::writes", failed("")),
            ("slow", skipped("takes an hour")),
            ("panics", failed("panic did not contain expected string")),
            ("bench_read", Passed),
            ("net::tap > opens#2", Passed),
            ("net::tap > closes", Passed),
        ],
    );
    assert_eq!(output(&results, "disk::tests::writes"), "thread panicked at src/disk.rs:7\n");
    assert_eq!(results.problem, None);
    let cut = &LIBTEST[..LIBTEST.find("{ \"type\": \"test\", \"name\": \"slow\"").unwrap()];
    let results = parse(Format::Libtest, cut, true);
    assert_eq!(results.cases[2], TestCase::new("", "slow", failed("it did not end")));
    assert_eq!(results.problem.unwrap(), "a test binary did not end");
}

/// The events of a test binary of libtest, or of cargo-nextest.
fn suite(started: u64, events: &str, end: &str) -> String {
    let events: String = events
        .split_whitespace()
        .map(|event| {
            let (event, name) = event.split_once(':').unwrap();
            format!("{{\"type\":\"test\",\"event\":\"{event}\",\"name\":\"{name}\"}}\n")
        })
        .collect();
    let start = format!("{{\"type\":\"suite\",\"event\":\"started\",\"test_count\":{started}}}\n");
    let counts: Vec<_> = end.split(' ').collect();
    let names = ["passed", "failed", "ignored", "measured", "filtered_out"];
    let counts: String = names.iter().zip(counts).map(|(name, count)| format!(",\"{name}\":{count}")).collect();
    format!("{start}{events}{{\"type\":\"suite\",\"event\":\"ok\"{counts}}}\n")
}

#[test]
fn results_that_libtest_counts_but_does_not_print_are_failed() {
    for (started, events, end, expected) in [
        (2, "ok:a", "2 0 0 0 0", "PF"),
        (2, "ok:a", "1 0 0 0 0", "PF"),
        (1, "ok:a", "2 0 0 0 0", "PF"),
        (1, "ok:a", "1 1 0 0 0", "PF!"),
        (1, "ok:a", "0 1 0 0 0", "P!"),
        (1, "ok:a", "1 0 0 1 0", "PF"),
        (2, "ok:a", "1 0 1 0 0", "PF"),
        (2, "started:a started:b ok:a", "2 0 0 0 0", "PF"),
        (2, "ok:a ignored:b", "1 0 1 0 7", "PS"),
        (2, "", "2 0 0 0 0", "FF"),
        (0, "", "0 0 0 0 3", ""),
        (2, "ok:p$a", "2 0 0 0 0", "PF"),
        (1, "started:p$a started:p$b ok:p$a", "2 0 0 0 0", "PF"),
        // cargo-nextest counts ignored tests again in each part of a suite, and has no event for each.
        (5, "started:p$b started:p$c ok:p$a", "1 0 2 0 0", "PSS"),
        (3, "started:p$b started:p$c ok:p$a", "2 0 2 0 0", "PFF"),
    ] {
        assert_eq!(outcomes(Format::Libtest, &suite(started, events, end)), expected, "{started} {events}: {end}");
    }
    let two = suite(1, "started:a", "1 0 0 0 0") + &suite(1, "started:a ok:a", "1 0 0 0 0");
    let results = parse(Format::Libtest, &two, true);
    assert_cases(&results, &[("a", Passed), ("test 2 of 2", failed("it has no result"))]);
    // A suite that cargo-nextest has split.
    let split = suite(5, "started:p$b ok:p$a started:p$c ignored:p$b", "1 0 1 0 0") + &suite(5, "ok:p$c", "1 0 1 0 1");
    assert_eq!(outcomes(Format::Libtest, &split), "PSP");
    let text = suite(u64::MAX, "ok:a", "18446744073709551615 0 18446744073709551615 0 0");
    let results = parse(Format::Libtest, text, true);
    assert_eq!((results.total(), results.cases.len()), (u64::MAX, 101));
}

#[test]
fn cases_of_a_junit_file_are_cases() {
    let results = parse(Format::Junit, JUNIT, true);
    assert_cases(
        &results,
        &[
            ("test_disk.Disk > test_read", Passed),
            ("test_disk.Disk > test_write[<ä>]", failed("assert 1 == 2\nwhere &")),
            ("test_net > test_tap", skipped("needs root")),
            ("test_net > test_setup", failed("no fixture")),
            ("pytest > Disabled", skipped("")),
            ("pytest > later", Todo("not yet".into())),
            ("outer > inner > leaf", Passed),
            ("inner", failed("the suite has failures without a test")),
        ],
    );
    assert_eq!(results.cases[1].time, Some(Duration::from_secs(1000)));
    assert_eq!(results.cases[1].output, "line 7 <here>\n  <raw> written A");
    for (text, problem) in [
        (
            "<testsuite><testcase name='a'>&f;</testcase></testsuite>".to_owned(),
            "the XML is not valid: unknown entity '&f;'",
        ),
        (
            "<!DOCTYPE testsuites [<!ENTITY f '<failure/>'>]><testsuites/>".to_owned(),
            "the XML is not valid: it has a document type declaration, which kickvm does not read",
        ),
        ("<?xml version='1.0'?><!DOCTYPE x><testsuites/>".to_owned(), "the XML is not valid: it has a document type"),
        ("<testsuite><testcase name='x'".to_owned() + &" a=''".repeat(99), "the XML is not valid: "),
        ("<testsuite name='x'><testcase name='a'/>".to_owned(), "the XML is not valid: it ends within an element"),
        ("<testsuite><x>".to_owned() + &"<a>".repeat(100), "the XML is not valid: more than 64 elements are nested"),
        ("<testsuite>".to_owned() + &" ".repeat(16 << 20), "the XML has more than 16 MiB"),
    ] {
        let found = parse(Format::Junit, &text, true).problem.unwrap();
        assert!(found.starts_with(problem), "{text:.80}: {found}");
    }
}

#[test]
fn each_failure_in_a_junit_file_is_a_failed_test() {
    for (text, expected) in [
        ("<testsuites errors='1'><testsuite><testcase/></testsuite></testsuites>", "PF"),
        ("<testsuites failures='-1'><testsuite><testcase/></testsuite></testsuites>", "PF"),
        ("<testsuites failures='1'><testsuite failures='1'><testcase/></testsuite></testsuites>", "PF"),
        ("<testsuites failures='1'><testsuite><testcase><failure/></testcase></testsuite></testsuites>", "F"),
        ("<testsuite xmlns:q='urn:x'><q:testcase><q:failure/></q:testcase><testcase name='k'/></testsuite>", "FP"),
        ("<q:testsuite xmlns:q='urn:x' failures='1'><testcase/></q:testsuite>", "PF"),
        ("<testsuite><testcase/><error message='set-up'/></testsuite>", "PF"),
        ("<testsuite><testcase><error/><testcase/></testcase></testsuite>", "PF"),
        ("<testsuite><testcase>&lt;&#65;</testcase></testsuite>", "P"),
    ] {
        assert_eq!(outcomes(Format::Junit, text), expected, "{text}");
    }
}

#[test]
fn text_around_a_junit_file_is_other_output() {
    let file = "<?xml version='1.0'?>\n<testsuite><testcase/></testsuite>\n";
    for (text, expected) in [
        (format!("a < b & c <d>\n{file}kernel message < here & <there>\n"), "P"),
        (format!("{file}<p>{file}"), "PP"),
        (format!("{file}<testsuites><testcase><failure/></testcase></testsuites>"), "PF"),
        (format!("{file}<testsuite><testcase><failure/></testcase>"), "PF!"),
        (format!("<?xml version='1.0'?>\n{file}"), "!"),
        (format!("<testsuite><testcase/>{file}"), "P!"),
    ] {
        assert_eq!(outcomes(Format::Junit, &text), expected, "{text}");
    }
    // A second file that is cut anywhere.
    for cut in 1..file.trim_end().len() {
        let results = parse(Format::Junit, format!("{file}{}", &file[..cut]), true);
        assert!(results.failure().is_some(), "{}", &file[..cut]);
    }
}

#[test]
fn results_are_a_failure_unless_a_test_passed_and_none_failed() {
    let failure = |text: &str, complete| parse(Format::Ktap, text, complete).failure();
    assert_eq!(failure("", true).unwrap(), "the file has no test results (--results ktap)");
    assert_eq!(failure("1..1\nok 1\n", false), None);
    assert_eq!(failure("1..1\nok 1 # SKIP\n", true), None);
    assert_eq!(failure("ok 1\n", true), None);
    let incomplete = "the test results are incomplete: ";
    assert_eq!(failure("ok 1\n", false).unwrap(), format!("{incomplete}the run ended before the tests did"));
    let text = (1..8).map(|n| format!("not ok {n} a{n}\n")).collect::<String>();
    assert_eq!(failure(&text, true).unwrap(), "7 of 7 tests failed: a1, a2, a3, a4, a5, …");
    let why = format!("2 of 3 tests failed: test 2 of 3, test 3 of 3; {incomplete}Bail out! x");
    assert_eq!(failure("1..3\nok 1\nBail out! x\n", true).unwrap(), why);
}

#[test]
fn results_that_are_cut_anywhere_are_a_failure() {
    for (format, text) in FIXTURES {
        assert!(parse(format, text, true).failed > 0);
        for cut in 0..text.len() {
            for complete in [false, true] {
                let results = parse(format, &text.as_bytes()[..cut], complete);
                // A text that has its plan at the end, or none, may be cut where nothing failed so far.
                let may_pass = complete && matches!(format, Format::Go | Format::Libtest);
                assert!(results.failure().is_some() || may_pass, "{format:?} {complete} {cut}");
            }
        }
    }
    // All tests passed, but not all tests were run.
    for (format, text) in [
        (
            Format::Ktap,
            "KTAP version 1\n1..2\n    KTAP version 1\n    # Subtest: a\n    1..2\n    ok 1 b\n    ok 2 c\nok 1 a\nok 2 d\n",
        ),
        (Format::Ktap, "TAP version 13\n1..2\n# TAP version 13\n# 1..2\n# ok 1 b\n# ok 2 c\nok 1 a\nok 2 d\n"),
        (Format::Tap, "TAP version 14\n    ok 1 - b\n    1..1\nok 1 - a\nok 2 - c\n1..2\n"),
        (Format::Junit, "<testsuite><testcase name='a'/></testsuite>\n"),
    ] {
        assert_eq!(parse(format, text, true).failure(), None);
        let end = text.trim_end().len() - if format == Format::Junit { 0 } else { 2 };
        for cut in 0..end {
            for complete in [false, true] {
                let results = parse(format, &text.as_bytes()[..cut], complete);
                assert!(results.failure().is_some(), "{format:?} {complete} {:?}", &text[..cut]);
            }
        }
    }
}

#[test]
fn garbage_is_no_panic_and_memory_is_bounded() {
    let mut random = 1_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let pieces: [&[u8]; 24] = [
        b"ok ",
        b"not ",
        b"1..",
        b"7",
        b"#",
        b" ",
        b"    ",
        b"\t",
        b"\n",
        b"\r\n",
        b"\xff\xfe",
        b"# SKIP",
        b"TODO",
        b"KTAP version 1\n",
        b"# Subtest: ",
        b"Bail out!",
        b"---",
        b"...",
        b"selftests: ",
        b"\"",
        b"{",
        b"<testsuite>",
        b"</",
        "ä".as_bytes(),
    ];
    for (format, fixture) in FIXTURES {
        for _ in 0..300 {
            let mut text = fixture.as_bytes().to_vec();
            for _ in 0..next() % 40 {
                let at = usize::try_from(next()).unwrap() % text.len();
                let piece = pieces[usize::try_from(next()).unwrap() % pieces.len()];
                text.splice(at..(at + usize::try_from(next()).unwrap() % 9).min(text.len()), piece.iter().copied());
            }
            let results = parse(format, text, next() % 2 == 0);
            assert!(results.cases.len() as u64 <= results.total());
        }
    }
    let results = parse(Format::Ktap, "1..18446744073709551615\nok 18446744073709551615 x\n", true);
    assert_eq!((results.total(), results.cases.len()), (u64::MAX, 101));
    for repeated in [1, 200] {
        let mut parser = ResultParser::new(Format::Ktap, "the file");
        let line = "x".repeat(1 << 20) + "\n";
        for n in 1..=MAX_CASES + 10 {
            parser.push(format!("not ok {n} {}\n", "name".repeat(n % 200 / repeated)).as_bytes());
            if n % 1000 == 0 {
                parser.push(line.as_bytes());
            }
        }
        let results = parser.finish(true);
        assert_eq!(results.failed, MAX_CASES as u64 + 10);
        let bytes = |case: &TestCase| case.suite.len() + case.name.len() + case.output.len();
        let kept: usize = results.cases.iter().map(bytes).sum();
        assert!(kept <= MAX_BYTES && results.bytes == kept, "{kept}");
        assert!(results.cases.len() <= MAX_CASES && results.cases.len() > MAX_CASES / 4, "{}", results.cases.len());
        assert_eq!(results.cases.len() == MAX_CASES, repeated == 200, "output leaves room for names");
    }
}
