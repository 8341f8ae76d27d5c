//! `kickvm exec` with tiny guests instead of Linux: one that follows the protocol of the channel, and many that violate
//! it.

use crate::common::process::{self as run, Ended, eventually, kickvm};
use crate::common::{TempDir, read_report};
use crate::support::images;
use crate::{guest, need_kvm, never, outb, power_off, print_serial, publish_channel, ring_doorbell, set_frame};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;

guest!(
    OUTPUT_AND_STATUS,
    publish_channel!(),
    "mov dword ptr [rbx + 0x1000], 0x0a796168; mov dword ptr [rbx + 0x40], 4;", // "hay\n"
    "mov dword ptr [rbx + 0x31000], 0x070103; mov dword ptr [rbx + 0x60], 3;",  // Event::Ended, 1 byte, status 7
    ring_doorbell!(),
    "3: hlt; jmp 3b",
);
guest!(
    TWO_PIPES_OF_OUTPUT,
    publish_channel!(),
    "mov dword ptr [rbx + 0x40], 0x20000;",
    ring_doorbell!(),
    "3: hlt; jmp 3b",
);
guest!(
    TWO_PIPES_OF_OUTPUT_AND_STATUS,
    publish_channel!(),
    "mov dword ptr [rbx + 0x40], 0x20000;",
    "mov dword ptr [rbx + 0x31000], 0x070103; mov dword ptr [rbx + 0x60], 3;",
    ring_doorbell!(),
    "3: hlt; jmp 3b",
);
guest!(
    CONSOLE_AND_STATUS,
    publish_channel!(),
    print_serial!(r"on the console\n"),
    "mov ebx, 0x110000; mov dword ptr [rbx + 0x31000], 0x070103; mov dword ptr [rbx + 0x60], 3;",
    ring_doorbell!(),
    "3: hlt; jmp 3b",
);
guest!(POWER_OFF, power_off!(), never!(),);
guest!(NO_HEADER, set_frame!(), ";", ring_doorbell!(), ";", power_off!(), never!(),);
guest!(
    HEADER_OUTSIDE_RAM,
    "mov dx, 0x520; mov eax, 0xffffffff; out dx, eax;",
    ring_doorbell!(),
    ";",
    power_off!(),
    never!(),
);
guest!(
    PAGES_OUTSIDE_RAM,
    publish_channel!(),
    "mov rax, -1; mov [rbx + 0x500], rax;",
    ring_doorbell!(),
    "3: hlt; jmp 3b",
);
guest!(
    HEAD_BEYOND_RING,
    publish_channel!(),
    "mov dword ptr [rbx + 0x40], 0x20001;",
    ring_doorbell!(),
    "3: hlt; jmp 3b",
);
guest!(HEAD_BEHIND_TAIL, publish_channel!(), "mov dword ptr [rbx + 0x60], -1;", ring_doorbell!(), "3: hlt; jmp 3b",);
guest!(
    UNKNOWN_EVENT,
    publish_channel!(),
    "mov dword ptr [rbx + 0x31000], 0x63; mov dword ptr [rbx + 0x60], 2;",
    ring_doorbell!(),
    "3: hlt; jmp 3b",
);
guest!(
    TAIL_BEYOND_HEAD,
    publish_channel!(),
    "mov dword ptr [rbx + 0x78], 77;", // bytes taken out of the ring for standard input, which is empty
    ring_doorbell!(),
    "3: hlt; jmp 3b",
);
guest!(
    INPUT_SINK,
    publish_channel!(),
    ring_doorbell!(),
    "; 3: mov eax, [rbx + 0x70]; mov [rbx + 0x78], eax; jmp 3b", // TAIL = HEAD
);
guest!(DOORBELL_LOOP, "3:", ring_doorbell!(), "; jmp 3b",);
guest!(
    FRAME_LOOP,
    publish_channel!(), // kickvm uses this one, while the guest writes other frame numbers
    ring_doorbell!(),
    "; mov eax, 0; mov dx, 0x520; 3: inc eax; out dx, eax; jmp 3b",
);
guest!(EXIT_PORT, outb!("0xf4", "3"), never!(),);

/// Runs `guest` as the kernel of `kickvm exec`, with these options.
fn exec(guest: &[u8], options: &[&str]) -> Ended {
    let dir = TempDir::new();
    let kernel = dir.file("kernel", &images::elf(guest));
    let mut command = kickvm(&["exec", "--kernel"]);
    command.arg(kernel).args(options).args(["--", "true"]);
    run::end(command)
}

