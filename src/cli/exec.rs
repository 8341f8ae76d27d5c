//! The grammar of `kickvm exec`, turned into an [`ExecConfig`].

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use super::values::ResultSource;
use super::{Machine, Results, combinations, share, values};
use crate::exec::rootfs::Overlay;
use crate::exec::{Caller, ExecConfig, Root, SharedDirectory};
use crate::matrix::Matrix;
use crate::report::ReportPaths;
use crate::results::Format;
use crate::vmm::{ConsoleConfig, DEFAULT_CMDLINE, VMMConfig};

/// The options of `kickvm exec`.
#[derive(Debug, Args)]
#[command(after_help = "\
The guest's first process is kickvm itself. It mounts the usual file systems, runs the command, and powers off. Standard
input, output and error belong to the command. If input and output are a terminal, the command gets a terminal.

Without --root, --initramfs and --copy, the guest has the host's root, as with --root /. In it, the command runs as you:
with your user and groups, your environment, umask and current directory. With another root it runs as root. With --copy
alone, the guest has only the files of --copy and the libraries that they need.

SIZE is a number with K, M, G or T; a plain number is MiB. DURATION is a number with ms, s, m or h.

Exit codes: the command's status, 0 to 255. It is 128+n if signal n killed the command, 126 if the command cannot be
executed, 127 if it is not found. If kickvm decides the exit code (120 to 125, 128+n; see 'kickvm --help'), a line on
standard error states why.

With --reserve-codes, a command's status of 120 to 125 or 128 to 255 ends as 119; a line on standard error and the
reports have it. If a signal was sent to the command, the run ends with 128+n, whatever the status. So 0 to 119, 126 and
127 are the command's; 120 to 125 are kickvm's; and more than 127 means that kickvm was stopped, or killed, by a signal.

Examples:
  kickvm exec --kernel arch/x86/boot/bzImage -- make check
  kickvm exec --kernel host --share . -- ./run-tests.sh
  kickvm exec --kernel vmlinuz --copy /bin/busybox -- busybox uname -a
  kickvm exec --kernel vmlinuz --root rootfs --workdir /src --timeout 10m --memory 2G --cpus 2 -- make check")]
