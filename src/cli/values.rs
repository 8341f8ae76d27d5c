//! The values of options. Each function parses one kind; its error states what to give instead.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::boot::input_file::InputFile;
use crate::console::Allowed;
use crate::device::virtio::block::ID_BYTES;
use crate::report::annotate::CiService;
use crate::results::Format;
use crate::vmm::{ConsoleConfig, DiskConfig, MAX_CPUS, MIN_MEMORY, NetConfig, VsockConfig};

/// A parser of values that need not be UTF-8, such as paths.
pub fn os<T: Clone + Send + Sync + 'static>(
    parse: fn(OsString) -> Result<T, String>,
) -> impl TypedValueParser<Value = T> {
    OsStringValueParser::new().try_map(parse)
}

/// The entries of a file for `--allow`.
#[derive(Clone, Debug)]
pub struct AllowFile(pub Vec<Allowed>, pub PathBuf);

/// Reads a file for `--allow`.
pub fn allow(path: OsString) -> Result<AllowFile, String> {
    const MAX_SIZE: u64 = 1 << 20;
    let file = InputFile::open_any_size(path.as_ref(), "--allow file");
    let text = file.and_then(|file| file.text(MAX_SIZE)).map_err(|error| error.to_string())?;
    Ok(AllowFile(Allowed::parse(&path.to_string_lossy(), &text), path.into()))
}

/// The CI service that shows the run.
pub fn ci_service(text: &str) -> Result<CiService, String> {
    match text {
        "auto" => Ok(CiService::detect()),
        "github" => Ok(CiService::GitHub),
        "gitlab" => Ok(CiService::GitLab),
        "off" => Ok(CiService::Off),
        _ => Err("give auto, github, gitlab or off".to_owned()),
    }
}

/// A number of vCPUs.
pub fn cpus(text: &str) -> Result<u8, String> {
    let cpus = text.parse().ok().filter(|cpus| (1..=MAX_CPUS).contains(cpus));
    cpus.ok_or_else(|| format!("give a number from 1 to {MAX_CPUS}"))
}

/// The destination of the console.
pub fn console(text: &str) -> Result<ConsoleConfig, String> {
    match text.split_once('=') {
        None if text == "stdio" => Ok(ConsoleConfig::Stdio),
        None if text == "virtio" => Ok(ConsoleConfig::Virtio),
        None if text == "none" => Ok(ConsoleConfig::None),
        None if text == "stderr" => Ok(ConsoleConfig::Stderr),
        Some(("file", path)) if !path.is_empty() => Ok(ConsoleConfig::File(path.into())),
        _ => Err("give stdio, virtio, none, stderr or file=PATH".to_owned()),
    }
}

/// Where test results are searched for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResultSource {
    /// The command's standard output.
    Stdout,
    /// The guest's console.
    Console,
    /// A file of the guest, when the command has ended.
    File(OsString),
}

/// Test results of `exec`: `FORMAT[:SOURCE]`.
pub fn results(text: &str) -> Result<(Format, ResultSource), String> {
    let (name, source) = match text.split_once(':') {
        None | Some((_, "stdout")) => (text.trim_end_matches(":stdout"), ResultSource::Stdout),
        Some((name, "console")) => (name, ResultSource::Console),
        Some((name, source)) => match source.strip_prefix("file=").filter(|path| !path.is_empty()) {
            Some(path) => (name, ResultSource::File(path.into())),
            None => return Err(format!("'{source}' is no source of test results; give stdout, console or file=PATH")),
        },
    };
    Ok((format(name)?, source))
}

/// Test results of `run`, which are on the console.
pub fn console_results(text: &str) -> Result<Format, String> {
    match text.split_once(':') {
        Some((_, source)) if source != "console" => {
            Err("only 'kickvm exec' reads results elsewhere than on the console".to_owned())
        }
        split => format(split.map_or(text, |(name, _)| name)),
    }
}

fn format(name: &str) -> Result<Format, String> {
    let format = Format::ALL.into_iter().find(|format| format.name() == name);
    format.ok_or_else(|| "give ktap, tap, junit, go or libtest".to_owned())
}

