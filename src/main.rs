//! kickvm: parse, run, report, exit code.

use std::io::Write;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};
use log::LevelFilter;

use kickvm::cli::{self, Cli, Command, logger};
use kickvm::report::{self, RunReporter};
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
    let code = std::panic::catch_unwind(run).unwrap_or(Ok(code::FAILED)).unwrap_or_else(|error| {
        log::error!("{error}");
        code::FAILED
    });
    log::logger().flush();
    ExitCode::from(code)
}

/// Returns the exit code, or the message of an error.
fn run() -> Result<u8, String> {
    match Cli::try_parse().map(|cli| cli.command) {
        Ok(Command::Run(run)) => run_vm(*run),
        Ok(Command::Exec(exec)) => run_command(*exec),
        Ok(Command::Report(cli::Report::Merge(merge))) => run_merge(&merge),
        Ok(Command::Demo) => run_demo(),
        Ok(Command::Doctor) => run_doctor(),
        Err(error) => usage(&error),
    }
}

fn run_vm(mut run: cli::Run) -> Result<u8, String> {
    log::set_max_level(run.results.level());
    if let Some(matrix) = run.matrix()? {
        return matrix.run();
    }
    let (mut config, paths) = run.into_parts();
    let mut reporter = RunReporter::new(&[], &config, &paths)?;
    config.log = logger::open_run_log(&config, &paths)?;
    reporter.start()?;
    let outcome = Vmm::try_from(config).and_then(Vmm::run);
    Ok(reporter.finish(outcome.unwrap_or_else(Outcome::failed), exec::Timings::default()))
}

fn run_command(mut exec: cli::Exec) -> Result<u8, String> {
    log::set_max_level(exec.results.level());
    if let Some(matrix) = exec.matrix()? {
        return matrix.run();
    }
    let (mut config, paths) = exec.into_parts();
    let mut reporter = RunReporter::new(&config.command, &config.vmm, &paths)?;
    config.vmm.log = logger::open_run_log(&config.vmm, &paths)?;
    reporter.start()?;
    let outcome = exec::run(config);
    let (outcome, timings) = outcome.unwrap_or_else(|error| (Outcome::failed(error), exec::Timings::default()));
    Ok(reporter.finish(outcome, timings))
}

fn run_merge(merge: &cli::Merge) -> Result<u8, String> {
    let (complete, xml) = report::merge(&merge.inputs, merge.output.as_deref())?;
    xml.map_or(Ok(code::OK), |xml| print(&xml)).map(|_| if complete { code::OK } else { code::FAILED })
}

fn run_demo() -> Result<u8, String> {
    log::set_max_level(LevelFilter::Trace);
    let outcome = Vmm::try_from(doctor::demo_config()).and_then(Vmm::run).map_err(|error| error.to_string())?;
    log::warn!("{}", outcome.reason);
    Ok(outcome.reason.code())
}

fn run_doctor() -> Result<u8, String> {
    let checks = doctor::doctor();
    let line = |check: &doctor::Check| match check {
        Ok(text) => format!("ok   {text}\n"),
        Err(text) => format!("FAIL {text}\n"),
    };
    print(&checks.iter().map(line).collect::<String>())?;
    Ok(if checks.iter().all(Result::is_ok) { code::OK } else { code::FAILED })
}

fn print(text: &str) -> Result<u8, String> {
    let cannot = |error| format!("cannot write to standard output: {}", os_error::describe(&error));
    std::io::stdout().write_all(text.as_bytes()).map(|()| code::OK).map_err(cannot)
}

/// The unknown option that is the error.
fn unknown_option(error: &clap::Error) -> Option<&str> {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(option)) if error.kind() == ErrorKind::UnknownArgument => option.strip_prefix("--"),
        _ => None,
    }
}

/// The subcommand that has an option.
fn owner(option: &str) -> Option<String> {
    let has_option = |command: &&clap::Command| command.get_arguments().any(|arg| arg.get_long() == Some(option));
    Some(Cli::command().get_subcommands().find(has_option)?.get_name().to_owned())
}

/// Prints help or the version. Any other error of the grammar becomes one line.
fn usage(error: &clap::Error) -> Result<u8, String> {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => print(&text),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand if std::env::args_os().len() > 1 => {
            Err("missing subcommand: expected merge; see 'kickvm report --help'".to_owned())
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Err("missing subcommand: expected run, exec, report, demo or doctor; see 'kickvm --help'".to_owned())
        }
        _ => {
            let sentence: Vec<_> = text.split("\n\n").next().unwrap_or_default().split_whitespace().collect();
            let sentence = sentence.join(" ");
            let known = ["run", "exec", "report", "demo", "doctor"];
            let command = std::env::args_os().nth(1).and_then(|word| known.into_iter().find(|known| word == *known));
            let owner = unknown_option(error).and_then(owner);
            let hint = owner.map_or(String::new(), |owner| format!("; it is an option of 'kickvm {owner}'"));
            let help = command.map_or("kickvm --help".to_owned(), |command| format!("kickvm {command} --help"));
            Err(format!("{}{hint}; see '{help}'", sentence.trim_start_matches("error: ")))
        }
    }
}