const VIOLATION: &str = "kickvm: the guest violated the protocol of the exec channel";

#[test]
fn output_and_status_sent_through_the_channel_become_kickvms() {
    need_kvm!();
    exec(&OUTPUT_AND_STATUS, &[]).assert(7, "hay\n", &[]);
}

#[test]
fn a_reserved_status_ends_as_119_and_is_in_the_message_and_the_reports() {
    need_kvm!();
    let at = OUTPUT_AND_STATUS.windows(4).position(|bytes| bytes == [3, 1, 7, 0]).unwrap();
    let dir = TempDir::new();
    let [report, junit] = ["report", "junit"].map(|name| dir.path().join(name).to_str().unwrap().to_owned());
    let mut guest = OUTPUT_AND_STATUS;
    for (status, code) in [(0, 0), (119, 119), (120, 119), (125, 119), (126, 126), (127, 127), (128, 119), (255, 119)] {
        guest[at + 2] = status;
        let ended = exec(&guest, &["--reserve-codes", "--report", &report, "--junit", &junit]);
        let why = format!("the command ended with status {status}, which --reserve-codes turns into 119");
        let message = format!("kickvm: {why}");
        let expected = [message.as_str()];
        ended.assert(code, "hay\n", if code == i32::from(status) { &[] } else { &expected });
        let json = read_report(report.as_ref());
        assert_eq!((&json["exit_code"], &json["command_status"]), (&code.into(), &status.into()));
        assert_eq!(fs::read_to_string(&junit).unwrap().contains(&why), code != i32::from(status));
        exec(&guest, &[]).assert(status.into(), "hay\n", &[]);
    }
}

#[test]
fn a_guest_that_powers_off_without_reporting_a_status_is_a_failure() {
    need_kvm!();
    for guest in [&POWER_OFF, &NO_HEADER, &HEADER_OUTSIDE_RAM] {
        exec(guest, &[]).assert(122, "", &["kickvm: the guest powered off before reporting the command's exit status"]);
    }
    let why = "kickvm: the guest ended with status 3 before reporting the command's exit status";
    exec(&EXIT_PORT, &[]).assert(122, "", &[why]);
}

#[test]
fn an_invalid_channel_ends_the_run() {
    need_kvm!();
    for guest in [&PAGES_OUTSIDE_RAM, &HEAD_BEYOND_RING, &HEAD_BEHIND_TAIL, &UNKNOWN_EVENT] {
        exec(guest, &[]).assert(122, "", &[VIOLATION]);
    }
}

#[test]
fn a_consumer_index_ahead_of_the_producer_ends_the_run() {
    need_kvm!();
    let dir = TempDir::new();
    let kernel = dir.file("kernel", &images::elf(&TAIL_BEYOND_HEAD));
    let mut command = kickvm(&["exec", "--memory", "128M", "--kernel"]);
    command.arg(kernel).args(["--", "true"]).stdin(fs::File::open("/etc/passwd").unwrap());
    run::end(command).assert(122, "", &[VIOLATION]);
}

#[test]
fn endless_input_to_a_fast_guest_does_not_block_the_timeout() {
    need_kvm!();
    let dir = TempDir::new();
    let kernel = dir.file("kernel", &images::elf(&INPUT_SINK));
    let mut command = kickvm(&["exec", "--memory", "128M", "--timeout", "300ms", "--kernel"]);
    command.arg(kernel).args(["--", "true"]).stdin(fs::File::open("/dev/zero").unwrap());
    run::end(command).assert_time_out("", "300ms");
}

#[test]
fn a_failed_write_of_output_is_an_error_even_if_the_command_has_ended() {
    need_kvm!();
    let dir = TempDir::new();
    let kernel = dir.file("kernel", &images::elf(&OUTPUT_AND_STATUS));
    let mut command = kickvm(&["exec", "--memory", "128M", "--kernel"]);
    command.arg(kernel).args(["--", "true"]).stdout(fs::File::options().write(true).open("/dev/full").unwrap());
    let why = "kickvm: cannot write the command's output: No space left on device";
    run::end(command).assert(125, "", &[why]);
}

