//! What kickvm concludes from a console: no false green and no false red. The guests print a log and end.

use crate::common::process::Ended;
use crate::common::{TempDir, read_report};
use crate::need_kvm;
use crate::support::guests::HALT;
use crate::support::run::run;
use crate::support::stuck::{in_mount_namespace, need_mounts};
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::process::CommandExt;

/// How a guest ends after it has printed.
#[derive(Clone, Copy, Debug)]
pub enum End {
    PowerOff,
    Reset,
    Hang,
}

/// Runs a guest that prints `log` and ends.
pub fn print_and(end: End, log: &str, options: &[&str]) -> Ended {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    code.extend(log.bytes().flat_map(|byte| [0xb0, byte, 0xee])); // mov al, byte; out dx, al
    code.extend_from_slice(match end {
        End::PowerOff => &[0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee], // mov dx, 0x600; mov al, 0x34; out dx, al
        End::Reset => &[0xb0, 0xfe, 0xe6, 0x64],                      // mov al, 0xfe; out 0x64, al
        End::Hang => &[],
    });
    code.extend([0xf4, 0xeb, 0xfd]); // hlt; jmp to the hlt
    run(&code, options).end()
}

pub const BANNER: &str = "[    0.000000] Linux version 6.1\r\n";
const ORDERLY: &str = "[    9.000000] reboot: Restarting system\r\n";
pub const PANIC: &str = "[    2.000000] Kernel panic - not syncing: x\r\n";
pub const PANICKED: &str = "kickvm: the guest kernel panicked";
const UNREQUESTED: &str = "kickvm: the guest reset, although no program had requested it (--fail-on reset); \
                           '--fail-on -reset' accepts that";

#[track_caller]
pub fn check(end: End, log: &str, options: &[&str], code: i32, message: &[&str]) {
    let ended = print_and(end, log, options);
    let seen: Vec<_> = ended.stderr.lines().filter(|line| !line.starts_with("kickvm: vCPU ")).collect();
    assert_eq!((ended.code, seen), (Some(code), message.to_vec()), "{end:?} after {log:?} with {options:?}");
    assert_eq!(ended.stdout, log);
}

#[test]
fn a_panic_behind_any_text_is_120() {
    need_kvm!();
    for before in ["", "# ", "10%\r", "no end", "\x1b[1;32muser@host\x1b[0m:~$ ", "[ 50%] Building [=====>   ] "] {
        for banner in ["", BANNER] {
            let log = format!("{banner}{before}{PANIC}");
            check(End::Reset, &log, &[], 120, &[PANICKED]);
            let log = format!("{log}[    2.100000] ---[ end Kernel panic - not syncing: x ]---\r\n");
            check(End::Hang, &log, &["--timeout", "20s"], 120, &[PANICKED]);
        }
    }
    // Without printk prefixes.
    for before in ["", "# ", "Linux version 6.1\r\nno end"] {
        check(End::Reset, &format!("{before}Kernel panic - not syncing: x\r\n"), &[], 120, &[PANICKED]);
    }
}

#[test]
fn what_a_program_prints_is_no_panic() {
    need_kvm!();
    let text = "Kernel panic - not syncing: in a program\r\n";
    check(End::PowerOff, text, &[], 0, &[]);
    check(End::Reset, &format!("{BANNER}{text}{ORDERLY}"), &[], 0, &[]);
    check(End::Reset, &format!("{text}reboot: Restarting system\r\n"), &[], 0, &[]);
    check(End::PowerOff, &format!("{BANNER}{PANIC}"), &[], 0, &[]);
}

#[test]
fn a_reset_that_nothing_explains_is_a_failure_by_default() {
    need_kvm!();
    check(End::Reset, BANNER, &[], 123, &[UNREQUESTED]);
    check(End::Reset, BANNER, &["--fail-on", "oops"], 123, &[UNREQUESTED]);
    check(End::Reset, BANNER, &["--fail-on", "-reset"], 0, &[]);
    check(End::Reset, &format!("{BANNER}{ORDERLY}"), &[], 0, &[]);
    check(End::Reset, "not Linux\n", &[], 0, &[]);
    let gave_up = format!("{BANNER}Rebooting automatically due to panic= boot argument\r\n{ORDERLY}");
    check(End::Reset, &gave_up, &[], 123, &[UNREQUESTED]);
}

