//! Several runs from one command line: their output, table, reports and exit code.

use crate::common::process::{Ended, contained, end, kickvm, start};
use crate::common::{TempDir, read_report};
use crate::support::guests::{HELLO, SPIN};
use crate::support::images;
use crate::{guest, halt, need_kvm, never, outb, print_serial};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs::{self, File};
use std::process::Command;

guest!(PANIC, print_serial!(r"[    1.000000] Kernel panic - not syncing: VFS\r\n"), outb!("0x602", "1"), never!(),);
guest!(STATUS_7, outb!("0xf4", "7"), halt!(),);

/// Kernels with these names, and the options for them.
fn kernels(dir: &TempDir, guests: &[(&str, &[u8])]) -> Vec<String> {
    let kernel = |(name, code): &(&str, &[u8])| dir.file(name, &images::elf(code)).to_str().unwrap().to_owned();
    guests.iter().flat_map(|guest| ["-k".to_owned(), kernel(guest)]).collect()
}

/// The runs of these `kernels`, started with an ignored signal.
fn ignoring(signal: &str, kernels: &[String], options: &[&str]) -> Command {
    let mut command = Command::new("env");
    command.arg(format!("--ignore-signal={signal}")).args([env!("CARGO_BIN_EXE_kickvm"), "run", "--memory", "2M"]);
    contained(command.args(kernels).args(options));
    command
}

fn run(kernels: &[String], options: &[&str]) -> Ended {
    let mut command = kickvm(&["run", "--memory", "2M"]);
    command.args(kernels).args(options);
    end(command)
}