#[test]
fn a_reader_that_closes_a_full_pipe_leaves_the_event_loop_idle() {
    need_kvm!();
    let dir = TempDir::new();
    let kernel = dir.file("kernel", &images::elf(&TWO_PIPES_OF_OUTPUT));
    let mut command = kickvm(&["exec", "--memory", "128M", "--timeout", "30s", "--kernel"]);
    let (mut reader, writer) = io::pipe().unwrap();
    command.arg(kernel).args(["--", "true"]).stdout(writer.try_clone().unwrap());
    let running = run::start(command);
    let mut byte = [0];
    reader.read_exact(&mut byte).unwrap();
    eventually("the pipe to be full", || {
        let mut room = [PollFd::new(writer.as_fd(), PollFlags::POLLOUT)];
        (poll(&mut room, PollTimeout::ZERO) == Ok(0)).then_some(())
    });
    drop((reader, writer));
    running.assert_idle();
    running.signal(Signal::SIGTERM);
    running.end();
}

#[test]
fn output_that_no_reader_takes_is_reported_as_lost() {
    need_kvm!();
    let dir = TempDir::new();
    let kernel = dir.file("kernel", &images::elf(&TWO_PIPES_OF_OUTPUT_AND_STATUS));
    let report = dir.path().join("report");
    let mut command = kickvm(&["exec", "--memory", "128M", "--kernel"]);
    command.arg(kernel).arg("--report").arg(&report).args(["--", "true"]);
    let (_reader, writer) = io::pipe().unwrap();
    command.stdout(writer);
    let why = "the command's last output is lost: its reader takes nothing";
    run::end(command).assert(7, "", &[&format!("kickvm: {why}")]);
    assert!(fs::read_to_string(report).unwrap().contains(why));
}

#[test]
fn the_console_goes_where_the_option_says() {
    need_kvm!();
    exec(&CONSOLE_AND_STATUS, &["--console", "stderr"]).assert(7, "", &["on the console"]);
    let dir = TempDir::new();
    let file = dir.path().join("console");
    exec(&CONSOLE_AND_STATUS, &["--console", &format!("file={}", file.display())]).assert(7, "", &[]);
    assert_eq!(fs::read_to_string(file).unwrap(), "on the console\n");
}

#[test]
fn endless_doorbell_or_frame_writes_do_not_block_the_timeout() {
    need_kvm!();
    for guest in [&DOORBELL_LOOP, &FRAME_LOOP] {
        exec(guest, &["--timeout", "300ms"]).assert_time_out("", "300ms");
    }
}

#[test]
fn a_signal_before_the_command_has_started_ends_the_run() {
    need_kvm!();
    let dir = TempDir::new();
    let kernel = dir.file("kernel", &images::elf(&DOORBELL_LOOP));
    let mut command = kickvm(&["exec", "--memory", "128M", "--kernel"]);
    command.arg(kernel).args(["--", "true"]);
    let running = run::start(command);
    running.wait_for_thread("vcpu0");
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.end().assert(143, "", &["kickvm: stopped by SIGTERM"]);
}

#[test]
fn an_invalid_option_is_reported_in_one_line() {
    for (options, message) in [
        (
            &["--fail-on", "smoke"][..],
            "kickvm: invalid value 'smoke' for '--fail-on <CLASS,...>': give one of oops, warn, kasan, ",
        ),
        (
            &["--console", "stdio"],
            "kickvm: invalid value 'stdio' for '--console <WHERE>': give none, stderr or file=PATH",
        ),
        (
            &["--results", "ktap:stderr"],
            "kickvm: invalid value 'ktap:stderr' for '--results <FORMAT[:stdout|:console|:file=PATH]>': 'stderr' is no source of test",
        ),
        (&["--tiemout", "5s"], "kickvm: unexpected argument '--tiemout' found"),
        (&["--root", "/no/such"], "kickvm: cannot pack '/no/such': No such file or directory"),
        (&["--copy", "/no/such"], "kickvm: cannot pack '/no/such': No such file or directory"),
        (&["--symbols", "/dev/null"], "kickvm: cannot use --symbols '/dev/null': it is not a regular file"),
        (
            &["--memory", "8M", "--copy", "/bin/sh"],
            "kickvm: guest memory of 8M is too small for '/bin/sh': its files take ",
        ),
    ] {
        let ended = exec(&POWER_OFF, options);
        assert!(ended.code == Some(125) && ended.stderr.starts_with(message), "{options:?}: {ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    }
}
