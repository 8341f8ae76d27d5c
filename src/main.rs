//! kickvm: parse, build, run, tell, exit code. Nothing else.

mod cli;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use cli::{Cli, Command};
use kickvm::report::RunReporter;
use kickvm::sys::os_error;
use kickvm::vmm::{VMMConfig, Vmm, code, complain};
use kickvm::{console, doctor as checks, exec, sys};

fn main() -> ExitCode {
    // In a guest of `kickvm exec` this is the first process.
    if let Some(status) = exec::run_if_init() {
        return ExitCode::from(status);
    }
    console::terminal::restore_on_panic();
    sys::rlimit::raise_nofile_limit();
    // A panic has printed its message by the time it gets here.
    ExitCode::from(std::panic::catch_unwind(command).unwrap_or(code::FAILED))
}

fn command() -> u8 {
    match Cli::try_parse() {
        Ok(cli) => match cli.command {
            Command::Run(run) => run_vm(*run),
            Command::Exec(exec) => run_command(*exec),
            Command::Demo => run_demo(checks::demo_config()),
            Command::Doctor => doctor(),
        },
        Err(error) => usage(&error),
    }
}

fn run_vm(run: cli::Run) -> u8 {
    let (config, paths) = run.into_parts();
    match RunReporter::new("run", &[], &config, paths) {
        Ok(reporter) => reporter.finish(Vmm::try_from(config).and_then(Vmm::run).map(exec::Ended::from)),
        Err(why) => fail(why),
    }
}

fn run_command(exec: cli::Exec) -> u8 {
    let (config, paths) = exec.into_parts();
    match RunReporter::new("exec", &config.command, &config.vmm, paths) {
        Ok(reporter) => reporter.finish(exec::run(config)),
        Err(why) => fail(why),
    }
}

fn run_demo(config: VMMConfig) -> u8 {
    match Vmm::try_from(config).and_then(Vmm::run) {
        Ok(outcome) => {
            complain(&outcome.reason);
            outcome.reason.code()
        }
        Err(error) => fail(error),
    }
}

fn fail(why: impl std::fmt::Display) -> u8 {
    complain(why);
    code::FAILED
}

fn doctor() -> u8 {
    let findings = checks::doctor();
    let mut stdout = std::io::stdout();
    for finding in &findings {
        if let Err(error) = writeln!(stdout, "{finding}") {
            return fail(format_args!("cannot write to standard output: {}", os_error::describe(&error)));
        }
    }
    if findings.iter().all(|finding| finding.good) { code::OK } else { code::FAILED }
}

/// Help and version are what was asked for; anything else is one line on standard error.
fn usage(error: &clap::Error) -> u8 {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => code::OK,
            Err(error) => fail(format_args!("cannot write to standard output: {}", os_error::describe(&error))),
        },
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            fail("say what to do: run, exec, demo or doctor; 'kickvm --help' explains")
        }
        _ => {
            let sentence: Vec<_> = text.split("\n\n").next().unwrap_or_default().split_whitespace().collect();
            let sentence = sentence.join(" ");
            let known = ["run", "exec", "demo", "doctor"];
            let command = std::env::args_os().nth(1).and_then(|word| known.into_iter().find(|known| word == *known));
            let help = command.map_or("kickvm --help".to_owned(), |command| format!("kickvm {command} --help"));
            fail(format_args!("{}; see '{help}'", sentence.trim_start_matches("error: ")))
        }
    }
}
