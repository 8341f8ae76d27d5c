//! The command line: its grammar, turned into a [`VMMConfig`].

mod exec;
pub mod logger;

use std::ffi::OsString;
use std::mem::replace;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};

use kickvm::boot::Image;
use kickvm::console::{KernelFault, Rules};
use kickvm::device::virtio::block::ID_BYTES;
use kickvm::report::ReportPaths;
use kickvm::vmm::{
    ConsoleConfig, DEFAULT_CMDLINE, DiskConfig, MAX_CPUS, MIN_MEMORY, NetConfig, VIRTIO_CMDLINE, VMMConfig, VsockConfig,
};

pub use exec::Exec;

/// Boot a guest kernel on Linux/KVM. The exit code states how the guest ended.
///
/// The guest's output goes to standard output, and nothing else does. kickvm's own messages go to standard error, one
/// line each.
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
  123    a rule failed: --reject, --fail-on, or an --expect that was not met
  124    --timeout expired
  125    kickvm itself failed: usage, configuration, set-up, run time
  128+n  signal n (SIGTERM, SIGINT, SIGHUP, SIGQUIT) stopped kickvm
  0-255  exec: the command's own status"
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
    /// Run one command in a fresh guest, and end with the command's exit status.
    Exec(Box<Exec>),
    /// Run an embedded guest, which needs no files, and print each step of the exit-handler pattern.
    Demo,
    /// Check whether this host can run guests; for each problem, print the command that fixes it.
    ///
    /// The exit code is 0 if Linux can boot on this host, else 125.
    Doctor,
}

#[derive(Debug, Args)]
#[command(after_help = "\
SIZE is a number with K, M, G or T; a plain number is MiB. DURATION is a number with ms, s, m or h.

Example:
  kickvm run --kernel vmlinuz --initramfs initramfs.gz --memory 512M --cpus 2")]
pub struct Run {
    /// Kernel: a bzImage (vmlinuz), or an uncompressed ELF image (vmlinux); detected by content
    #[arg(long, short, value_name = "PATH")]
    kernel: PathBuf,
    /// Initramfs archive; repeatable; each overlays those before it
    #[arg(long, short, value_name = "PATH")]
    initramfs: Vec<PathBuf>,
    /// Kernel command line, passed on unchanged. The default is "console=ttyS0 panic=-1", with hvc0 if --console is
    /// virtio
    #[arg(long, value_name = "TEXT", conflicts_with = "append", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Text to append to the default kernel command line
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    append: Option<String>,
    /// Number of vCPUs, 1 to 254
    #[arg(long, short, value_name = "N", default_value = "1", value_parser = parse_cpus, allow_hyphen_values = true)]
    cpus: u8,
    /// RAM, at least 2M and a multiple of 4K
    #[arg(long, short, value_name = "SIZE", default_value = "256M", value_parser = parse_memory, allow_hyphen_values = true)]
    memory: u64,
    /// Destination of the guest's console: stdio, virtio, none, stderr, or file=PATH
    ///
    /// stdio connects the serial port (ttyS0) to standard input and output. virtio connects a virtio console (hvc0)
    /// to them, which is much faster. The others have no input.
    #[arg(long, value_name = "WHERE", default_value = "stdio", value_parser = parse_console)]
    console: ConsoleConfig,
    #[command(flatten)]
    devices: Devices,
    /// Time after which the run ends with 124
    #[arg(long, short, value_name = "DURATION", value_parser = parse_timeout, allow_hyphen_values = true)]
    timeout: Option<Duration>,
    /// End with 0 as soon as a console line has matched each REGEX, and with 123 if the guest ends before that;
    /// repeatable
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true)]
    expect: Vec<String>,
    /// End with 123 as soon as a console line matches REGEX; repeatable
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true)]
    reject: Vec<String>,
    #[command(flatten)]
    verdicts: Verdicts,
    #[command(flatten)]
    pub report: Report,
    /// Verbose: print the boot protocol, the command line and the number of exits; -vv also prints the ten busiest
    /// ports
    #[arg(short, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// The guest's virtio devices except a console.
