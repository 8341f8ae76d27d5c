//! Invalid command lines, `--help` and `--version`.

use super::names;
use crate::common::TempDir;
use crate::common::process::{end, kickvm};
use crate::need_kvm;
use crate::support::images::elf;
use std::fs;
use std::os::unix::net::UnixListener;

const SEE: &str = "; see 'kickvm run --help'";

#[test]
fn an_invalid_option_value_is_one_line() {
    let size = "give a number with K, M, G or T, such as 512M";
    let time = "give a number with ms, s, m or h, such as 30s";
    let memory =
        |value, why| (vec!["--memory", value], format!("invalid value '{value}' for '--memory <SIZE>': {why}"));
    let cpus = |value| {
        (vec!["--cpus", value], format!("invalid value '{value}' for '--cpus <N>': give a number from 1 to 254"))
    };
    let timeout =
        |value| (vec!["--timeout", value], format!("invalid value '{value}' for '--timeout <DURATION>': {time}"));
    let console = |value| {
        let why = "give stdio, virtio, none, stderr or file=PATH";
        (vec!["--console", value], format!("invalid value '{value}' for '--console <WHERE>': {why}"))
    };
    let tap = "give tap=NAME[,mac=MAC], such as tap=tap0,mac=02:00:00:00:00:01";
    let net =
        |value, why| (vec!["--net", value], format!("invalid value '{value}' for '--net <tap=NAME[,mac=MAC]>': {why}"));
    let vsock = |value, why| {
        (vec!["--vsock", value], format!("invalid value '{value}' for '--vsock <cid=N,socket=PATH>': {why}"))
    };
    let results = |value| {
        let why = "give ktap, tap, junit, go or libtest";
        (vec!["--results", value], format!("invalid value '{value}' for '--results <FORMAT>': {why}"))
    };
    for (args, line) in [
        memory("0", "give at least 2M"),
        memory("1M", "give at least 2M"),
        memory("1E", size),
        memory("-5", size),
        memory("5001K", "give a multiple of 4K, the size of a page"),
        memory("99999999999T", "size out of range"),
        cpus("0"),
        cpus("255"),
        cpus("-1"),
        cpus("x"),
        timeout("5"),
        timeout("-1s"),
        console("x"),
        console("file="),
        results("xml"),
        (
            vec!["--results", "ktap:stdout"],
            "invalid value 'ktap:stdout' for '--results <FORMAT>': only 'kickvm exec' reads results elsewhere than on \
             the console"
                .to_owned(),
        ),
        net("", tap),
        net("tap0", tap),
        net("tap=a,tap=b", tap),
        net("tap=a,mac=1:2:3:4:5:6", "'1:2:3:4:5:6' is not a MAC address such as 02:00:00:00:00:01"),
        net("tap=a,mac=01:00:00:00:00:00", "'01:00:00:00:00:00' is a multicast address: its first byte is odd"),
        vsock("cid=3", "give cid=N,socket=PATH, such as cid=3,socket=vsock.sock"),
        vsock("cid=2,socket=x", "a CID is a number from 3 to 4294967294"),
        (vec!["--frobnicate"], "unexpected argument '--frobnicate' found".to_owned()),
        (vec!["stray"], "unexpected argument 'stray' found".to_owned()),
        (
            vec!["--cmdline", "a", "--append", "b"],
            "the argument '--cmdline <TEXT>' cannot be used with '--append <TEXT>'".to_owned(),
        ),
        (
            vec!["--memory", "1G", "--memory", "2G"],
            "the argument '--memory <SIZE>' cannot be used multiple times".to_owned(),
        ),
    ] {
        let mut command = kickvm(&["run", "--kernel", "kernel"]);
        command.args(args);
        end(command).assert(125, "", &[&format!("kickvm: {line}{SEE}")]);
    }
}

const NO_KERNEL: &str = "no kernel given: use --kernel with a file, a directory or 'host', set KICKVM_KERNEL, or start \
                         kickvm in a build tree of Linux";

#[test]
fn an_incomplete_command_line_is_one_line() {
    for (args, line) in [
        (&["run"][..], NO_KERNEL.to_owned()),
        (&["exec", "true"], NO_KERNEL.to_owned()),
        (&["run", "--kernel"], format!("a value is required for '--kernel <PATH>' but none was supplied{SEE}")),
        (&[], "missing subcommand: expected run, exec, report, demo or doctor; see 'kickvm --help'".to_owned()),
        (&["report"], "missing subcommand: expected merge; see 'kickvm report --help'".to_owned()),
        (&["frobnicate"], "unrecognized subcommand 'frobnicate'; see 'kickvm --help'".to_owned()),
        (
            &["demo", "--cpus=2"],
            "unexpected argument '--cpus' found; it is an option of 'kickvm run'; see 'kickvm demo --help'".to_owned(),
        ),
    ] {
        let mut command = kickvm(args);
        command.env_remove("KICKVM_KERNEL");
        end(command).assert(125, "", &[&format!("kickvm: {line}")]);
    }
}

#[test]
fn help_and_version_succeed() {
    for args in [&["--help"][..], &["-h"], &["help"], &["run", "--help"], &["help", "doctor"]] {
        let ended = end(kickvm(args));
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{args:?}");
        assert!(ended.stdout.contains("Usage: kickvm"), "{args:?}: {}", ended.stdout);
    }
    let version = format!("kickvm {}\n", env!("CARGO_PKG_VERSION"));
    end(kickvm(&["--version"])).assert(0, &version, &[]);
}