#[test]
fn a_fault_behind_any_text_is_123_and_a_copy_of_one_is_not() {
    need_kvm!();
    let oops = "[    3.000000][    T7] BUG: kernel NULL pointer dereference, address: 0\r\n";
    let why =
        "kickvm: the guest kernel reported a fault (--fail-on oops): BUG: kernel NULL pointer dereference, address: 0";
    for before in ["", "# ", "10%\r", "no end"] {
        check(End::PowerOff, &format!("{BANNER}{before}{oops}"), &["--fail-on", "default"], 123, &[why]);
    }
    let copies = format!("{BANNER}[    8.000000] x\r\n{oops}BUG: of a program\r\n");
    check(End::PowerOff, &copies, &["--fail-on", "all"], 0, &[]);
    check(End::PowerOff, &format!("{BANNER}{oops}"), &["--fail-on", "all,-oops"], 0, &[]);
}

#[test]
fn a_console_that_shows_no_panic_is_warned_about() {
    need_kvm!();
    let warning = "kickvm: warning: 'loglevel=0' on the kernel command line hides a panic from the console";
    check(End::PowerOff, "x\n", &["--append", "loglevel=0"], 0, &[warning]);
    check(End::PowerOff, "x\n", &["--append", "loglevel=0 loglevel=4"], 0, &[]);
}

