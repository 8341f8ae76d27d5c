//! kickvm: parse, build, run, exit code. Nothing else.

mod cli;

use clap::Parser;
use clap::error::ErrorKind;
use cli::{Cli, Command};
use kickvm::vmm::{self, VMMConfig, Vmm, code, complain};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    vmm::terminal::restore_on_panic();
    // A panic has printed its message by the time it gets here.
    ExitCode::from(std::panic::catch_unwind(command).unwrap_or(code::FAILED))
}

fn command() -> u8 {
    match Cli::try_parse() {
        Ok(cli) => match cli.command {
            Command::Run(run) => run_vm((*run).into()),
            Command::Demo => run_vm(vmm::demo_config()),
            Command::Doctor => doctor(),
        },
        Err(error) => usage(&error),
    }
}

fn run_vm(config: VMMConfig) -> u8 {
    let verbose = config.verbosity > 0 || config.narrate;
    match Vmm::try_from(config).and_then(Vmm::run) {
        Ok(outcome) => {
            if verbose || !outcome.reason.is_ordinary() {
                complain(&outcome.reason);
            }
            outcome.reason.code()
        }
        Err(error) => {
            complain(&error);
            code::FAILED
        }
    }
}

fn doctor() -> u8 {
    let findings = vmm::doctor();
    let mut stdout = std::io::stdout();
    for finding in &findings {
        if writeln!(stdout, "{finding}").is_err() {
            return code::FAILED;
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
            Err(error) => {
                complain(format_args!("cannot write to standard output: {error}"));
                code::FAILED
            }
        },
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            complain("say what to do: run, demo or doctor; 'kickvm --help' explains");
            code::FAILED
        }
        _ => {
            let sentence: Vec<_> = text.split("\n\n").next().unwrap_or_default().split_whitespace().collect();
            let sentence = sentence.join(" ");
            complain(format_args!("{}; see 'kickvm --help'", sentence.trim_start_matches("error: ")));
            code::FAILED
        }
    }
}