#[test]
fn a_resource_that_the_host_lacks_is_an_error_that_names_it() {
    need_kvm!();
    let dir = TempDir::new();
    let kernel = dir.file("kernel", &elf(&[0xf4]));
    let run = |args: &[&str]| {
        let mut command = kickvm(&["run", "--kernel"]);
        command.arg(&kernel).args(args);
        end(command)
    };
    let ended = run(&["--memory", "99999G"]);
    assert!(
        ended
            .stderr
            .starts_with("kickvm: cannot allocate 99999G of guest memory: a guest on this host can have at most ")
    );
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.lines().count()), (Some(125), "", 1));

    let long = "x".repeat(100_000);
    let line = "kickvm: the kernel command line has 100000 bytes, but this kernel takes at most 2047";
    run(&["--cmdline", &long]).assert(125, "", &[line]);

    let line = "kickvm: cannot open console file '/nonexistent/x': No such file or directory";
    run(&["--console", "file=/nonexistent/x"]).assert(125, "", &[line]);
    let line = "kickvm: cannot open console file '/': Is a directory";
    run(&["--console", "file=/"]).assert(125, "", &[line]);

    let name = "an interface name has 1 to 15 characters, none of them a space, '/', ':' or '%'";
    let line = format!("kickvm: cannot use tap interface 'tap%d': {name}");
    run(&["--net", "tap=tap%d"]).assert(125, "", &[&line]);

    let line = "kickvm: cannot create a balloon of 64M: it must be smaller than the guest's memory, 64M";
    run(&["--memory", "64M", "--balloon", "size=64M"]).assert(125, "", &[line]);

    let socket = dir.path().join("socket");
    let option = format!("cid=3,socket={}", socket.display());
    let cannot = |why: &str| format!("kickvm: cannot listen at vsock socket '{}': {why}", socket.display());
    let live = UnixListener::bind(&socket).unwrap();
    run(&["--vsock", &option]).assert(125, "", &[&cannot("another program listens on it; use another path")]);
    drop(live);
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "").unwrap();
    run(&["--vsock", &option]).assert(
        125,
        "",
        &[&cannot("the file exists and is not a socket; remove it or use another path")],
    );
    fs::remove_file(&socket).unwrap();
    let line = "kickvm: cannot listen at vsock socket '/nonexistent/x': No such file or directory";
    run(&["--vsock", "cid=3,socket=/nonexistent/x"]).assert(125, "", &[line]);
    // A stale socket is replaced, and a later error leaves no socket behind.
    drop(UnixListener::bind(&socket).unwrap());
    let line = "kickvm: cannot open console file '/': Is a directory";
    run(&["--vsock", &option, "--console", "file=/"]).assert(125, "", &[line]);
    assert_eq!(names(&dir), ["kernel"], "left behind");
}

/// What would put kickvm's own parameters out of effect is refused before the guest starts.
#[test]
fn a_kernel_command_line_that_exec_cannot_use() {
    need_kvm!();
    let dir = TempDir::new();
    let kernel = dir.file("kernel", &elf(&[0xf4]));
    for (text, parameter, why) in [
        ("a -- b", "--", "the kernel passes what follows to its first process, which is kickvm"),
        ("a=\"b c", "\"", "the quote is not closed, so what follows is one parameter"),
        (
            "rdinit=/init",
            "rdinit",
            "kickvm is the first process of the guest; give the command after the options instead",
        ),
    ] {
        let mut command = kickvm(&["exec", "--append", text, "--kernel"]);
        command.arg(&kernel).args(["--", "true"]);
        let line = format!("kickvm: cannot use '{parameter}' on the kernel command line: {why}");
        end(command).assert(125, "", &[&line]);
    }
    let mut command = kickvm(&["exec", "--append", &"x".repeat(3000), "--kernel"]);
    command.arg(&kernel).args(["--", "true"]);
    let ended = end(command);
    assert!(ended.stderr.contains("bytes, but this kernel takes at most 2047"), "{}", ended.stderr);
    assert_eq!(ended.code, Some(125));
}

#[test]
fn a_refused_command_changes_no_file() {
    let dir = TempDir::new();
    let kernel = dir.file("kernel", &elf(&[0xf4]));
    let old = dir.file("old", b"an old report").to_str().unwrap().to_owned();
    for options in [
        ["--report", &old, "--junit", &old],
        ["--report", &old, "--log", &old],
        ["--junit", &old, "--log", "/"],
        ["--report", &old, "--expect", ""],
        ["--report", &old, "--reject", ""],
        ["--allow", &old, "--log", &old],
        ["--allow", &old, "--junit", &old],
    ] {
        let mut command = kickvm(&["run", "--kernel"]);
        command.arg(&kernel).args(options);
        let ended = end(command);
        assert_eq!(ended.code, Some(125), "{ended:?}");
        assert_eq!(fs::read(&old).unwrap(), b"an old report", "{options:?}");
    }
    for options in [["--root", &old, "--log", &old], ["--copy", &old, "--report", &old]] {
        let mut command = kickvm(&["exec", "--kernel"]);
        command.arg(&kernel).args(options).arg("true");
        let ended = end(command);
        assert_eq!(ended.code, Some(125), "{ended:?}");
        assert_eq!(fs::read(&old).unwrap(), b"an old report", "{options:?}");
    }
    let mut command = kickvm(&["run", "--log", &old, "--kernel"]);
    command.arg(&kernel).stdout(fs::OpenOptions::new().append(true).open(&old).unwrap());
    let ended = end(command);
    assert!(ended.code == Some(125) && ended.stderr.contains("it is where standard output goes"), "{ended:?}");
    assert_eq!(fs::read(&old).unwrap(), b"an old report");
}