#[command(mut_arg("memory", |memory| memory.default_value("512M")))]
pub struct Exec {
    #[command(flatten)]
    machine: Machine,
    /// Directory or tar archive that becomes the guest's root, by default /; the guest's changes are lost
    ///
    /// The guest uses a directory without a copy. This needs virtio-fs and overlayfs in its kernel; if they are
    /// missing, the directory is copied.
    ///
    /// copy: the directory is copied into the guest's memory. A tar archive always is. It may be the output of docker
    /// export, and may be compressed by gzip, xz, zstd or lz4.
    #[arg(long, short, value_name = "DIR[,copy]", value_parser = values::os(parse_root))]
    root: Option<Root>,
    /// Directory that the guest uses without a copy; repeatable. GUEST defaults to the path on the host
    ///
    /// rw: the guest's changes are the host's, the default for the current directory and those below it. ro: the guest
    /// can only read. overlay: its changes are in memory and are lost.
    #[arg(long, value_name = "HOST[:GUEST][,rw|ro|overlay]", value_parser = values::os(share::parse))]
    share: Vec<SharedDirectory>,
    /// File or directory to copy over the root; repeatable. GUESTPATH defaults to the path on the host
    #[arg(long, alias = "add", value_name = "HOSTPATH[:GUESTPATH]", value_parser = values::os(parse_overlay))]
    copy: Vec<Overlay>,
    /// Owner of the copied files of --root and --copy in the guest, instead of that on the host: root, or UID[:GID]
    #[arg(long, value_name = "OWNER", value_parser = values::owner)]
    chown: Option<(u32, u32)>,
    /// Directory in the guest in which the command starts. The default is the current directory in the host's root,
    /// else /
    #[arg(long, alias = "cwd", short = 'C', value_name = "DIR")]
    workdir: Option<OsString>,
    /// User that the command runs as: NAME of the guest's /etc/passwd or UID, with :GROUP for another group. The
    /// default is you in the host's root, else root
    #[arg(long, short, value_name = "NAME|UID[:GROUP]", value_parser = NonEmptyStringValueParser::new())]
    user: Option<String>,
    /// Variable of the command's environment; repeatable. VALUE defaults to that in kickvm's environment
    ///
    /// In the host's root, the command has all of kickvm's variables but those that refer to the host itself, such as
    /// DISPLAY, SSH_AUTH_SOCK and MAKEFLAGS.
    #[arg(long, short, value_name = "NAME[=VALUE]", value_parser = values::os(parse_variable))]
    env: Vec<Option<OsString>>,
    /// Kernel module to load first, with its dependencies; repeatable. Those that the devices need are loaded without
    /// this option
    ///
    /// Modules are searched for beside the kernel (its build tree, or lib/modules of the directory with boot/), in the
    /// root, on the host, and in /lib/modules of the guest.
    #[arg(long, value_name = "NAME")]
    module: Vec<OsString>,
    /// Destination of the kernel's console: none, stderr, or file=PATH
    #[arg(long, value_name = "WHERE", default_value = "none", value_parser = parse_console)]
    console: ConsoleConfig,
    /// How long the command may take to end after a signal that stops kickvm
    #[arg(long, alias = "grace", value_name = "DURATION", default_value = "5s", value_parser = values::duration)]
    #[arg(allow_hyphen_values = true)]
    kill_after: Duration,
    /// Keep the exit codes 120 to 125 and 128+n for kickvm: such a status of the command ends as 119
    #[arg(long)]
    reserve_codes: bool,
    /// Find test results on the command's standard output (the default), on the console, or in a file of the guest; if
    /// a test failed, or none has a result, the run ends with 123 instead of 0
    ///
    /// FORMAT is ktap, tap, junit, go (go test -json) or libtest (cargo test -- --format json, or cargo-nextest).
    #[arg(id = "test-results", long = "results", value_name = "FORMAT[:stdout|:console|:file=PATH]")]
    #[arg(value_parser = values::results)]
    test_results: Option<(Format, ResultSource)>,
    /// How the run is judged and reported.
    #[command(flatten)]
    pub results: Results,
    /// Command to run, and its arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

impl Exec {
    /// Returns the runs if there are several. Otherwise this is one.
    ///
    /// # Errors
    ///
    /// An option cannot be used for several runs.
    pub fn matrix(&mut self) -> Result<Option<Matrix>, String> {
        let inputs = self.inputs();
        combinations::matrix(&mut self.machine, &mut self.results, &self.console, &inputs)
    }

    /// The files of the host that are packed.
    fn inputs(&self) -> Vec<PathBuf> {
        let root = self.root.iter().map(|root| &root.path);
        root.chain(self.copy.iter().map(|overlay| &overlay.host)).cloned().collect()
    }

