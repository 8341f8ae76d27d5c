//! The command line: its grammar, turned into a [`VMMConfig`] or an [`ExecConfig`](crate::exec::ExecConfig); and the
//! logger of the binary.
//!
//! This floor may import all floors below it. `main`, the generator of the manual pages and tests use it.
//!
//! ```
//! use clap::Parser;
//! use kickvm::cli::{Cli, Command};
//!
//! let cli = Cli::parse_from(["kickvm", "run", "--kernel", "vmlinuz", "--memory", "1G", "--append", "quiet"]);
//! let Command::Run(run) = cli.command else { unreachable!() };
//! let (config, _) = run.into_parts();
//! assert_eq!((config.memory, config.cmdline.as_str()), (1 << 30, "console=ttyS0 panic=-1 quiet"));
//! ```

mod combinations;
mod exec;
pub mod logger;
mod share;
mod values;

pub use exec::Exec;
use values::AllowFile;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand};
use log::LevelFilter;

use crate::boot::input_file::buffer_pipe;
use crate::boot::{self, Image, default_kernel, find_kernel};
use crate::console::{FaultClasses, Rules};
use crate::matrix::{Matrix, Selection};
use crate::report::ReportPaths;
use crate::report::annotate::CiService;
use crate::results::Format;
use crate::vmm::{ConsoleConfig, DEFAULT_CMDLINE, DiskConfig, NetConfig, VIRTIO_CMDLINE, VMMConfig, VsockConfig};

/// Boot a guest kernel on Linux/KVM, and report how it ended by the exit code.
///
/// While a guest runs, its output goes to standard output and nothing else does; messages of kickvm go to standard
/// error.
#[derive(Debug, Parser)]
#[command(
    name = "kickvm",
    version,
    after_help = "\
Exit codes:
  0      the guest powered off or requested a reset; each --expect matched; or you left with Ctrl-A x
  0-119  the guest wrote this status to the exit port 0xf4 (larger values end as 119)
  120    the guest kernel panicked
  121    triple fault
  122    the guest could not continue: KVM internal error, failed entry, unhandled exit
  123    a rule failed: --reject, --fail-on, an --expect that was not met, or a test of --results
  124    --timeout expired
  125    kickvm itself failed: usage, configuration, set-up, run time
  128+n  signal n (SIGTERM, SIGINT, SIGHUP, SIGQUIT) stopped kickvm
  0-255  exec: the command's own status; with --reserve-codes 0-119, 126 and 127"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `kickvm` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a kernel.
    ///
    /// On a terminal, Ctrl-A x leaves and Ctrl-A h lists the other keys.
    Run(Box<Run>),
    /// Run one command in a fresh guest, and end with the command's exit status.
    Exec(Box<Exec>),
    /// Process the reports of runs.
    #[command(subcommand)]
    Report(Report),
    /// Run an embedded guest, which needs no files, and print each step of the exit-handler pattern.
    Demo,
    /// Check whether this host can run guests; for each problem, print a remedy where one is known.
    ///
    /// The exit code is 0 if Linux can boot on this host, else 125.
    Doctor,
}

/// What `kickvm report` can do.
#[derive(Debug, Subcommand)]
pub enum Report {
    /// Merge JUnit files into one, which has all their test suites and the sums of their counts.
    ///
    /// The exit code is 0 if all files were merged, whatever the results of their tests. It is 125 if a file is
    /// missing, empty, no JUnit file, or without a test case; then the merged file has a test case with an error in its
    /// place. The report of a run that has not ended counts as an error, too.
    Merge(Merge),
}

/// The options of `kickvm report merge`.
#[derive(Debug, Args)]
pub struct Merge {
    /// JUnit files or pipes, of kickvm or of other programs; none twice
    #[arg(value_name = "FILE", required = true)]
    pub inputs: Vec<PathBuf>,
    /// File to write, instead of standard output; replaced atomically
    #[arg(long, short, value_name = "PATH")]
    pub output: Option<PathBuf>,
}

