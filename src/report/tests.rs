use serde_json::Value;

use super::*;
use crate::console::ConsoleLog;
use crate::device::GuestRequest;
use crate::results::{Format, ResultParser};
use crate::vcpu::{ExitStats, UnhandledExit, VcpuExit};
use crate::vmm::{AgentExit, ExitReason, VcpuSummary};

/// Parses a report as JSON. An error has what `resources/report.schema.json` does not permit.
pub fn described(text: &str) -> Result<Value, Vec<String>> {
    let schema: Value = serde_json::from_str(include_str!("../../resources/report.schema.json")).unwrap();
    let value = serde_json::from_str(text).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<_> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
    if errors.is_empty() { Ok(value) } else { Err(errors) }
}

pub fn report(reason: ExitReason) -> Report {
    let began = Instant::now();
    let outcome = Outcome {
        reason,
        vcpus: vec![VcpuSummary { id: 0, rip: Some(0xffff_ffff_8100_0000), stats: ExitStats::default() }],
        console: ConsoleLog { lines: vec!["a line ]]> with \u{1b}[1m".into(); 200], ..ConsoleLog::default() },
        guest: Some((began, began + Duration::from_secs(1))),
        notes: vec!["disk 'x' did not answer".into()],
        unterminated: false,
        tests: None,
    };
    let run = Run {
        mode: "exec",
        command: vec!["sh".into(), "-c".into(), "echo \"<&>\" \u{1b}[0m\u{0}".into()],
        label: String::new(),
        kernel: "/boot/vmlinuz".into(),
        memory: 256 << 20,
        began_at: SystemTime::now(),
        began,
    };
    Report {
        run,
        wall: Duration::from_millis(1234),
        outcome,
        timings: Timings { init: Some(began + Duration::from_millis(100)), ..Timings::default() },
    }
}

fn command(code: u8) -> ExitReason {
    agent(code, "command", true)
}

fn agent(code: u8, kind: &'static str, by_program: bool) -> ExitReason {
    ExitReason::Agent(AgentExit { code, kind, by_program, message: "it ended".into() })
}

fn reasons() -> Vec<ExitReason> {
    let vcpu = |exit| ExitReason::Vcpu { id: 0, exit };
    let unhandled = UnhandledExit { exit: "KVM_EXIT_X".into(), code: vec![], emulation: false };
    vec![
        command(0),
        command(200),
        agent(122, "no-status", false),
        agent(122, "channel", false),
        ExitReason::Kicked,
        ExitReason::UserQuit,
        vcpu(VcpuExit::Guest(GuestRequest::PowerOff)),
        vcpu(VcpuExit::Guest(GuestRequest::Reset)),
        vcpu(VcpuExit::Guest(GuestRequest::Exit(3))),
        vcpu(VcpuExit::Guest(GuestRequest::Panic)),
        vcpu(VcpuExit::TripleFault { rip: None }),
        vcpu(VcpuExit::Unhandled { rip: None, exit: unhandled }),
        vcpu(VcpuExit::Failed("no".into())),
        ExitReason::KernelPanic,
        ExitReason::Unfinished,
        ExitReason::Timeout(Duration::from_secs(1)),
        ExitReason::Signal(15),
        ExitReason::ExpectationsMet,
        ExitReason::RuleViolated("a & b".into()),
        ExitReason::Failed("no <kernel>".into()),
    ]
}

/// The same with test results.
fn report_with_tests(reason: ExitReason) -> Report {
    let mut report = report(reason);
    let mut parser = ResultParser::new(Format::Ktap, "the console");
    parser.push(b"1..5\nok 1 <a> # time=250ms\n# why \x1b]]>\nnot ok 2 b\nok 3 c # SKIP \"x\"\nnot ok 4 d # TODO y\n");
    report.outcome.judge_tests(Some(parser));
    report
}

#[test]
fn every_report_matches_the_schema() {
    for report in reasons().into_iter().flat_map(|reason| [report(reason.clone()), report_with_tests(reason)]) {
        let value = described(&json(&report)).unwrap();
        assert_eq!(value["console"].as_array().unwrap().len(), 200);
        assert_eq!(value["version"], VERSION);
        assert_eq!(value["seconds"]["to_init"], 0.1);
    }
    let text = json(&report(ExitReason::ExpectationsMet));
    let wrong = text.replace("\"exit_code\": 0", "\"exit_code\": 256");
    assert_eq!(described(&wrong), Err(vec!["256 is greater than the maximum of 255".to_owned()]));
}