    /// Returns the configuration, and the files of the report.
    pub fn into_parts(self) -> (ExecConfig, ReportPaths) {
        let inputs = self.inputs();
        let mut cmdline = DEFAULT_CMDLINE.to_owned();
        let given = self.test_results;
        let results = |source| given.as_ref().filter(|(_, given)| *given == source).map(|(format, _)| *format);
        // A console that the user sees is complete. A quiet kernel prints errors only; test results are information.
        if self.console == ConsoleConfig::None {
            let level =
                if results(ResultSource::Console).is_some() { 7 } else { self.results.fail_on().console_level() };
            cmdline += &match level {
                4 => " quiet".to_owned(),
                level => format!(" loglevel={level}"),
            };
        }
        let (mut vmm, mut paths) = self.machine.into_parts(cmdline, self.results);
        paths.inputs.extend(inputs);
        vmm.rules.results = results(ResultSource::Console);
        let has_no_files = vmm.initramfs.is_empty() && self.copy.is_empty();
        let root = self.root.or(has_no_files.then(|| Root { path: "/".into(), copy: false }));
        let is_host = root.as_ref().is_some_and(Root::is_host);
        let here = || std::env::current_dir().ok().filter(|_| is_host).map(OsString::from);
        let config = ExecConfig {
            vmm: VMMConfig { console: self.console, ..vmm },
            command: self.command,
            root,
            shares: self.share,
            overlays: self.copy,
            owner: self.chown,
            user: self.user,
            caller: is_host.then(Caller::current),
            workdir: self.workdir.or_else(here),
            env: self.env.into_iter().flatten().collect(),
            modules: self.module,
            kill_after: self.kill_after,
            reserve_codes: self.reserve_codes,
            results: results(ResultSource::Stdout),
            results_file: given.and_then(|(format, source)| match source {
                ResultSource::File(path) => Some((format, path)),
                _ => None,
            }),
        };
        (config, paths)
    }
}

/// Parses `DIR[,copy]`.
fn parse_root(text: OsString) -> Result<Root, String> {
    let copied = text.as_bytes().strip_suffix(b",copy").filter(|path| !path.is_empty());
    let path = copied.map_or_else(|| PathBuf::from(&text), |path| OsStr::from_bytes(path).into());
    Ok(Root { path, copy: copied.is_some() })
}

/// Parses `HOSTPATH[:GUESTPATH]`. GUESTPATH defaults to the absolute HOSTPATH.
fn parse_overlay(text: OsString) -> Result<Overlay, String> {
    let bytes = text.as_bytes();
    match bytes.iter().rposition(|byte| *byte == b':') {
        _ if bytes.is_empty() => Err("give HOSTPATH or HOSTPATH:GUESTPATH".to_owned()),
        Some(at) if at > 0 && at + 1 < bytes.len() => {
            Ok(Overlay::new(OsStr::from_bytes(&bytes[..at]), OsStr::from_bytes(&bytes[at + 1..])))
        }
        _ => Ok(Overlay::new(&text, std::path::absolute(&text).unwrap_or_else(|_| PathBuf::from(&text)))),
    }
}

/// Parses `NAME[=VALUE]`, and completes it to NAME=VALUE; `None` if this process has no such variable.
fn parse_variable(text: OsString) -> Result<Option<OsString>, String> {
    match text.as_bytes().iter().position(|byte| *byte == b'=') {
        None if !text.is_empty() => Ok(std::env::var_os(&text).map(|value| [text, value].join(OsStr::new("=")))),
        None | Some(0) => Err("give NAME or NAME=VALUE".to_owned()),
        Some(_) => Ok(Some(text)),
    }
}

/// The command uses standard input and output, so the console cannot.
fn parse_console(text: &str) -> Result<ConsoleConfig, String> {
    match values::console(text) {
        Ok(console @ (ConsoleConfig::None | ConsoleConfig::Stderr | ConsoleConfig::File(_))) => Ok(console),
        _ => Err("give none, stderr or file=PATH".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cli, Command};
    use super::{Caller, ConsoleConfig, Format};
    use clap::Parser;

    fn parts(arguments: &[&str]) -> super::ExecConfig {
        let cli = Cli::parse_from([&["kickvm", "exec", "--kernel", "k"], arguments].concat());
        let Command::Exec(exec) = cli.command else { panic!("not exec") };
        exec.into_parts().0
    }

    #[test]
    fn the_command_begins_with_the_first_word_that_is_no_option() {
        for arguments in [&["--", "make", "-k", "--kernel", "check"][..], &["make", "-k", "--kernel", "check"]] {
            assert_eq!(parts(arguments).command, ["make", "-k", "--kernel", "check"]);
        }
    }

    #[test]
    fn a_quiet_kernel_would_not_warn_and_symbols_need_fixed_addresses() {
        let cmdline = |arguments: &[&str]| parts(&[arguments, &["true"]].concat()).vmm.cmdline;
        assert_eq!(cmdline(&[]), "console=ttyS0 panic=-1 quiet");
        assert_eq!(cmdline(&["--fail-on", "oops,warn"]), "console=ttyS0 panic=-1 loglevel=5");
        assert_eq!(cmdline(&["--console", "stderr", "--append", "a=b"]), "console=ttyS0 panic=-1 a=b");
        assert_eq!(parts(&["--console", "stderr", "true"]).vmm.console, ConsoleConfig::Stderr);
        assert_eq!(cmdline(&["--symbols", "System.map"]), "console=ttyS0 panic=-1 quiet nokaslr");
    }

    #[test]
    fn results_on_the_console_need_the_messages_of_the_kernel() {
        let cases = [("go", Some(Format::Go), None, "quiet"), ("ktap:stdout", Some(Format::Ktap), None, "quiet")];
        for (text, stdout, console, level) in
            cases.into_iter().chain([("ktap:console", None, Some(Format::Ktap), "loglevel=7")])
        {
            let config = parts(&["--results", text, "true"]);
            assert_eq!((config.results, config.vmm.rules.results), (stdout, console), "{text}");
            assert_eq!(config.vmm.cmdline, format!("console=ttyS0 panic=-1 {level}"), "{text}");
        }
    }

    #[test]
    fn a_variable_without_a_value_has_the_one_from_here() {
        let config = parts(&["--env", "A=1\n2", "--env", "PATH", "--env", "KICKVM_NOT_SET", "true"]);
        let path = format!("PATH={}", std::env::var("PATH").unwrap());
        assert_eq!(config.env, ["A=1\n2", &path]);
    }

    #[test]
    fn the_old_option_names_are_accepted() {
        let old = parts(&["--add", "a:/b", "--cwd", "/c", "--grace", "7s", "true"]);
        let new = parts(&["--copy", "a:/b", "--workdir", "/c", "--kill-after", "7s", "true"]);
        assert_eq!((&old.overlays, &old.workdir, old.kill_after), (&new.overlays, &new.workdir, new.kill_after));
        assert_eq!(new.kill_after.as_secs(), 7);
    }

    #[test]
    fn a_root_is_copied_on_request() {
        let root = |arguments: &[&str]| parts(&[arguments, &["true"]].concat()).root.map(|root| (root.path, root.copy));
        for (text, path, copy) in [("a", "a", false), ("a,copy", "a", true), (",copy", ",copy", false)] {
            assert_eq!(root(&["--root", text]), Some((path.into(), copy)), "{text}");
        }
        assert_eq!(root(&[]), Some(("/".into(), false)), "the default");
        assert_eq!((root(&["--copy", "a"]), root(&["--initramfs", "a"])), (None, None));
    }

    #[test]
    fn a_command_in_the_root_of_the_host_runs_as_the_caller() {
        let here = std::env::current_dir().unwrap().into_os_string();
        for arguments in [&["--root", "/"][..], &["--root", "/.//,copy"], &[]] {
            let config = parts(&[arguments, &["--user", "nobody", "true"]].concat());
            assert_eq!((config.caller, config.workdir), (Some(Caller::current()), Some(here.clone())), "{arguments:?}");
            assert_eq!(config.user.as_deref(), Some("nobody"));
        }
        let config = parts(&["--workdir", "/usr", "true"]);
        assert!(config.caller.is_some() && config.workdir == Some("/usr".into()));
        for arguments in [["--root", "/usr"], ["--copy", "a"], ["--initramfs", "a"]] {
            let config = parts(&[&arguments[..], &["true"]].concat());
            assert_eq!((config.caller, config.workdir), (None, None), "{arguments:?}");
        }
    }

    #[test]
    fn copies_have_a_path_in_the_guest() {
        let config = parts(&["--copy", "/bin/busybox", "--copy", "a:/b", "--copy", "/x:y:/z", "true"]);
        let pairs: Vec<_> = config.overlays.iter().map(|it| (it.host.to_str(), it.guest.to_str())).collect();
        let expected = [("/bin/busybox", "/bin/busybox"), ("a", "/b"), ("/x:y", "/z")];
        assert_eq!(pairs, expected.map(|(host, guest)| (Some(host), Some(guest))));
    }
}