/// The options of `kickvm run`.
#[derive(Debug, Args)]
#[command(after_help = "\
SIZE is a number with K, M, G or T; a plain number is MiB. DURATION is a number with ms, s, m or h.

A status of the exit port is at most 119, so no other exit code is the guest's; see 'kickvm --help'.

Example:
  kickvm run --kernel vmlinuz --initramfs initramfs.gz --memory 512M --cpus 2")]
pub struct Run {
    #[command(flatten)]
    machine: Machine,
    /// Kernel command line, passed on unchanged. The default is "console=ttyS0 panic=-1", with hvc0 if --console is
    /// virtio
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["append", "append_each"], allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Destination of the guest's console: stdio, virtio, none, stderr, or file=PATH
    ///
    /// stdio connects the serial port (ttyS0) to standard input and output. virtio connects a virtio console (hvc0)
    /// to them, which is much faster. The others have no input.
    #[arg(long, value_name = "WHERE", default_value = "stdio", value_parser = values::console)]
    console: ConsoleConfig,
    /// End with 0 as soon as a console line has matched each REGEX, and with 123 if the guest ends before that;
    /// repeatable
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true, value_parser = NonEmptyStringValueParser::new())]
    expect: Vec<String>,
    /// End with 123 as soon as a console line matches REGEX; repeatable
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true, value_parser = NonEmptyStringValueParser::new())]
    reject: Vec<String>,
    /// Find test results on the console; if a test failed, or none has a result, the run ends with 123 instead of 0
    ///
    /// FORMAT is ktap, tap, junit, go (go test -json) or libtest (cargo test -- --format json, or cargo-nextest).
    #[arg(id = "test-results", long = "results", value_name = "FORMAT", value_parser = values::console_results)]
    test_results: Option<Format>,
    /// How the run is judged and reported.
    #[command(flatten)]
    pub results: Results,
}

impl Run {
    /// Returns the runs if there are several. Otherwise this is one.
    ///
    /// # Errors
    ///
    /// An option cannot be used for several runs.
    pub fn matrix(&mut self) -> Result<Option<Matrix>, String> {
        combinations::matrix(&mut self.machine, &mut self.results, &self.console, &[])
    }

    /// Returns the configuration, and the files of the report.
    pub fn into_parts(self) -> (VMMConfig, ReportPaths) {
        let default = if self.console == ConsoleConfig::Virtio { VIRTIO_CMDLINE } else { DEFAULT_CMDLINE };
        let (mut config, paths) = self.machine.into_parts(default.to_owned(), self.results);
        if let Some(cmdline) = self.cmdline {
            config.cmdline = cmdline;
        }
        config.console = self.console;
        config.rules.expect = self.expect;
        config.rules.reject = self.reject;
        config.rules.results = self.test_results;
        (config, paths)
    }
}