#[test]
fn a_run_that_is_killed_leaves_no_old_report() {
    need_kvm!();
    let mut run = run(&HALT, &[]);
    let (report, junit) = (run.dir.path().join("report"), run.dir.path().join("junit"));
    let dir = run.dir.path().to_owned();
    for file in [&report, &junit] {
        fs::write(file, "an old green, which is longer than the new report".repeat(200)).unwrap();
    }
    run.command.arg("--report").arg(&report).arg("--junit").arg(&junit);
    let mut running = run.start();
    running.wait_for("up");
    running.signal(Signal::SIGKILL);
    running.child.wait().unwrap();
    let value = read_report(&report);
    assert_eq!((&value["outcome"], &value["exit_code"]), (&"unfinished".into(), &125.into()));
    assert!(fs::read_to_string(junit).unwrap().contains(r#"failures="0" errors="1""#));
    assert_eq!(fs::read_dir(dir).unwrap().count(), 3, "the kernel and the reports");
}

/// The new report is shorter than the one of an unfinished run, and must not have a rest of it.
#[track_caller]
fn is_replaced_in_place(report: &std::path::Path) {
    let mut run = run(&HALT, &["--timeout", "1s"]);
    run.command.arg("--junit").arg(report);
    run.end().assert_time_out("up", "1s");
    let text = fs::read_to_string(report).unwrap();
    assert!(text.starts_with("<?xml") && text.ends_with("</testsuites>\n") && text.contains("exit code 124"), "{text}");
}

#[test]
fn a_report_that_is_a_mount_point_is_replaced() {
    need_mounts!();
    in_mount_namespace(|| {
        let dir = TempDir::new();
        let (report, source) = (dir.file("report", b""), dir.file("source", b""));
        mount(Some(&source), &report, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        is_replaced_in_place(&report);
        assert_eq!(fs::read(&source).unwrap(), fs::read(&report).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file is left");
        nix::mount::umount(&report).unwrap();
    });
}

#[test]
fn a_report_whose_name_leaves_no_space_for_a_temporary_one_is_replaced() {
    need_kvm!();
    let dir = TempDir::new();
    is_replaced_in_place(&dir.path().join("r".repeat(255)));
}

#[test]
fn a_report_that_must_not_grow_is_an_error() {
    let mut run = run(&HALT, &[]);
    let report = run.dir.path().join("report");
    run.command.arg("--report").arg(&report);
    // SAFETY: the closure makes one system call.
    unsafe { run.command.pre_exec(|| Ok(setrlimit(Resource::RLIMIT_FSIZE, 0, 0)?)) };
    let why = format!("kickvm: cannot write --report '{}': File too large", report.display());
    run.end().assert(125, "", &[&why]);
}

const OOPS: &str = "[    1.500000][    T7] BUG: kernel NULL pointer dereference, address: 0000000000000000\r\n\
                    [    1.500100][    T7] #PF: supervisor read access in kernel mode\r\n\
                    [    1.500150][    C1] other: message of another CPU\r\n\
                    [    1.500200][    T7] Oops: 0000 [#1] PREEMPT SMP\r\n\
                    [    1.500300][    T7] RIP: 0010:do_it+0x1/0x20\r\n\
                    [    1.500400][    T7] Call Trace:\r\n\
                    [    1.500500][    T7]  caller+0x3/0x4\r\n\
                    [    1.500600][    T7] ---[ end trace 0000000000000000 ]---\r\n";
const TITLE: &str = "BUG: unable to handle kernel NULL pointer dereference in do_it";

#[test]
fn the_report_has_each_fault_with_its_title_and_its_whole_report() {
    need_kvm!();
    let dir = TempDir::new();
    let report = dir.path().join("report.json");
    let junit = dir.path().join("junit.xml");
    let log = format!("{BANNER}{OOPS}[    1.600000][    T7] unrelated\r\n{}", OOPS.replace("T7", "T8"));
    let options = ["--report", report.to_str().unwrap(), "--junit", junit.to_str().unwrap(), "--fail-on", "oops"];
    let violated = "kickvm: the guest kernel reported a fault (--fail-on oops): \
                    BUG: kernel NULL pointer dereference, address: 0000000000000000 (in do_it)";
    check(End::PowerOff, &log, &options, 123, &[violated]);
    let value = read_report(&report);
    let [fault] = &value["faults"].as_array().unwrap()[..] else { panic!("{value}") };
    assert_eq!((&fault["title"], &fault["function"]), (&TITLE.into(), &"do_it".into()));
    assert_eq!((&fault["count"], &fault["allowed"]), (&2.into(), &false.into()));
    assert_eq!(fault["classes"], serde_json::json!(["oops"]));
    let lines = fault["report"].as_array().unwrap();
    assert_eq!((lines.len(), &lines[6]), (7, &"---[ end trace 0000000000000000 ]---".into()));
    let junit = fs::read_to_string(junit).unwrap();
    assert!(junit.contains(&format!("{TITLE} (2x)\nBUG: kernel NULL")), "{junit}");
}

#[test]
fn permitted_faults_do_not_fail_a_run() {
    need_kvm!();
    let dir = TempDir::new();
    let allow = |text: &str| dir.file("allow", text.as_bytes()).to_str().unwrap().to_owned();
    let log = format!("{BANNER}{OOPS}");
    for (list, code) in [
        ("# known\n\noops: NULL pointer dereference in do_it$", 0),
        ("address: 0{16}$", 0),
        ("warn: do_it", 123),
        ("do_that", 123),
        ("", 123),
    ] {
        let ended = print_and(End::PowerOff, &log, &["--fail-on", "all", "--allow", &allow(list)]);
        assert_eq!(ended.code, Some(code), "{list}: {ended:?}");
    }
    let ended = print_and(End::PowerOff, &log, &["-v", "--fail-on", "all", "--allow", &allow("do_it\nx: y")]);
    assert!(ended.stderr.contains(&format!("kickvm: fault: {TITLE} (oops; 1x; permitted by --allow)\n")), "{ended:?}");
    assert!(ended.stderr.contains("kickvm: no fault matched the --allow expression 'x: y' ("), "{ended:?}");
    // A panic always fails.
    let ended = print_and(End::Reset, &format!("{log}{PANIC}"), &["--fail-on", "all", "--allow", &allow(".")]);
    assert_eq!(ended.code, Some(120));
    let ended = print_and(End::PowerOff, "", &["--allow", &allow("(")]);
    assert_eq!(ended.code, Some(125));
    assert!(ended.stderr.contains("cannot use the expression '(' ("), "{ended:?}");
    for (path, why) in [
        ("/nonexistent", "No such file"),
        ("/dev/zero", "it is not a regular file"),
        ("/", "it is a directory"),
        ("/proc/self/exe", "it is larger than 1M"),
    ] {
        let ended = print_and(End::PowerOff, "", &["--allow", path]);
        assert_eq!(ended.code, Some(125));
        assert!(ended.stderr.contains(&format!("'{path}'")) && ended.stderr.contains(why), "{ended:?}");
    }
    // Its report has a WARNING, too, but begins with another class.
    let log =
        format!("{BANNER}[    1.000000] refcount_t: x\r\n[    1.000001] WARNING: CPU: 0 PID: 1 at x.c:1 f+0x1/0x2\r\n");
    for (list, code) in [("warn: .", 123), ("refcount: .", 0)] {
        let ended = print_and(End::PowerOff, &log, &["--fail-on", "all", "--allow", &allow(list)]);
        assert_eq!(ended.code, Some(code), "{list}: {ended:?}");
    }
}

#[test]
fn a_fault_before_the_expected_line_fails_the_run() {
    need_kvm!();
    let log = format!("{BANNER}[    1.500000] WARNING: CPU: 0 PID: 1 at x.c:1 f+0x1/0x2\r\nPASS\r\n");
    let violated =
        "kickvm: the guest kernel reported a fault (--fail-on warn): WARNING: CPU: 0 PID: 1 at x.c:1 f+0x1/0x2";
    check(End::Hang, &log, &["--fail-on", "warn", "--expect", "^PASS"], 123, &[violated]);
}

#[test]
fn a_ci_service_shows_errors_and_takes_no_commands_from_the_guest() {
    need_kvm!();
    let dir = TempDir::new();
    let summary = dir.file("summary", b"before\n");
    let log = format!("{BANNER}::error::of the guest\r\n{OOPS}");
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    code.extend(log.bytes().flat_map(|byte| [0xb0, byte, 0xee]));
    code.extend([0xb0, 7, 0xe6, 0xf4]); // mov al, 7; out 0xf4, al
    let mut github = run(&code, &["--fail-on", "oops"]);
    github.command.env("GITHUB_ACTIONS", "true").env("GITHUB_STEP_SUMMARY", &summary);
    let output = github.command.output().unwrap(); // reads, as a CI service does
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(123), log.as_bytes()));
    let stderr = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<_> = stderr.lines().collect();
    let token = lines[0].strip_prefix("::stop-commands::").unwrap();
    assert_eq!((token.len(), lines[2]), (39, format!("::{token}::").as_str()));
    assert!(lines[3].starts_with("::error title=") && lines[3].contains(&TITLE.replace(':', "%3A")), "{lines:?}");
    let summary = fs::read_to_string(summary).unwrap();
    assert!(summary.starts_with("before\n### kickvm\n") && summary.contains("#PF: supervisor read"), "{summary}");

    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut github = run(&code, &["--fail-on", "oops"]);
    github.command.env("GITHUB_ACTIONS", "true").env("GITHUB_STEP_SUMMARY", &fifo);
    let output = github.command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(123) && stderr.contains("(GITHUB_STEP_SUMMARY): no process reads"),
        "{stderr}"
    );

    // What the service could take for a command is not followed by the end of the fence.
    let end = code.len() - 4;
    code.splice(end..end, "::error::x".bytes().flat_map(|byte| [0xb0, byte, 0xee]));
    let output = run(&code, &["--annotate", "github"]).command.output().unwrap();
    assert!(output.stdout.ends_with(b"::error::x") && !String::from_utf8_lossy(&output.stderr).contains("::error"));

    let ended = run(&code, &["--fail-on", "oops", "--annotate", "gitlab"]).end();
    assert!(ended.stderr.contains(":kickvm_") && ended.stderr.contains("| RIP: 0010:do_it"), "{ended:?}");
    let mut off = run(&code, &["--fail-on", "oops", "--annotate", "off"]);
    off.command.env("GITHUB_ACTIONS", "true");
    assert_eq!(off.end().stderr.lines().count(), 1);
}
