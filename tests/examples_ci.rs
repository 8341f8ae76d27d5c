//! Every line of `examples/ci` is what it should be: the files by their own schemas and linters, the commands by kickvm's grammar.
#![cfg(feature = "vmm")]

use clap::Parser;
use kickvm::cli;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

fn template(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ci").join(name)).unwrap()
}

/// The linters come from package registries; without a network that is said.
#[test]
fn the_templates_satisfy_their_linters() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/check-ci");
    let output = Command::new(script).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("cannot fetch the linters") {
        assert_ne!(std::env::var("KICKVM_REQUIRE_KVM").as_deref(), Ok("1"), "{said}");
        eprintln!("kickvm: could not run the_templates_satisfy_their_linters: {said}");
        return;
    }
    assert!(output.status.success(), "{}\n{said}", String::from_utf8_lossy(&output.stdout));
}

/// The words of a command as a shell would see them, variables left alone.
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

/// Every text in a document.
fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => {
            // A list of words is a command too.
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
fn the_commands_in_the_yaml_files_are_grammatical() {
    for name in ["github-actions.yml", "gitlab-ci.yml", "kubernetes-job.yaml"] {
        let document: Value = serde_norway::from_str(&template(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut found = Vec::new();
        texts(&document, &mut found);
        is_one_exec(&found);
    }
}

#[test]
fn the_command_in_the_unit_is_grammatical() {
    let unit = template("kickvm-guest.service").replace("\\\n", " ");
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    is_one_exec(&[command.to_owned()]);
}