#[test]
fn each_combination_is_a_run_and_the_worst_decides() {
    need_kvm!();
    let dir = TempDir::new();
    let kernels = kernels(&dir, &[("green", &HELLO), ("panic", &PANIC), ("red", &STATUS_7), ("slow", &SPIN)]);
    let [json, junit, log] =
        ["all.json", "all.xml", "log"].map(|name| dir.path().join(name).to_str().unwrap().to_owned());
    let options =
        ["--cpus", "1,2", "--jobs", "3", "--timeout", "2s", "--report", &json, "--junit", &junit, "--log", &log];
    let ended = run(&kernels, &options);
    assert_eq!(ended.code, Some(120), "{ended:?}");
    for cpus in [1, 2] {
        assert!(ended.stdout.contains(&format!("green cpus={cpus} | Hello from a tiny guest\r\n")), "{ended:?}");
    }
    let table: Vec<_> = ended.stderr.lines().skip_while(|line| !line.contains(" runs: ")).collect();
    assert_eq!(table[0], "kickvm: 8 runs: 2 passed, 6 failed, 0 not run");
    let verdicts = [("green", 0, ""), ("panic", 120, "kernel panic: VFS"), ("red", 7, ""), ("slow", 124, "")];
    for (at, (name, code, why)) in verdicts.into_iter().enumerate() {
        for (line, cpus) in [(table[1 + 2 * at], 1), (table[2 + 2 * at], 2)] {
            assert!(line.starts_with(&format!("kickvm: {name} cpus={cpus}")) && line.contains(why), "{line}");
            assert!(line.contains(&format!(" {code} ")), "{line}");
        }
    }
    let value = read_report(json.as_ref());
    assert_eq!((&value["exit_code"], value["runs"].as_array().unwrap().len()), (&120.into(), 8));
    assert_eq!(value["runs"][3]["combination"], "panic cpus=2");
    assert_eq!(value["runs"][3]["run"]["outcome"], "panic");
    let junit = fs::read_to_string(junit).unwrap();
    assert!(junit.contains(r#"<testsuites tests="8" failures="2" errors="4" time=""#), "{junit}");
    assert!(junit.contains("[slow cpus=2]"), "{junit}");
    let log = fs::read_to_string(log + ".3").unwrap();
    let lines: Vec<_> = log.lines().map(|line| &line[13..]).collect();
    assert!(lines[0].starts_with("kickvm: boot protocol: "), "{log}");
    for line in ["console: [    1.000000] Kernel panic - not syncing: VFS", "kickvm: the guest kernel panicked"] {
        assert!(lines.contains(&line), "no '{line}' in {log}");
    }
}

#[test]
fn an_ignored_sigchld_does_not_change_the_verdicts() {
    need_kvm!();
    let dir = TempDir::new();
    let ended = end(ignoring("CHLD", &kernels(&dir, &[("green", &HELLO), ("red", &STATUS_7)]), &[]));
    assert_eq!(ended.code, Some(7), "{ended:?}");
    assert!(ended.stderr.contains("kickvm: 2 runs: 1 passed, 1 failed, 0 not run"), "{ended:?}");
}

#[test]
fn an_ignored_signal_stays_ignored() {
    need_kvm!();
    let dir = TempDir::new();
    let spin = kernels(&dir, &[("a", &SPIN), ("b", &SPIN)]);
    let running = start(ignoring("INT", &spin, &["--timeout", "1s", "--jobs", "1"]));
    std::thread::sleep(std::time::Duration::from_millis(500));
    running.signal(Signal::SIGINT);
    let ended = running.end();
    assert_eq!(ended.code, Some(124), "{ended:?}");
    assert!(ended.stderr.contains("kickvm: 2 runs: 0 passed, 2 failed, 0 not run"), "{ended:?}");
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    need_kvm!();
    let dir = TempDir::new();
    let mut command = kickvm(&["run", "--memory", "2M"]);
    command.args(kernels(&dir, &[("a", &HELLO), ("b", &HELLO)])).stdout(File::create("/dev/full").unwrap());
    let ended = end(command);
    assert_eq!(ended.code, Some(125), "{ended:?}");
    let line = "kickvm: cannot write the output of the runs: No space left on device\n";
    assert!(ended.stderr.contains(line), "{ended:?}");
}

#[test]
fn runs_with_the_same_name_have_numbers() {
    need_kvm!();
    let dir = TempDir::new();
    let kernel = kernels(&dir, &[("a", &HELLO)]);
    let ended = run(&[&kernel[..], &kernel].concat(), &["--append-each", "", "--append-each", "x\u{1b}"]);
    let names: Vec<_> = ended.stdout.lines().filter_map(|line| Some(line.split_once(" | ")?.0.trim_end())).collect();
    for name in ["a ''", "a x?", "a '' #2", "a x? #2"].map(|name| name.replace("a ", &format!("{} ", kernel[1]))) {
        assert!(names.contains(&name.as_str()), "no '{name}' in {ended:?}");
    }
}

#[test]
fn a_failure_or_a_signal_ends_the_other_runs() {
    need_kvm!();
    let dir = TempDir::new();
    let slow = kernels(&dir, &[("red", &STATUS_7), ("slow", &SPIN), ("never", &SPIN)]);
    let json = dir.path().join("all.json");
    let ended = run(&slow, &["--jobs", "2", "--fail-fast", "--report", json.to_str().unwrap()]);
    assert_eq!(ended.code, Some(7), "{ended:?}");
    let value = read_report(&json);
    assert_eq!((&value["exit_code"], &value["runs"][2]["run"]["outcome"]), (&7.into(), &"not-run".into()));
    assert!(ended.stderr.contains("kickvm: 3 runs: 0 passed, 1 failed, 2 not run"), "{ended:?}");
    assert!(ended.stderr.contains("kickvm: slow   stopped\n"), "{ended:?}");

    let mut command = kickvm(&["run", "--memory", "2M", "--jobs", "2"]);
    command.args(&slow[2..]).arg("--report").arg(&json);
    let running = start(command);
    std::thread::sleep(std::time::Duration::from_millis(500));
    let value = read_report(&json);
    assert_eq!((&value["exit_code"], &value["runs"][1]["run"]["outcome"]), (&Value::Null, &"unfinished".into()));
    running.signal(Signal::SIGINT);
    let ended = running.end();
    assert_eq!(ended.code, Some(130), "{ended:?}");
}

#[test]
fn options_that_several_runs_cannot_share_are_errors() {
    let dir = TempDir::new();
    let two = kernels(&dir, &[("a", &HELLO), ("b", &HELLO)]);
    let ended = run(&two, &["--console", "file=x"]);
    assert_eq!(ended.code, Some(125));
    assert!(ended.stderr.contains("cannot use --console file=x for several runs"), "{ended:?}");
    for options in [&["--jobs", "0"][..], &["--cpus", "1,0"], &["--cpus", "1,,2"], &["--report", "/nonexistent/x"]] {
        assert_eq!(run(&two, options).code, Some(125), "{options:?}");
    }
    let none = TempDir::new().path().join("none").to_str().unwrap().to_owned();
    let ended = run(&["-k".into(), none.clone(), "-k".into(), none], &[]);
    assert_eq!(ended.code, Some(125), "{ended:?}");
    assert!(ended.stderr.contains("kickvm: 2 runs: 0 passed, 2 failed"), "{ended:?}");
}