#[derive(Clone, Debug, Args)]
pub struct Devices {
    /// Disk: a raw image or a block device; repeatable: /dev/vda, /dev/vdb and so on
    ///
    /// ro: the guest can only read. direct: I/O bypasses the host's page cache. id=NAME: the serial number that the
    /// guest reads, at most 20 bytes. In PATH, write a comma as two commas.
    #[arg(long, value_name = "PATH[,ro][,direct][,id=NAME]", value_parser = OsStringValueParser::new().try_map(parse_disk))]
    disk: Vec<DiskConfig>,
    /// Network interface, connected to this tap interface of the host; repeatable: eth0, eth1 and so on
    #[arg(long, value_name = "tap=NAME[,mac=MAC]", value_parser = parse_net)]
    net: Vec<NetConfig>,
    /// Sockets between host and guest, which has the CID N
    ///
    /// A program on the host connects to the Unix socket PATH and sends the line "CONNECT PORT". A program in the
    /// guest connects to CID 2; its connection goes to the program that listens at the Unix socket PATH_PORT.
    #[arg(long, value_name = "cid=N,socket=PATH", value_parser = parse_vsock)]
    vsock: Option<VsockConfig>,
    /// Entropy device (the default)
    #[arg(long, overrides_with = "no_rng")]
    rng: bool,
    /// No entropy device
    #[arg(long, overrides_with = "rng")]
    no_rng: bool,
    /// Balloon: memory that the guest frees returns to the host. With size=SIZE, the balloon takes that much at the
    /// start
    #[arg(long, value_name = "size=SIZE", num_args = 0..=1, default_missing_value = "size=0", value_parser = parse_balloon)]
    balloon: Option<u64>,
}

impl Devices {
    fn add_to(self, config: &mut VMMConfig) {
        config.disks = self.disk;
        config.nets = self.net;
        config.vsock = self.vsock;
        config.rng = self.rng || !self.no_rng;
        config.balloon = self.balloon;
    }
}

/// Rules that fail a run.
#[derive(Clone, Debug, Args)]
pub struct Verdicts {
    /// End with 123 when the guest kernel reports one of these events: oops, lockup, hung-task, warn
    #[arg(long, value_name = "EVENT,...", value_delimiter = ',', value_parser = parse_fault)]
    pub fail_on: Vec<KernelFault>,
    /// The kernel's System.map: at a timeout, kickvm names the function that each vCPU is in
    ///
    /// This adds nokaslr to the default kernel command line.
    #[arg(long, value_name = "PATH")]
    pub symbols: Option<PathBuf>,
}

impl Verdicts {
    fn rules(&self) -> Rules {
        Rules { fail_on: self.fail_on.clone(), ..Rules::default() }
    }
}

/// Report files.
#[derive(Clone, Debug, Args)]
pub struct Report {
    /// Write a report of the run as JSON
    #[arg(long = "report", value_name = "PATH")]
    pub json: Option<PathBuf>,
    /// Write a report of the run as a JUnit test case
    #[arg(long, value_name = "PATH")]
    pub junit: Option<PathBuf>,
}

impl Report {
    fn paths(&self, verdicts: &Verdicts) -> ReportPaths {
        ReportPaths { json: self.json.clone(), junit: self.junit.clone(), symbols: verdicts.symbols.clone() }
    }
}

impl Run {
    /// The configuration, and the files of the report.
    pub fn into_parts(self) -> (VMMConfig, ReportPaths) {
        let paths = self.report.paths(&self.verdicts);
        (self.into(), paths)
    }
}

impl From<Run> for VMMConfig {
    fn from(run: Run) -> Self {
        let rules = Rules { expect: run.expect, reject: run.reject, ..run.verdicts.rules() };
        let default = if run.console == ConsoleConfig::Virtio { VIRTIO_CMDLINE } else { DEFAULT_CMDLINE };
        let fixed = if run.verdicts.symbols.is_some() { " nokaslr" } else { "" };
        let cmdline = match (run.cmdline, run.append) {
            (Some(cmdline), _) => cmdline,
            (None, Some(append)) => format!("{default}{fixed} {append}"),
            (None, None) => format!("{default}{fixed}"),
        };
        let mut config = VMMConfig {
            rules,
            initramfs: run.initramfs,
            cmdline,
            cpus: run.cpus,
            memory: run.memory,
            console: run.console,
            timeout: run.timeout,
            port_stats: run.verbose >= 2,
            ..VMMConfig::new(Image::File(run.kernel))
        };
        run.devices.add_to(&mut config);
        config
    }
}

fn parse_cpus(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(cpus) if (1..=MAX_CPUS).contains(&cpus) => Ok(cpus),
        _ => Err(format!("give a number from 1 to {MAX_CPUS}")),
    }
}

fn parse_console(text: &str) -> Result<ConsoleConfig, String> {
    match text.split_once('=') {
        None if text == "stdio" => Ok(ConsoleConfig::Stdio),
        None if text == "virtio" => Ok(ConsoleConfig::Virtio),
        None if text == "none" => Ok(ConsoleConfig::None),
        None if text == "stderr" => Ok(ConsoleConfig::Stderr),
        Some(("file", path)) if !path.is_empty() => Ok(ConsoleConfig::File(path.into())),
        _ => Err("give stdio, virtio, none, stderr or file=PATH".to_owned()),
    }
}

