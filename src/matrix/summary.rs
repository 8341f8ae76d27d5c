//! All runs together: the exit code, the table and the reports.

use std::fs;

use serde_json::{Value, json};

use super::Selection;
use crate::report::annotate::Entry;
use crate::report::{VERSION, merge_texts};
use crate::vmm::code;

/// A run that has ended.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    /// The number of the combination.
    pub index: usize,
    /// The exit code.
    pub code: u8,
    /// Whether the failure of another run has ended it.
    pub stopped: bool,
    report: Value, // null if there is none
    junit: Option<String>,
}

impl Ended {
    /// Reads the reports of a run. `code` is the exit code of its process, if that is known.
    pub fn read(selection: &Selection, code: Option<u8>) -> Self {
        let report = fs::read(selection.json()).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let report: Value = report.unwrap_or_default();
        let junit = fs::read_to_string(selection.junit()).ok();
        let reported = || report["exit_code"].as_u64().and_then(|code| u8::try_from(code).ok());
        let code = code.or_else(reported).unwrap_or(code::FAILED);
        Self { index: selection.index, code, stopped: false, report, junit }
    }

    /// What the table and a CI service show of it.
    fn entry(&self, label: &str) -> Entry {
        let Self { code, report, .. } = self;
        let text = |field: &str| report[field].as_str().unwrap_or("").to_owned();
        let list = |list: &Value| list.as_array().cloned().unwrap_or_default();
        let mut faults = list(&report["faults"]);
        faults.retain(|fault| fault["allowed"] == false);
        let title =
            |fault: &Value| (fault["title"].as_str().unwrap_or("").to_owned(), fault["count"].as_u64().unwrap_or(1));
        let log = list(faults.first().map_or(&report["console"], |fault| &fault["report"]));
        Entry {
            name: label.to_owned(),
            code: *code,
            outcome: text("outcome"),
            reason: text("reason"),
            seconds: report["seconds"]["wall"].as_f64().unwrap_or(0.0),
            faults: faults.iter().map(title).collect(),
            log: log.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        }
    }
}

/// The exit code for several runs: the first of 125, 128+n, 122, 121, 120, 124, 123, then any other, then 0.
pub fn worst(codes: impl IntoIterator<Item = u8>) -> u8 {
    let rank = |code: &u8| match *code {
        code::OK => 0,
        code::RULE => 2,
        code::TIMEOUT => 3,
        code::PANIC => 4,
        code::TRIPLE_FAULT => 5,
        code::FAULT => 6,
        code::FAILED => 8,
        code if code >= code::SIGNAL => 7,
        _ => 1,
    };
    codes.into_iter().max_by_key(|code| (rank(code), *code)).unwrap_or(code::OK)
}

/// The codes of the runs that were not stopped.
pub(super) fn decisive(ended: &[Ended]) -> impl Iterator<Item = u8> {
    ended.iter().filter(|run| !run.stopped).map(|run| run.code)
}

/// The run of each combination; `None` for one that was not run.
fn runs<'a>(labels: &'a [String], ended: &'a [Ended]) -> impl Iterator<Item = (&'a String, Option<&'a Ended>)> {
    labels.iter().enumerate().map(|(index, label)| (label, ended.iter().find(|run| run.index == index)))
}

/// The lines of the table.
pub(super) fn table(labels: &[String], ended: &[Ended]) -> Vec<String> {
    let passed = ended.iter().filter(|run| run.code == code::OK).count();
    let complete = decisive(ended).count();
    let not_run = labels.len() - complete;
    let mut lines =
        vec![format!("{} runs: {passed} passed, {} failed, {not_run} not run", labels.len(), complete - passed)];
    let width = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    for (label, run) in runs(labels, ended) {
        let Some(run) = run else {
            lines.push(format!("{label:width$}  not run"));
            continue;
        };
        if run.stopped {
            lines.push(format!("{label:width$}  stopped"));
            continue;
        }
        let entry = run.entry(label);
        let why = if entry.code == code::OK { "" } else { entry.title() };
        let Entry { code, outcome, seconds, .. } = &entry;
        let line = format!("{label:width$}  {code:>3}  {outcome:<12}  {seconds:7.2} s  {why}");
        lines.push(line.trim_end().to_owned());
    }
    lines
}