/// The values of the options `names` in `parts`, which may have each once. The name of an option with a value ends with
/// '='; that of a flag does not, and its value is "". The error is the part that is unknown or repeats an option.
fn options<'a, const N: usize>(
    parts: impl Iterator<Item = &'a str>,
    names: [&str; N],
) -> Result<[Option<&'a str>; N], &'a str> {
    let mut values = [None; N];
    for part in parts {
        let (name, value) = part.split_at(part.find('=').map_or(part.len(), |at| at + 1));
        let index = names.iter().position(|known| *known == name).ok_or(part)?;
        if values[index].replace(value).is_some() {
            return Err(part);
        }
    }
    Ok(values)
}

/// A network interface: `tap=NAME[,mac=MAC]`.
pub fn net(text: &str) -> Result<NetConfig, String> {
    const FORM: &str = "give tap=NAME[,mac=MAC], such as tap=tap0,mac=02:00:00:00:00:01";
    let [tap, mac] = options(text.split(','), ["tap=", "mac="]).map_err(|_| FORM)?;
    let tap = tap.filter(|name| !name.is_empty()).ok_or(FORM)?;
    Ok(NetConfig { tap: tap.to_owned(), mac: mac.map(mac_address).transpose()? })
}

fn mac_address(text: &str) -> Result<[u8; 6], String> {
    let byte = |part: &str| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2 && !part.starts_with('+'));
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    match bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()) {
        None => Err(format!("'{text}' is not a MAC address such as 02:00:00:00:00:01")),
        Some([first, ..]) if first & 1 != 0 => Err(format!("'{text}' is a multicast address: its first byte is odd")),
        Some([0, 0, 0, 0, 0, 0]) => Err("a MAC address must not be all zeros".to_owned()),
        Some(mac) => Ok(mac),
    }
}

/// A socket device: `cid=N,socket=PATH`, in any order. The path may contain commas.
pub fn vsock(text: &str) -> Result<VsockConfig, String> {
    const FORM: &str = "give cid=N,socket=PATH, such as cid=3,socket=vsock.sock";
    let parts = match text.strip_prefix("cid=") {
        Some(rest) => rest.split_once(",socket="),
        None => text.strip_prefix("socket=").and_then(|rest| rest.rsplit_once(",cid=")).map(|(path, cid)| (cid, path)),
    };
    let (cid, socket) = parts.filter(|(_, socket)| !socket.is_empty()).ok_or(FORM)?;
    // 0 to 2 and the largest number are reserved: hypervisor, local, host, any (linux/vm_sockets.h).
    match cid.parse().ok().filter(|cid| (3..u32::MAX).contains(cid)) {
        Some(cid) => Ok(VsockConfig { cid, socket: socket.into() }),
        None => Err(format!("a CID is a number from 3 to {}", u32::MAX - 1)),
    }
}

/// The initial size of a balloon: `size=SIZE`.
pub fn balloon(text: &str) -> Result<u64, String> {
    const FORM: &str = "give size=SIZE, such as size=64M, or nothing (and then '--' before exec's command)";
    size(text.strip_prefix("size=").ok_or(FORM)?)
}

/// A disk: `PATH[,ro][,direct][,raw][,id=NAME]`, in which two commas are one of the path.
pub fn disk(text: OsString) -> Result<DiskConfig, String> {
    let parts = split_commas(text.as_bytes());
    let (path, rest) = parts.split_first().filter(|(path, _)| !path.is_empty()).ok_or("give a path")?;
    let texts: Vec<_> = rest.iter().map(|part| String::from_utf8_lossy(part)).collect();
    let [read_only, direct, raw, id] = options(texts.iter().map(|text| &**text), ["ro", "direct", "raw", "id="])
        .map_err(|part| {
            format!("'{part}' is not ro, direct, raw or id=NAME, each given once; write a comma in the path as two")
        })?;
    if id.is_some_and(|id| !(1..=ID_BYTES).contains(&id.len())) {
        return Err(format!("give an id of 1 to {ID_BYTES} bytes"));
    }
    Ok(DiskConfig {
        path: OsString::from_vec(path.clone()).into(),
        read_only: read_only.is_some(),
        id: id.map(str::to_owned),
        direct: direct.is_some(),
        raw: raw.is_some(),
    })
}

/// The pieces between single commas; two commas are one in a piece.
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

/// The owner of files: `root`, or `UID[:GID]`.
pub fn owner(text: &str) -> Result<(u32, u32), String> {
    let (user, group) = text.split_once(':').unwrap_or((text, text));
    let id = |text: &str| if text == "root" { Some(0) } else { text.parse().ok().filter(|id| *id != u32::MAX) };
    id(user).zip(id(group)).ok_or_else(|| "give root, UID or UID:GID".to_owned())
}

/// A number of runs.
pub fn jobs(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "give a number of 1 or more".to_owned())
}

/// Guest memory in bytes.
pub fn memory(text: &str) -> Result<u64, String> {
    const PAGE: u64 = 4 << 10;
    match size(text)? {
        size if size < MIN_MEMORY => Err(format!("give at least {}M", MIN_MEMORY >> 20)),
        size if size % PAGE != 0 => Err("give a multiple of 4K, the size of a page".to_owned()),
        size => Ok(size),
    }
}

/// A number of bytes: a number with the unit K, M, G or T; a plain number is MiB.
fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 5] = [("K", 1 << 10), ("", 1 << 20), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40)];
    let size = quantity(&text.to_ascii_uppercase(), &UNITS);
    size.ok_or("give a number with K, M, G or T, such as 512M")?.ok_or_else(|| "size out of range".to_owned())
}