fn parse_fault(text: &str) -> Result<KernelFault, String> {
    KernelFault::parse(text).ok_or_else(|| "give oops, lockup, hung-task or warn, or several with commas".to_owned())
}

fn parse_net(text: &str) -> Result<NetConfig, String> {
    let form = || "give tap=NAME[,mac=MAC], such as tap=tap0,mac=02:00:00:00:00:01".to_owned();
    let (mut tap, mut mac) = (None, None);
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("tap", name)) if tap.is_none() && !name.is_empty() => tap = Some(name.to_owned()),
            Some(("mac", address)) if mac.is_none() => mac = Some(parse_mac(address)?),
            _ => return Err(form()),
        }
    }
    Ok(NetConfig { tap: tap.ok_or_else(form)?, mac })
}

fn parse_vsock(text: &str) -> Result<VsockConfig, String> {
    const FORM: &str = "give cid=N,socket=PATH, such as cid=3,socket=vsock.sock";
    // The path may contain commas.
    let parts = match text.strip_prefix("cid=") {
        Some(rest) => rest.split_once(",socket="),
        None => text.strip_prefix("socket=").and_then(|rest| rest.rsplit_once(",cid=")).map(|(path, cid)| (cid, path)),
    };
    let (cid, socket) = parts.filter(|(_, socket)| !socket.is_empty()).ok_or(FORM)?;
    // 0 to 2 and the last one are reserved: hypervisor, local, host, any (linux/vm_sockets.h).
    match cid.parse().ok().filter(|cid| (3..u32::MAX).contains(cid)) {
        Some(cid) => Ok(VsockConfig { cid, socket: socket.into() }),
        None => Err(format!("a CID is a number from 3 to {}", u32::MAX - 1)),
    }
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let form = || format!("'{text}' is not a MAC address such as 02:00:00:00:00:01");
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2 && !part.starts_with('+')).ok_or_else(form)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| form())?;
    }
    match mac {
        _ if parts.next().is_some() => Err(form()),
        _ if mac[0] & 1 != 0 => Err(format!("'{text}' is the MAC address of a group: its first byte must be even")),
        [0, 0, 0, 0, 0, 0] => Err("a MAC address is not all zeros".to_owned()),
        _ => Ok(mac),
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

fn parse_balloon(text: &str) -> Result<u64, String> {
    match text.split_once('=') {
        Some(("size", size)) => parse_size(size),
        _ => Err("give size=SIZE, such as size=64M, or nothing (and then '--' before exec's command)".to_owned()),
    }
}

/// Parses a path and its options, which commas separate.
fn parse_disk(text: OsString) -> Result<DiskConfig, String> {
    let words = split_commas(text.as_bytes());
    let (path, options) = words.split_first().filter(|(path, _)| !path.is_empty()).ok_or("give a path")?;
    let mut disk =
        DiskConfig { path: OsString::from_vec(path.clone()).into(), read_only: false, id: None, direct: false };
    for option in options {
        let option = String::from_utf8_lossy(option);
        let again = match (&*option, option.split_once('=')) {
            ("ro", _) => replace(&mut disk.read_only, true),
            ("direct", _) => replace(&mut disk.direct, true),
            (_, Some(("id", id))) if (1..=ID_BYTES).contains(&id.len()) => disk.id.replace(id.to_owned()).is_some(),
            (_, Some(("id", _))) => return Err(format!("give an id of 1 to {ID_BYTES} bytes")),
            _ => {
                return Err(format!(
                    "'{option}' is not one of ro, direct and id=NAME; write a comma in the path as two commas"
                ));
            }
        };
        if again {
            return Err(format!("'{option}' repeats an earlier option"));
        }
    }
    Ok(disk)
}

/// Splits at single commas; two commas are a comma in a piece.
fn split_commas(text: &[u8]) -> Vec<Vec<u8>> {
    let mut pieces = vec![Vec::new()];
    let mut rest = text.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        match pieces.last_mut() {
            Some(piece) if byte != b',' || rest.next_if_eq(&b',').is_some() => piece.push(byte),
            _ => pieces.push(Vec::new()),
        }
    }
    pieces
}

/// Parses a number of bytes with the unit K, M, G or T; a plain number is MiB.
fn parse_size(text: &str) -> Result<u64, String> {
    const FORM: &str = "give a number with K, M, G or T, such as 512M";
    let (number, unit) = split_unit(text);
    let shift = match unit {
        "K" | "k" => 10,
        "" | "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err(FORM.to_owned()),
    };
    multiply(number, 1 << shift, FORM)?.ok_or_else(|| "size out of range".to_owned())
}