/// What a CI service shows of the runs that were not stopped.
pub(super) fn entries(labels: &[String], ended: &[Ended]) -> Vec<Entry> {
    let entry = |(label, run): (&String, Option<&Ended>)| Some(run.filter(|run| !run.stopped)?.entry(label));
    runs(labels, ended).filter_map(entry).collect()
}

/// All runs as JSON. `code` is the exit code, unless the runs have not ended.
pub(super) fn json(labels: &[String], ended: &[Ended], code: Option<u8>) -> String {
    let missing = if code.is_some() { "not-run" } else { "unfinished" };
    let report = |(label, run): (&String, Option<&Ended>)| {
        let report = run.map_or(json!({ "outcome": missing, "exit_code": null }), |run| match run.report {
            Value::Null => json!({ "outcome": "unfinished", "exit_code": run.code }),
            _ => run.report.clone(),
        });
        json!({ "combination": label, "run": report })
    };
    let value = json!({
        "version": VERSION,
        "kickvm": env!("CARGO_PKG_VERSION"),
        "mode": "matrix",
        "exit_code": code,
        "runs": runs(labels, ended).map(report).collect::<Value>(),
    });
    format!("{value:#}\n")
}

/// All runs as JUnit; see [`json`].
pub(super) fn junit(labels: &[String], ended: &[Ended], code: Option<u8>) -> String {
    let missing = if code.is_some() { "it was not run" } else { "kickvm has not ended, or was killed" };
    merge_texts(runs(labels, ended).map(|(label, run)| {
        let text = run.ok_or(missing).and_then(|run| run.junit.as_deref().ok_or("it has no report"));
        (label.as_str(), text)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_code_is_the_first_in_this_order() {
        let order = [125, 255, 143, 130, 122, 121, 120, 124, 123, 127, 126, 119, 1, 0];
        for (at, worst_code) in order.into_iter().enumerate() {
            assert_eq!(worst(order[at..].iter().rev().copied()), worst_code);
        }
        assert_eq!(worst([]), 0);
    }

    #[test]
    fn every_report_matches_the_schema() {
        use crate::report::tests::{described, report};
        let labels = ["not run", "without a report", "complete"].map(str::to_owned);
        let report: Value =
            serde_json::from_str(&crate::report::json(&report(crate::vmm::ExitReason::KernelPanic))).unwrap();
        let run = |index, report| Ended { index, code: 120, stopped: false, report, junit: None };
        let ended = [run(1, Value::Null), run(2, report)];
        for (ended, code) in [(&[][..], None), (&ended, Some(120)), (&ended, None)] {
            described(&json(&labels, ended, code)).unwrap();
        }
        assert!(described(&json(&labels, &[run(1, json!({ "mode": "exec" }))], None)).is_err());
    }

    #[test]
    fn a_combination_that_was_not_run_is_no_success() {
        let labels = ["a".to_owned(), "b".to_owned()];
        let report = json!({ "outcome": "power-off", "seconds": { "wall": 1.5 } });
        let run = Ended {
            index: 0,
            code: 0,
            stopped: false,
            report,
            junit: Some("<testsuite><testcase/></testsuite>".to_owned()),
        };
        let table = table(&labels, std::slice::from_ref(&run));
        assert_eq!(table[0], "2 runs: 1 passed, 0 failed, 1 not run");
        assert_eq!(table[1..], ["a    0  power-off        1.50 s", "b  not run"]);
        let junit = junit(&labels, std::slice::from_ref(&run), Some(143));
        assert!(
            junit.contains(r#"tests="2" failures="0" errors="1" time="0.000">"#) && junit.contains("it was not run"),
            "{junit}"
        );
        let json: Value = serde_json::from_str(&json(&labels, &[run], Some(143))).unwrap();
        assert_eq!((&json["exit_code"], &json["runs"][1]["run"]["outcome"]), (&143.into(), &"not-run".into()));
    }
}
