//! The examples in `examples/runners`: tools that run tests start them in a guest. The guest's root is the host's.

use super::run::Exec;
use crate::common::can_run;
use crate::this_test;
use std::path::Path;
use std::process::Command;

/// Runs `words` in a copy of an example, with kickvm in PATH. Returns what it printed.
fn run(exec: &Exec, example: &str, words: &[&str]) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_kickvm"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/runners").join(example);
    let copy = exec.scratch.path().join(example);
    assert!(Command::new("cp").arg("-r").args([&source, &copy]).status().unwrap().success());
    let mut command = Command::new(words[0]);
    command.current_dir(copy).args(&words[1..]).env("PATH", path).env("KICKVM_KERNEL", &exec.assets.kernel);
    command.env("GOCACHE", exec.scratch.path().join("go-build"));
    // Those of scripts/cargo are for kickvm itself.
    let of_cargo = std::env::vars().filter(|(name, _)| name.starts_with("CARGO_") && name != "CARGO_HOME");
    for (name, _) in of_cargo {
        command.env_remove(name);
    }
    let output = command.output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{out}{err}");
    out
}

/// Whether the tool is there.
fn has(tool: &str) -> Result<(), String> {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|path| path.join(tool).is_file());
    if found { Ok(()) } else { Err(format!("there is no {tool}")) }
}

fn example(tool: &str, test: &str) -> Option<Exec> {
    let exec = Exec::new(crate::support::assets::Kernel::BzImage);
    let possible = exec.as_ref().map(drop).map_err(|missing| format!("{missing} is not set")).and_then(|()| has(tool));
    can_run(test, possible).then(|| exec.expect("it can run"))
}

#[test]
fn make_runs_a_target_in_a_guest() {
    let Some(exec) = example("make", this_test!()) else { return };
    let out = run(&exec, "make", &["make", "check-in-guest"]);
    assert!(out.ends_with("passed\n"), "{out}");
}

#[test]
fn pytest_runs_in_a_guest() {
    let Some(exec) = example("pytest-3", this_test!()) else { return };
    let out = run(&exec, "pytest", &["kickvm", "exec", "--", "pytest-3", "-q", "-p", "no:cacheprovider"]);
    assert!(out.contains("1 passed"), "{out}");
}

#[test]
fn cargo_runs_test_binaries_in_a_guest() {
    let Some(exec) = example("cargo", this_test!()) else { return };
    let out = run(&exec, "cargo", &["cargo", "test", "--offline", "--lib"]);
    assert!(out.contains("test this_is_a_guest_of_kickvm ... ok"), "{out}");
}

#[test]
fn go_runs_test_binaries_in_a_guest() {
    let Some(exec) = example("go", this_test!()) else { return };
    let out = run(&exec, "go", &["go", "test", "-exec", "kickvm exec --", "-count=1", "."]);
    assert!(out.starts_with("ok "), "{out}");
}