/// The guest's kernel, processors, memory and devices.
#[derive(Debug, Args)]
struct Machine {
    /// Kernel: a file, a directory, or "host", the running kernel; repeatable [default: $KICKVM_KERNEL, else the build
    /// tree that contains the current directory]
    ///
    /// A file is a bzImage (vmlinuz) or an ELF image (vmlinux), which may be compressed by gzip, xz, zstd or lz4. A
    /// directory is a build tree of Linux, or an unpacked package of a distribution. With several kernels, values of
    /// --cpus or texts of --append-each, each combination is a separate run; the exit code is that of the worst.
    #[arg(long, short, value_name = "PATH")]
    kernel: Vec<PathBuf>,
    /// Initramfs archive; repeatable; each overlays those before it
    #[arg(long, short, value_name = "PATH")]
    initramfs: Vec<PathBuf>,
    /// Text to append to the default kernel command line
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    append: Option<String>,
    /// Text to append in a separate run; repeatable
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    append_each: Vec<String>,
    /// Number of vCPUs, 1 to 254, or several with commas
    #[arg(long, short, value_name = "N", default_value = "1", value_parser = values::cpus, allow_hyphen_values = true)]
    #[arg(value_delimiter = ',')]
    cpus: Vec<u8>,
    /// How many of several runs are executed at the same time (default: as many as processors and memory permit)
    #[arg(long, value_name = "N", value_parser = values::jobs)]
    jobs: Option<NonZeroUsize>,
    /// The first failure ends all other runs
    #[arg(long)]
    fail_fast: bool,
    #[arg(long, hide = true, value_parser = Selection::parse)]
    combination: Option<Selection>,
    /// RAM, at least 2M and a multiple of 4K
    #[arg(long, short, value_name = "SIZE", value_parser = values::memory, allow_hyphen_values = true)]
    #[arg(default_value = "256M")]
    memory: u64,
    /// Disk: a raw image or a block device; repeatable: /dev/vda, /dev/vdb and so on
    ///
    /// ro: the guest can only read. direct: I/O bypasses the host's page cache. raw: the file is used as it is, even if
    /// it looks like an image in another format. id=NAME: the serial number that the guest reads, at most 20 bytes. In
    /// PATH, write a comma as two commas.
    #[arg(long, value_name = "PATH[,ro][,direct][,raw][,id=NAME]", value_parser = values::os(values::disk))]
    disk: Vec<DiskConfig>,
    /// Network interface, connected to this tap interface of the host; repeatable: eth0, eth1 and so on
    #[arg(long, value_name = "tap=NAME[,mac=MAC]", value_parser = values::net)]
    net: Vec<NetConfig>,
    /// Sockets between host and guest, which has the CID N
    ///
    /// A program on the host connects to the Unix socket PATH and sends the line "CONNECT PORT". A program in the
    /// guest connects to CID 2; its connection goes to the program that listens at the Unix socket PATH_PORT.
    #[arg(long, value_name = "cid=N,socket=PATH", value_parser = values::vsock)]
    vsock: Option<VsockConfig>,
    /// Entropy device (the default)
    #[arg(long, overrides_with = "no_rng")]
    rng: bool,
    /// No entropy device
    #[arg(long, overrides_with = "rng")]
    no_rng: bool,
    /// Balloon: memory that the guest frees returns to the host. With size=SIZE, the balloon takes that much at the
    /// start
    #[arg(long, value_name = "size=SIZE", num_args = 0..=1, default_missing_value = "size=0")]
    #[arg(value_parser = values::balloon)]
    balloon: Option<u64>,
    /// Time after which the run ends with 124
    #[arg(long, short, value_name = "DURATION", value_parser = values::timeout, allow_hyphen_values = true)]
    timeout: Option<Duration>,
}

/// How a run is judged and reported.
#[derive(Debug, Args)]
pub struct Results {
    /// End with 123 when the guest kernel reports a fault of these classes: oops, warn, kasan, kfence, kmsan, kcsan,
    /// ubsan, lockdep, rcu, refcount, list, atomic, lockup, hung-task, oom, leak, taint, reset; or of a group: all,
    /// default (all but oom and taint). -CLASS removes one
    ///
    /// reset is a reset that no program had requested, and is in the list unless -reset removes it. A panic always ends
    /// with 120.
    #[arg(long, value_name = "CLASS,...", value_delimiter = ',', allow_hyphen_values = true)]
    #[arg(value_parser = |name: &str| FaultClasses::NONE.change(name).map(|_| name.to_owned()))]
    fail_on: Vec<String>,
    /// File of faults that --fail-on permits: one regular expression a line, for the title or the first line of the
    /// fault's report, after "CLASS: " if it is for one class only. Lines that begin with # are comments; repeatable
    ///
    /// With -v, kickvm lists the expressions that no fault has matched.
    #[arg(long, value_name = "FILE", value_parser = values::os(values::allow))]
    allow: Vec<AllowFile>,
    /// The kernel's System.map: at a timeout, kickvm names the function that each vCPU is in
    ///
    /// This adds nokaslr to the default kernel command line.
    #[arg(long, value_name = "PATH")]
    symbols: Option<PathBuf>,
    /// Write a report of the run as JSON
    #[arg(long, value_name = "PATH")]
    report: Option<PathBuf>,
    /// Write a report of the run as a JUnit test case; with --results, each test is one, too
    #[arg(long, value_name = "PATH")]
    junit: Option<PathBuf>,
    /// Write all output of the run to a file: the console, the command's streams and the messages of kickvm, each line
    /// after its time in seconds and its source
    ///
    /// Each of several runs has a file of its own: PATH.1, PATH.2 and so on.
    #[arg(long, value_name = "PATH")]
    log: Option<PathBuf>,
    /// Show errors and a summary on the page of a CI service: auto, github, gitlab or off
    ///
    /// auto is the service that runs kickvm. On GitHub Actions, the guest's output cannot contain workflow commands.
    #[arg(long, value_name = "SERVICE", default_value = "auto", value_parser = values::ci_service)]
    annotate: CiService,
    /// Verbose: print the boot protocol, the command line and the number of exits; -vv also prints the ten busiest
    /// ports
    #[arg(short, action = clap::ArgAction::Count)]
    verbose: u8,
    #[arg(skip)]
    label: String,
}

