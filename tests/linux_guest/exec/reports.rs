//! `--report` and `--junit`, and `--expect` and `--reject` of `kickvm run`.

use super::run::Exec;
use crate::common::process::default_signals;
use crate::common::read_report;
use std::fs;
use std::process::Command;

on_both_kernels!(a_report_of_a_command);
on_kernel!(ours_only, BzImage, a_report_of_a_failure, expected_and_rejected_lines);

fn a_report_of_a_command(exec: Exec) {
    let (json, junit) = (exec.scratch.path().join("out.json"), exec.scratch.path().join("out.xml"));
    let release = exec.assets.release.clone();
    let log = exec.scratch.path().join("log");
    let exec = exec.options(&["--report".as_ref(), json.as_os_str(), "--junit".as_ref(), junit.as_os_str()]);
    let exec = exec.options(&["--log".as_ref(), log.as_os_str()]);
    let ended = exec.sh("echo on; printf off >&2; exit 5");
    ended.assert(5, "on\n", "off");
    let log = fs::read_to_string(log).unwrap();
    for line in ["stdout: on", "stderr: off", "kickvm: the command ended with status 5"] {
        assert!(log.lines().any(|it| it[13..] == *line), "no '{line}' in {log}");
    }
    let value = read_report(&json);
    assert_eq!(
        (&value["outcome"], &value["exit_code"], &value["decided_by"]),
        (&"command".into(), &5.into(), &"guest".into())
    );
    assert!(value["kernel"]["banner"].as_str().unwrap().starts_with(&format!("Linux version {release} ")), "{value}");
    let seconds = |name: &str| value["seconds"][name].as_f64().unwrap_or_else(|| panic!("no {name}: {value}"));
    let order = ["to_init", "to_command", "to_first_output", "to_exit", "wall"].map(seconds);
    assert!(order.is_sorted() && order[0] > 0.0, "{order:?}");
    assert!(
        value["exits"]["total"].as_u64().unwrap() > 0
            && value["memory"]["peak_resident_bytes"].as_u64() > Some(1 << 20)
    );
    let xml = fs::read_to_string(junit).unwrap();
    let document = roxmltree::Document::parse(&xml).unwrap();
    let failure = document.descendants().find(|it| it.has_tag_name("failure")).expect("there is a failure");
    assert_eq!(failure.attribute("message"), Some("the command ended with status 5"));
}

fn a_report_of_a_failure(exec: Exec) {
    let json = exec.scratch.path().join("out.json");
    let exec = exec.options(&["--root", "/no/such", "--report"]).options(&[json.as_os_str()]);
    let ended = exec.run(&["true"]);
    ended.assert(125, "", "kickvm: cannot pack '/no/such': No such file or directory\n");
    let value = read_report(&json);
    assert_eq!((&value["outcome"], &value["decided_by"]), (&"failed".into(), &"kickvm".into()));
}

fn expected_and_rejected_lines(exec: Exec) {
    let run = |options: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kickvm"));
        default_signals(&mut command);
        command.args(["run", "--console", "none", "--timeout", "2m", "--kernel"]).arg(&exec.assets.kernel);
        let output = command.arg("--initramfs").arg(&exec.assets.initramfs).args(options).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), stderr.lines().next().unwrap_or_default().to_owned())
    };
    // The shell waits for ever, and its prompt is an incomplete line.
    assert_eq!(run(&["--expect", "^Hello from Linux", "--expect", "^guest# $"]), (0, String::new()));
    let said = "kickvm: a console line matched --reject '^Hello': Hello from Linux";
    let (code, line) = run(&["--reject", "^Hello"]);
    assert!(code == 123 && line.starts_with(said), "{code} {line}");
    let missing = "kickvm: the guest powered off, but no console line had matched --expect '^never$'";
    assert_eq!(run(&["--append", "kickvm.once", "--expect", "^never$"]), (123, missing.to_owned()));
}