/// Parses a duration longer than zero.
fn parse_timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("give more than 0; without a timeout there is no limit".to_owned()),
        duration => Ok(duration),
    }
}

/// Parses a number with the unit ms, s, m or h.
fn parse_duration(text: &str) -> Result<Duration, String> {
    const FORM: &str = "give a number with ms, s, m or h, such as 30s";
    let (number, unit) = split_unit(text);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(FORM.to_owned()),
    };
    let milliseconds = multiply(number, milliseconds, FORM)?;
    milliseconds.map(Duration::from_millis).ok_or_else(|| "duration out of range".to_owned())
}

/// `digits` times `unit`; `None` if that does not fit in 64 bits. `digits` come from [`split_unit`].
fn multiply(digits: &str, unit: u64, form: &str) -> Result<Option<u64>, String> {
    match digits {
        "" => Err(form.to_owned()),
        // They are digits, so an error means that the number is too large.
        _ => Ok(digits.parse().ok().and_then(|number: u64| number.checked_mul(unit))),
    }
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
    fn a_disk_is_a_path_and_options() {
        let plain = |path: &str| DiskConfig { path: path.into(), read_only: false, id: None, direct: false };
        let id = |id: &str| Some(id.to_owned());
        for (text, disk) in [
            ("a", plain("a")),
            ("a b=c", plain("a b=c")),
            ("a,,ro", plain("a,ro")),
            ("a,,", plain("a,")),
            (",,,,", plain(",,")),
            ("a,,,ro", DiskConfig { read_only: true, ..plain("a,") }),
            ("a,ro", DiskConfig { read_only: true, ..plain("a") }),
            ("a,direct,id=x=y", DiskConfig { direct: true, id: id("x=y"), ..plain("a") }),
            (
                "a,id=01234567890123456789,ro",
                DiskConfig { read_only: true, id: id("01234567890123456789"), ..plain("a") },
            ),
        ] {
            assert_eq!(parse_disk(text.into()), Ok(disk), "{text}");
        }
        for text in [
            "",
            ",ro",
            "a,",
            "a,rw",
            "a,ro,",
            "a,ro,ro",
            "a,id=",
            "a,id=012345678901234567890",
            "a,id=1,id=2",
            "a,Ro",
            "a,ro=1",
        ] {
            assert!(parse_disk(text.into()).is_err(), "{text}");
        }
        let path = OsString::from_vec(b"\xff,ro".to_vec());
        assert_eq!(parse_disk(path).unwrap().path.as_os_str().as_bytes(), b"\xff");
    }

    #[test]
    fn a_network_interface_has_a_tap_and_perhaps_a_mac() {
        let net = |tap: &str, mac| Ok(NetConfig { tap: tap.to_owned(), mac });
        assert_eq!(parse_net("tap=tap0"), net("tap0", None));
        assert_eq!(parse_net("mac=02:00:5e:10:FF:a1,tap=x"), net("x", Some([2, 0, 0x5e, 0x10, 0xff, 0xa1])));
        for text in [
            "",
            "tap0",
            "tap=",
            "tap=a,tap=b",
            "tap=a,",
            "tap=a,mtu=9000",
            "mac=02:00:00:00:00:01",
            "tap=a,mac=",
            "tap=a,mac=02:00:00:00:00",
            "tap=a,mac=02:00:00:00:00:01:02",
            "tap=a,mac=02:00:00:00:00:+1",
            "tap=a,mac=2:0:0:0:0:1",
            "tap=a,mac=0200.0000.0001",
            "tap=a,mac=00:00:00:00:00:00",
            "tap=a,mac=01:00:00:00:00:01",
            "tap=a,mac=02:00:00:00:00:01,mac=02:00:00:00:00:01",
        ] {
            assert!(parse_net(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_socket_device_has_a_number_and_a_path() {
        let vsock = |cid, socket: &str| Ok(VsockConfig { cid, socket: socket.into() });
        assert_eq!(parse_vsock("cid=3,socket=/run/a b,c=d.sock"), vsock(3, "/run/a b,c=d.sock"));
        assert_eq!(parse_vsock("cid=4294967294,socket=x"), vsock(u32::MAX - 1, "x"));
        assert_eq!(parse_vsock("socket=/run/a,cid=b.sock,cid=4"), vsock(4, "/run/a,cid=b.sock"));
        for text in ["", "cid=3", "socket=x", "cid=3,socket=", "cid=,socket=x", "cid=2,socket=x", "cid=-3,socket=x"] {
            assert!(parse_vsock(text).is_err(), "{text}");
        }
        assert!(parse_vsock("cid=4294967295,socket=x").is_err());
        assert!(parse_vsock("cid=4294967299,socket=x").is_err());
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
