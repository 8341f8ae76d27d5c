//! The command line: its grammar, and how it becomes a [`VMMConfig`].

use clap::{Args, Parser, Subcommand};
use kickvm::boot::Image;
use kickvm::vmm::{Console, DEFAULT_CMDLINE, MAX_CPUS, MIN_MEMORY, VMMConfig};
use std::path::PathBuf;
use std::time::Duration;

/// Boot a guest kernel on Linux/KVM, and end with an exit code that says how it went.
///
/// While a guest runs, its output goes to standard output and nothing else does; what kickvm says goes to standard error.
#[derive(Debug, Parser)]
#[command(
    name = "kickvm",
    version,
    after_help = "\
Exit codes:
  0      the guest powered off, or asked for a reset; or you left with Ctrl-A x
  0-119  the guest wrote this status to the exit port 0xf4
  120    the guest kernel panicked
  121    the guest crashed: triple fault
  122    the guest could not be run on: KVM internal error and the like
  124    --timeout ran out
  125    kickvm itself failed: usage, configuration, set-up, run time
  128+n  signal n asked kickvm to stop"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a kernel.
    ///
    /// On a terminal, Ctrl-A x leaves and Ctrl-A h lists the other keys.
    Run(Box<Run>),
    /// Run an embedded guest: no files needed, shows the exit-handler pattern step by step.
    Demo,
    /// Say whether this host can run guests, what is missing, and the command that mends it.
    ///
    /// Ends with 0 only if Linux can boot here, else with 125.
    Doctor,
}

#[derive(Debug, Args)]
#[command(after_help = "\
SIZE is a number with K, M, G or T; without one it counts MiB. DURATION is a number with ms, s, m or h.

Example:
  kickvm run --kernel vmlinuz --initramfs initramfs.gz --memory 512M --cpus 2")]
pub struct Run {
    /// Kernel: a bzImage (vmlinuz), or an uncompressed ELF image (vmlinux); told apart by content
    #[arg(long, short, value_name = "PATH")]
    kernel: PathBuf,
    /// Initramfs archive; give it more than once to lay one over the other, the last on top
    #[arg(long, short, value_name = "PATH")]
    initramfs: Vec<PathBuf>,
    /// Kernel command line, replacing the default ("console=ttyS0 panic=-1"); not looked into
    #[arg(long, value_name = "TEXT", conflicts_with = "append", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Text behind the default kernel command line
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    append: Option<String>,
    /// Number of vCPUs, 1 to 254
    #[arg(long, short, value_name = "N", default_value = "1", value_parser = parse_cpus, allow_hyphen_values = true)]
    cpus: u8,
    /// Guest memory, at least 2M
    #[arg(long, short, value_name = "SIZE", default_value = "256M", value_parser = parse_memory, allow_hyphen_values = true)]
    memory: u64,
    /// Where the guest's serial console goes: stdio, none, or file=PATH (output only)
    #[arg(long, value_name = "WHERE", default_value = "stdio", value_parser = parse_console)]
    console: Console,
    /// End the run after this long, with exit code 124
    #[arg(long, short, value_name = "DURATION", value_parser = parse_duration, allow_hyphen_values = true)]
    timeout: Option<Duration>,
    /// Say more: -v tells the boot protocol and counts exits, -vv lists the ten busiest ports too
    #[arg(short, action = clap::ArgAction::Count)]
    verbose: u8,
}

impl From<Run> for VMMConfig {
    fn from(run: Run) -> Self {
        let cmdline = match (run.cmdline, run.append) {
            (Some(cmdline), _) => cmdline,
            (None, Some(append)) => format!("{DEFAULT_CMDLINE} {append}"),
            (None, None) => DEFAULT_CMDLINE.to_owned(),
        };
        VMMConfig {
            initramfs: run.initramfs,
            cmdline,
            cpus: run.cpus,
            memory: run.memory,
            console: run.console,
            timeout: run.timeout,
            verbosity: run.verbose,
            ..VMMConfig::new(Image::File(run.kernel))
        }
    }
}

fn parse_cpus(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(cpus) if (1..=MAX_CPUS).contains(&cpus) => Ok(cpus),
        _ => Err(format!("give a number from 1 to {MAX_CPUS}")),
    }
}

fn parse_console(text: &str) -> Result<Console, String> {
    match text.split_once('=') {
        None if text == "stdio" => Ok(Console::Stdio),
        None if text == "none" => Ok(Console::None),
        Some(("file", path)) if !path.is_empty() => Ok(Console::File(path.into())),
        _ => Err("give stdio, none or file=PATH".to_owned()),
    }
}

fn parse_memory(text: &str) -> Result<u64, String> {
    const PAGE: u64 = 4 << 10;
    let size = parse_size(text)?;
    match size {
        _ if size < MIN_MEMORY => Err(format!("give at least {}M", MIN_MEMORY >> 20)),
        _ if size % PAGE != 0 => Err("give a multiple of 4K, the size of a page".to_owned()),
        _ => Ok(size),
    }
}

/// Bytes: a number of MiB, or of the unit K, M, G or T behind it.
fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text);
    let shift = match unit {
        "K" | "k" => 10,
        "" | "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err("give a number with K, M, G or T, such as 512M".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "give a number with K, M, G or T, such as 512M".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "that is more than a 64-bit machine has".to_owned())
}

/// A number with its unit ms, s, m or h.
fn parse_duration(text: &str) -> Result<Duration, String> {
    const FORM: &str = "give a number with ms, s, m or h, such as 30s";
    let (number, unit) = split_unit(text);
    let number: u64 = number.parse().map_err(|_| FORM.to_owned())?;
    let milliseconds = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => return Err(FORM.to_owned()),
    };
    milliseconds.map(Duration::from_millis).ok_or_else(|| "that is longer than anybody waits".to_owned())
}

fn split_unit(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_units_and_a_plain_number_is_mebibytes() {
        for (text, bytes) in [("512", 512 << 20), ("4096K", 4 << 20), ("2M", 2 << 20), ("5G", 5 << 30), ("1t", 1 << 40)]
        {
            assert_eq!(parse_memory(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "0", "1M", "1E", "-5", "5001K", "M", "1.5G", "+5", "99999999999T", "18446744073709551616", "１G"]
        {
            assert!(parse_memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        for (text, ms) in [("1500ms", 1_500), ("90s", 90_000), ("2m", 120_000), ("1h", 3_600_000), ("0s", 0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "5", "s", "-1s", "1d", "1.5s", "99999999999999999999h", "9999999999999999h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_command_line_is_opaque() {
        let text = "a=b,c \"d e\" -- --kernel=x";
        let cli = Cli::parse_from(["kickvm", "run", "--kernel", "k", "--cmdline", text]);
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!(VMMConfig::from(*run).cmdline, text);
        let cli = Cli::parse_from(["kickvm", "run", "--kernel", "k", "--append", "quiet"]);
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!(VMMConfig::from(*run).cmdline, format!("{DEFAULT_CMDLINE} quiet"));
    }
}
