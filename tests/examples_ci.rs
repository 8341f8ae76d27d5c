//! The CI templates in `examples/ci`, this repository's own workflows and its action are valid: the files pass their
//! own schemas and linters, and kickvm parses the commands. The JUnit files that kickvm writes pass the schema of
//! such files.
#![cfg(feature = "vmm")]

#[path = "common/can_run.rs"]
mod can_run;

use can_run::can_run;
use clap::Parser;
use kickvm::cli;
use kickvm::exec::Timings;
use kickvm::report::{self, Report, Run};
use kickvm::results::{Format, ResultParser};
use kickvm::vmm::{ExitReason, Outcome};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// A report of a run whose tests passed, failed and were skipped.
fn junit_report() -> String {
    let run = Run {
        mode: "exec",
        command: vec!["a <&> \u{1}".into()],
        label: String::new(),
        kernel: "vmlinuz".into(),
        memory: 0,
        began_at: SystemTime::now(),
        began: Instant::now(),
    };
    let mut outcome = Outcome { reason: ExitReason::ExpectationsMet, ..Outcome::failed("") };
    let mut parser = ResultParser::new(Format::Ktap, "the console");
    parser.push(b"1..4\nok 1 a # time=1234567ms\n# \xff\x00]]>\nnot ok 2 <b>\nok 3 c # SKIP \"\nok 4 d # TODO x\n");
    outcome.judge_tests(Some(parser));
    report::junit(&Report { run, wall: Duration::from_secs(12345), outcome, timings: Timings::default() })
}

fn template(name: &str) -> String {
    read(&format!("examples/ci/{name}"))
}

fn yaml(path: &str) -> Value {
    serde_norway::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The linters are Debian packages and Python packages. Without a network they may be missing.
#[test]
fn the_templates_pass_their_linters() {
    const LINTER_MISSING: i32 = 125;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/check-ci");
    let report = junit_report();
    // As `kickvm report merge` and a run of several combinations write it.
    let merged = report::merge_texts([("a", Ok(&*report)), ("b <&>", Err("it was not run"))].into_iter());
    let file = |name: &str| std::env::temp_dir().join(format!("kickvm-{}-{name}.xml", std::process::id()));
    let files = [("single", report), ("merged", merged)].map(|(name, xml)| {
        fs::write(file(name), xml).unwrap();
        file(name)
    });
    let output = Command::new(script).args(&files).output().unwrap();
    files.iter().for_each(|file| fs::remove_file(file).unwrap());
    let messages = String::from_utf8_lossy(&output.stderr);
    let possible = if output.status.code() == Some(LINTER_MISSING) { Err(messages.trim().to_owned()) } else { Ok(()) };
    if can_run(this_test!(), possible) {
        assert!(output.status.success(), "{}\n{messages}", String::from_utf8_lossy(&output.stdout));
    }
}

/// Splits a command into words as a shell does, without expanding variables.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => {
                words.extend(Some(std::mem::take(&mut word)).filter(|it| !it.is_empty()))
            }
            c => word.push(c),
        }
    }
    words.extend(Some(word).filter(|it| !it.is_empty()));
    words
}

/// Collects all strings of a document.
fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => {
            // A command can also be a list of words.
            if items.first() == Some(&"kickvm".into()) {
                let words: Vec<_> = items.iter().map(|it| format!("\"{}\"", it.as_str().expect("a word"))).collect();
                found.push(words.join(" "));
            }
            items.iter().for_each(|item| texts(item, found));
        }
        Value::Object(fields) => fields.values().for_each(|field| texts(field, found)),
        _ => {}
    }
}

#[track_caller]
fn is_one_exec(commands: &[String]) {
    let execs: Vec<_> = commands
        .iter()
        .map(|text| words(text))
        .filter(|words| {
            words.first().is_some_and(|first| first.ends_with("kickvm")) && words.get(1).is_some_and(|it| it == "exec")
        })
        .collect();
    assert_eq!(execs.len(), 1, "{commands:#?}");
    let parsed = cli::Cli::try_parse_from(&execs[0]).unwrap_or_else(|error| panic!("{:?}: {error}", execs[0]));
    assert!(matches!(parsed.command, cli::Command::Exec(_)));
}

#[test]
fn the_commands_in_the_yaml_files_parse() {
    for name in ["github-actions.yml", "gitlab-ci.yml", "kubernetes-job.yaml", "buildkite.yml"] {
        let document = yaml(&format!("examples/ci/{name}"));
        let mut found = Vec::new();
        texts(&document, &mut found);
        is_one_exec(&found);
    }
}