#[test]
fn a_junit_file_has_one_case_that_passed_failed_or_could_not_be_run() {
    for reason in reasons() {
        let report = report(reason);
        let text = junit(&report);
        let document = roxmltree::Document::parse(&text).unwrap();
        let suites = document.root_element();
        let suite = suites.first_element_child().unwrap();
        let case = suite.first_element_child().unwrap();
        assert_eq!([suites, suite, case].map(|it| it.tag_name().name()), ["testsuites", "testsuite", "testcase"]);
        assert_eq!(suite.attribute("tests"), Some("1"));
        assert_eq!(case.attribute("name").unwrap(), "sh -c echo \"<&>\" \u{fffd}[0m\u{fffd}");
        assert_eq!(case.attribute("time"), Some("1.234"));
        let verdict = case.children().find(|it| matches!(it.tag_name().name(), "failure" | "error"));
        let verdict = verdict.map(|it| (it.tag_name().name(), it.attribute("message").unwrap().to_owned()));
        let counted = (suite.attribute("failures").unwrap(), suite.attribute("errors").unwrap());
        match (report.outcome.reason.code(), verdict) {
            (0, None) => assert_eq!(counted, ("0", "0")),
            (_, Some(("failure", message))) => {
                assert_eq!((counted, message), (("1", "0"), report.outcome.reason.to_string()))
            }
            (_, Some(("error", message))) => {
                assert_eq!((counted, message), (("0", "1"), report.outcome.reason.to_string()))
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(junit(&report(command(1))).contains("<failure"));
    assert!(junit(&report(ExitReason::Timeout(Duration::ZERO))).contains("<error"));
}

#[test]
fn each_test_of_the_guest_is_in_the_reports() {
    let report = report_with_tests(command(0));
    assert_eq!(report.outcome.reason.code(), 123);
    let value: Value = serde_json::from_str(&json(&report)).unwrap();
    let tests = &value["tests"];
    let counts = ["total", "passed", "failed", "skipped", "todo"].map(|count| tests[count].as_u64().unwrap());
    assert_eq!((counts, &tests["format"], &value["decided_by"]), ([5, 1, 2, 1, 1], &"ktap".into(), &"kickvm".into()));
    let outcomes: Vec<_> = tests["cases"].as_array().unwrap().iter().map(|case| case["outcome"].as_str()).collect();
    assert_eq!(outcomes, ["passed", "failed", "skipped", "todo", "failed"].map(Some));

    let text = junit(&report);
    let document = roxmltree::Document::parse(&text).unwrap();
    let root = document.root_element();
    let suite = root.last_element_child().unwrap();
    let counts = |node: roxmltree::Node<'_, '_>| {
        ["tests", "failures", "errors"].map(|count| node.attribute(count).unwrap().parse::<u32>().unwrap())
    };
    assert_eq!((counts(root), counts(suite), suite.attribute("skipped")), ([6, 3, 0], [5, 2, 0], Some("2")));
    let cases: Vec<_> = suite.children().filter(roxmltree::Node::is_element).collect();
    assert_eq!(
        cases.iter().map(|case| case.attribute("name").unwrap()).collect::<Vec<_>>(),
        ["<a>", "b", "c", "d", "test 5 of 5"]
    );
    assert_eq!((cases[0].attribute("classname"), cases[0].attribute("time")), (Some("ktap"), Some("0.250")));
    let child = |case: usize, tag: &str| cases[case].children().find(|child| child.has_tag_name(tag)).unwrap();
    assert_eq!(child(1, "system-out").text(), Some("# why \u{fffd}]]>\n"));
    assert_eq!(child(2, "skipped").attribute("message"), Some("\"x\""));
    assert_eq!(child(3, "skipped").attribute("message"), Some("TODO y"));
    assert_eq!(child(4, "failure").attribute("message"), Some("it has no result"));
}
