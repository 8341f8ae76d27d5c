//! Several runs of `kickvm exec` from one command line.

use super::run::Exec;
use crate::common::read_report;
use crate::support::assets::{Assets, Kernel};
use serde_json::Value;
use std::fs;

on_kernel!(both, BzImage, two_kernels_with_one_and_two_cpus);

fn two_kernels_with_one_and_two_cpus(exec: Exec) {
    let (ours, stock) = (exec.assets.release.clone(), Assets::find(Kernel::Stock, exec.scratch.path()).unwrap());
    let [json, junit] = ["all.json", "all.xml"].map(|name| exec.scratch.path().join(name));
    let script = format!(
        r#"case "$(uname -r) $(nproc)" in
            "{ours} 1") echo green;;
            "{ours} 2") exit 3;;
            "{} 1") echo c >/proc/sysrq-trigger;;
            *) sleep 1000;;
        esac"#,
        stock.release
    );
    let exec = exec.options(&["--kernel".as_ref(), stock.kernel.as_os_str(), "--report".as_ref(), json.as_os_str()]);
    let exec = exec.options(&["--junit".as_ref(), junit.as_os_str()]);
    let ended = exec.options(&["--cpus", "1,2", "--timeout", "60s", "--memory", "256M"]).sh(&script);
    assert_eq!(ended.status.code(), Some(120), "{}", ended.stderr);
    assert_eq!(ended.text(), "bzImage cpus=1 | green\n");
    assert!(ended.stderr.contains("kickvm: 4 runs: 1 passed, 3 failed, 0 not run\n"), "{}", ended.stderr);

    let value = read_report(&json);
    let run = |run: &Value| {
        let outcome = run["run"]["outcome"].as_str().unwrap().to_owned();
        (run["combination"].as_str().unwrap().to_owned(), outcome, run["run"]["exit_code"].as_u64().unwrap())
    };
    let name = stock.kernel.file_name().unwrap().to_str().unwrap();
    let expected = [
        ("bzImage", 1, "command", 0),
        ("bzImage", 2, "command", 3),
        (name, 1, "panic", 120),
        (name, 2, "timeout", 124),
    ];
    let expected =
        expected.map(|(kernel, cpus, outcome, code)| (format!("{kernel} cpus={cpus}"), outcome.to_owned(), code));
    assert_eq!(value["runs"].as_array().unwrap().iter().map(run).collect::<Vec<_>>(), expected);

    let junit = fs::read_to_string(junit).unwrap();
    let document = roxmltree::Document::parse(&junit).unwrap();
    let suites = document.root_element();
    let counts = ["tests", "failures", "errors"].map(|name| suites.attribute(name).unwrap());
    assert_eq!(counts, ["4", "1", "2"], "{junit}");
}