/// A duration longer than zero.
pub fn timeout(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("give more than 0; without a timeout there is no limit".to_owned()),
        duration => Ok(duration),
    }
}

/// A number with its unit ms, s, m or h.
pub fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    let milliseconds = quantity(text, &UNITS).ok_or("give a number with ms, s, m or h, such as 30s")?;
    milliseconds.map(Duration::from_millis).ok_or_else(|| "duration out of range".to_owned())
}

/// A number with one of `units`, in the smallest of them. `None` if `text` has another form, `Some(None)` if the number
/// is too large.
fn quantity(text: &str, units: &[(&str, u64)]) -> Option<Option<u64>> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let (_, factor) = units.iter().find(|(name, _)| *name == unit).filter(|_| !digits.is_empty())?;
    Some(digits.parse().ok().and_then(|number: u64| number.checked_mul(*factor)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_a_plain_number_is_mebibytes() {
        for (text, bytes) in [("512", 512 << 20), ("4096K", 4 << 20), ("2M", 2 << 20), ("5G", 5 << 30), ("1t", 1 << 40)]
        {
            assert_eq!(memory(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "0", "1M", "1E", "-5", "5001K", "M", "1.5G", "+5", "99999999999T", "18446744073709551616", "１G"]
        {
            assert!(memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        for (text, ms) in [("1500ms", 1_500), ("90s", 90_000), ("2m", 120_000), ("1h", 3_600_000), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "5", "s", "-1s", "1d", "1.5s", "99999999999999999999h", "9999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_disk_is_a_path_and_options() {
        let plain =
            |path: &str| DiskConfig { path: path.into(), read_only: false, id: None, direct: false, raw: false };
        let id = |id: &str| Some(id.to_owned());
        for (text, parsed) in [
            ("a", plain("a")),
            ("a b=c", plain("a b=c")),
            ("a,,ro", plain("a,ro")),
            ("a,,", plain("a,")),
            (",,,,", plain(",,")),
            ("a,,,ro", DiskConfig { read_only: true, ..plain("a,") }),
            ("a,ro", DiskConfig { read_only: true, ..plain("a") }),
            ("a,raw", DiskConfig { raw: true, ..plain("a") }),
            ("a,direct,id=x=y", DiskConfig { direct: true, id: id("x=y"), ..plain("a") }),
            (
                "a,id=01234567890123456789,ro",
                DiskConfig { read_only: true, id: id("01234567890123456789"), ..plain("a") },
            ),
        ] {
            assert_eq!(disk(text.into()), Ok(parsed), "{text}");
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
            assert!(disk(text.into()).is_err(), "{text}");
        }
        let path = OsString::from_vec(b"\xff,ro".to_vec());
        assert_eq!(disk(path).unwrap().path.as_os_str().as_bytes(), b"\xff");
    }

    #[test]
    fn a_network_interface_has_a_tap_and_perhaps_a_mac() {
        let parsed = |tap: &str, mac| Ok(NetConfig { tap: tap.to_owned(), mac });
        assert_eq!(net("tap=tap0"), parsed("tap0", None));
        assert_eq!(net("mac=02:00:5e:10:FF:a1,tap=x"), parsed("x", Some([2, 0, 0x5e, 0x10, 0xff, 0xa1])));
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
            assert!(net(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_owner_is_root_or_numbers() {
        assert_eq!(
            ["root", "1000", "0:5", "7:root"].map(owner),
            [Ok((0, 0)), Ok((1000, 1000)), Ok((0, 5)), Ok((7, 0))]
        );
        assert!(["", "daemon", "1:", ":1", "-1", "4294967295"].into_iter().all(|text| owner(text).is_err()));
    }

    #[test]
    fn a_socket_device_has_a_number_and_a_path() {
        let parsed = |cid, socket: &str| Ok(VsockConfig { cid, socket: socket.into() });
        assert_eq!(vsock("cid=3,socket=/run/a b,c=d.sock"), parsed(3, "/run/a b,c=d.sock"));
        assert_eq!(vsock("cid=4294967294,socket=x"), parsed(u32::MAX - 1, "x"));
        assert_eq!(vsock("socket=/run/a,cid=b.sock,cid=4"), parsed(4, "/run/a,cid=b.sock"));
        for text in ["", "cid=3", "socket=x", "cid=3,socket=", "cid=,socket=x", "cid=2,socket=x", "cid=-3,socket=x"] {
            assert!(vsock(text).is_err(), "{text}");
        }
        assert!(vsock("cid=4294967295,socket=x").is_err());
        assert!(vsock("cid=4294967299,socket=x").is_err());
    }
}
