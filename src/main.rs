//! kickvm: parse, run, report, exit code. Nothing else.

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use log::LevelFilter;

use kickvm::cli::{self, Cli, Command, logger};
use kickvm::report::RunReporter;
use kickvm::sys::{os_error, rlimit};
use kickvm::vmm::{Outcome, Vmm, code};
use kickvm::{console, doctor, exec};

fn main() -> ExitCode {
    // In a guest of `kickvm exec` this is the first process.
    if let Some(status) = exec::run_if_init() {
        return ExitCode::from(status);
    }
    logger::install(LevelFilter::Warn);
    console::terminal::restore_on_panic();
    rlimit::raise_nofile_limit();
    // The panic hook has printed the message of a panic.
    let code = std::panic::catch_unwind(command).unwrap_or(code::FAILED);
    logger::flush();
    ExitCode::from(code)
}

fn command() -> u8 {
    match Cli::try_parse() {
        Ok(cli) => match cli.command {
            Command::Run(run) => run_vm(*run),
            Command::Exec(exec) => run_command(*exec),
            Command::Demo => run_demo(),
            Command::Doctor => run_doctor(),
        },
        Err(error) => usage(&error),
    }
}

fn run_vm(run: cli::Run) -> u8 {
    log::set_max_level(level(run.results.verbose));
    let (config, paths) = run.into_parts();
    match RunReporter::new("run", &[], &config, paths) {
        Ok(reporter) => {
            let outcome = Vmm::try_from(config).and_then(Vmm::run);
            reporter.finish(outcome.unwrap_or_else(Outcome::failed), exec::Timings::default())
        }
        Err(why) => fail(why),
    }
}

fn run_command(exec: cli::Exec) -> u8 {
    log::set_max_level(level(exec.results.verbose));
    let (config, paths) = exec.into_parts();
    match RunReporter::new("exec", &config.command, &config.vmm, paths) {
        Ok(reporter) => {
            let outcome = exec::run(config);
            let (outcome, timings) = outcome.unwrap_or_else(|error| (Outcome::failed(error), exec::Timings::default()));
            reporter.finish(outcome, timings)
        }
        Err(why) => fail(why),
    }
}

fn run_demo() -> u8 {
    log::set_max_level(LevelFilter::Trace);
    match Vmm::try_from(doctor::demo_config()).and_then(Vmm::run) {
        Ok(outcome) => {
            log::warn!("{}", outcome.reason);
            outcome.reason.code()
        }
        Err(error) => fail(error),
    }
}

fn run_doctor() -> u8 {
    let checks = doctor::doctor();
    let text: String = checks.iter().map(|check| format!("{check}\n")).collect();
    match print(&text) {
        code::OK if checks.iter().all(|check| check.ok) => code::OK,
        _ => code::FAILED,
    }
}

/// `-v` shows what the run is made of, `-vv` also its details.
fn level(verbose: u8) -> LevelFilter {
    match verbose {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        _ => LevelFilter::Debug,
    }
}

fn fail(why: impl fmt::Display) -> u8 {
    log::error!("{why}");
    code::FAILED
}

fn print(text: &str) -> u8 {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => code::OK,
        Err(error) => fail(format_args!("cannot write to standard output: {}", os_error::describe(&error))),
    }
}

/// Help and version are printed; any other error of the grammar becomes one line on standard error.
fn usage(error: &clap::Error) -> u8 {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => print(&text),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            fail("missing subcommand: expected run, exec, demo or doctor; see 'kickvm --help'")
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