impl Results {
    /// The kernel faults that fail the run.
    fn fail_on(&self) -> FaultClasses {
        // Each name was parsed before.
        self.fail_on.iter().fold(FaultClasses::DEFAULT, |set, name| set.change(name).unwrap_or(set))
    }

    /// `-v` shows what the run is made of, `-vv` also its details.
    pub fn level(&self) -> LevelFilter {
        [LevelFilter::Warn, LevelFilter::Info, LevelFilter::Debug][usize::from(self.verbose.min(2))]
    }
}

impl Machine {
    /// Replaces the names of kernels by their files, and reads what a shell provides as a pipe.
    fn find_files(&mut self) -> Result<(), boot::Error> {
        match self.kernel.is_empty() {
            true => self.kernel = vec![default_kernel()?],
            false => self.kernel.iter_mut().try_for_each(|name| find_kernel(name).map(|path| *name = path))?,
        }
        self.kernel.iter().try_for_each(|path| buffer_pipe(path, "kernel"))?;
        self.initramfs.iter().try_for_each(|path| buffer_pipe(path, "initramfs"))
    }

    /// Returns the configuration, and the files of the report. `cmdline` is the default kernel command line.
    fn into_parts(self, mut cmdline: String, results: Results) -> (VMMConfig, ReportPaths) {
        if results.symbols.is_some() {
            cmdline += " nokaslr"; // the addresses of System.map are valid without KASLR only
        }
        for text in self.append.iter().chain(&self.append_each) {
            cmdline = format!("{cmdline} {text}");
        }
        let fail_on = results.fail_on();
        let (allow, inputs): (Vec<_>, _) = results.allow.into_iter().map(|file| (file.0, file.1)).unzip();
        let config = VMMConfig {
            initramfs: self.initramfs,
            cmdline,
            cpus: self.cpus.first().copied().unwrap_or(1),
            memory: self.memory,
            disks: self.disk,
            nets: self.net,
            vsock: self.vsock,
            rng: self.rng || !self.no_rng,
            balloon: self.balloon,
            timeout: self.timeout,
            port_stats: results.verbose >= 2,
            rules: Rules { fail_on, allow: allow.into_iter().flatten().collect(), ..Rules::default() },
            ..VMMConfig::new(Image::File(self.kernel.into_iter().next().unwrap_or_default()))
        };
        (
            config,
            ReportPaths {
                json: results.report,
                junit: results.junit,
                symbols: results.symbols,
                inputs,
                log: results.log,
                label: results.label,
                ci: results.annotate,
            },
        )
    }
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
    fn the_command_line_is_opaque() {
        let text = "a=b,c \"d e\" -- --kernel=x";
        let cli = Cli::parse_from(["kickvm", "run", "--kernel", "k", "--cmdline", text]);
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!(run.into_parts().0.cmdline, text);
        let cli = Cli::parse_from(["kickvm", "run", "--kernel", "k", "--append", "quiet"]);
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!(run.into_parts().0.cmdline, format!("{DEFAULT_CMDLINE} quiet"));
    }
}