#[test]
fn the_command_in_the_unit_parses() {
    let unit = template("kickvm-guest.service").replace("\\\n", " ");
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    is_one_exec(&[command.to_owned()]);
}

/// The list of arguments is also YAML.
#[test]
fn the_command_of_the_nomad_job_parses() {
    let job = template("nomad.hcl");
    let (_, arguments) = job.split_once("args = ").unwrap();
    let arguments: Vec<String> = serde_norway::from_str(&arguments[..=arguments.find(']').unwrap()]).unwrap();
    is_one_exec(&[format!("kickvm \"{}\"", arguments.join("\" \""))]);
}

/// `tests/tiny_guest/slurm.rs` runs the other script.
#[test]
fn the_command_in_the_script_for_nextest_parses() {
    let script = template("in-guest").replace("\\\n", " ");
    let command = script.lines().map(str::trim).find(|line| line.starts_with("kickvm exec ")).unwrap();
    is_one_exec(&[command.to_owned()]);
}

/// What kickvm could not run is tried again; each verdict is final. The API server checks these rules besides the
/// schema (Kubernetes, Job, "Pod failure policy" and "Backoff limit per index").
#[test]
fn the_schedulers_retry_by_exit_code() {
    let job = yaml("examples/ci/kubernetes-job.yaml");
    let (job, pod) = (&job["spec"], &job["spec"]["template"]["spec"]);
    assert_eq!((&job["completionMode"], &job["completions"]), (&json!("Indexed"), &json!(8)));
    assert_eq!(pod["restartPolicy"], "Never");
    assert!(job["backoffLimitPerIndex"].is_u64() && job.get("backoffLimit").is_none());
    let final_codes = &job["podFailurePolicy"]["rules"][1];
    assert_eq!(final_codes["action"], "FailIndex");
    let codes = &final_codes["onExitCodes"];
    assert_eq!((&codes["containerName"], &codes["operator"]), (&pod["containers"][0]["name"], &json!("NotIn")));
    assert_eq!(codes["values"], json!([122, 125, 137, 143]));

    let pipeline = yaml("examples/ci/buildkite.yml");
    assert_eq!(pipeline["steps"][0]["retry"]["automatic"][0]["exit_status"], json!([122, 125, -1]));

    for name in ["kubernetes-job.yaml", "buildkite.yml", "nomad.hcl", "slurm.sbatch", "in-guest"] {
        assert!(template(name).contains("--reserve-codes"), "{name}");
    }
}

#[track_caller]
fn actions_are_pinned(steps: &Value) {
    for action in steps.as_array().unwrap().iter().filter_map(|step| step["uses"].as_str()) {
        let major = action.split_once("@v").and_then(|(_, version)| version.parse::<u32>().ok());
        assert!(major.is_some(), "{action} is not a major version");
    }
}

/// Each job has a time limit and no rights but reading, and takes its actions at a major version. Only the job that
/// publishes a release can write, and it runs nothing of the repository.
#[test]
fn the_workflows_are_limited_and_pinned() {
    for (path, expected) in [
        (".github/workflows/ci.yml", vec!["deny", "dist", "docs", "event-core", "lint", "msrv", "test"]),
        (".github/workflows/release.yml", vec!["build", "publish"]),
    ] {
        let workflow = yaml(path);
        assert_eq!(workflow["permissions"], json!({ "contents": "read" }));
        let jobs = workflow["jobs"].as_object().unwrap();
        assert_eq!(jobs.keys().map(String::as_str).collect::<Vec<_>>(), expected);
        for (name, job) in jobs {
            assert!(job["timeout-minutes"].as_u64().is_some_and(|minutes| minutes <= 90), "{name} has no time limit");
            actions_are_pinned(&job["steps"]);
            if name == "publish" {
                assert!(!job["steps"].to_string().contains("actions/checkout"), "{name} has the repository");
            } else {
                assert!(job.get("permissions").is_none(), "{name} has rights of its own");
            }
        }
    }
}

/// The action at a tag installs the binary of that tag.
#[test]
fn the_action_installs_the_version_that_it_belongs_to() {
    let action = yaml("action/action.yml");
    assert_eq!(action["inputs"]["version"]["default"], env!("CARGO_PKG_VERSION"));
    actions_are_pinned(&action["runs"]["steps"]);
}
