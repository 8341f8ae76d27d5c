//! `kickvm exec` and guests that are no Linux: one that speaks the channel's language, and many that break its rules.

use crate::common::TempDir;
use crate::common::process::{self as run, Ended, kickvm};
use crate::support::images;
use crate::{guest, need_kvm, never, outb, power_off};

/// Names the page at 0x110000 as the channel's header.
macro_rules! name_header {
    () => {
        "mov dx, 0x520; mov eax, 0x110; out dx, eax"
    };
}

/// Rings the bell.
macro_rules! ring {
    () => {
        "mov dx, 0x524; out dx, al"
    };
}

/// Makes a channel of the pages from 0x110000 on, whose header is complete. The ring for events is at 0x141000, its words at
/// 0x110060; the ring for output is at 0x111000, its words at 0x110040.
macro_rules! channel {
    () => {
        concat!(
            "mov edi, 0x110400; mov eax, 0x110; mov ecx, 67; ",
            "2: mov [rdi], rax; add edi, 8; inc eax; dec ecx; jnz 2b; ",
            "mov ebx, 0x110000; mov dword ptr [rbx], 0x3143584b; ", // "KXC1"
            name_header!()
        )
    };
}

guest!(
    SPEAKS,
    channel!(),
    "mov dword ptr [rbx + 0x1000], 0x0a796168; mov dword ptr [rbx + 0x40], 4;", // "hay\n"
    "mov dword ptr [rbx + 0x31000], 0x070103; mov dword ptr [rbx + 0x60], 3;",  // ended, one byte, 7
    ring!(),
    "3: hlt; jmp 3b",
);
guest!(SAYS_NOTHING, power_off!(), never!(),);
guest!(NO_HEADER, name_header!(), ";", ring!(), ";", power_off!(), never!(),);
guest!(NOWHERE, "mov dx, 0x520; mov eax, 0xffffffff; out dx, eax;", ring!(), ";", power_off!(), never!(),);
guest!(PAGES_OUTSIDE_RAM, channel!(), "mov rax, -1; mov [rbx + 0x500], rax;", ring!(), "3: hlt; jmp 3b",);
guest!(HEAD_TOO_FAR, channel!(), "mov dword ptr [rbx + 0x40], 0x20001;", ring!(), "3: hlt; jmp 3b",);
guest!(HEAD_BEHIND, channel!(), "mov dword ptr [rbx + 0x60], -1;", ring!(), "3: hlt; jmp 3b",);
guest!(
    NO_SUCH_EVENT,
    channel!(),
    "mov dword ptr [rbx + 0x31000], 0x63; mov dword ptr [rbx + 0x60], 2;",
    ring!(),
    "3: hlt; jmp 3b",
);
guest!(
    INPUT_TAKEN_TWICE,
    channel!(),
    "mov dword ptr [rbx + 0x78], 77;", // bytes of input taken, of which none was given
    ring!(),
    "3: hlt; jmp 3b",
);
guest!(TAKES_ALL_INPUT, channel!(), ring!(), "; 3: mov eax, [rbx + 0x70]; mov [rbx + 0x78], eax; jmp 3b",);
guest!(RINGS_FOR_EVER, "3:", ring!(), "; jmp 3b",);
guest!(
    MOVES,
    channel!(), // and names another page for ever, while kickvm uses the first
    ring!(),
    "; mov eax, 0; mov dx, 0x520; 3: inc eax; out dx, eax; jmp 3b",
);
guest!(EXITS, outb!("0xf4", "3"), never!(),);

/// Runs `guest` as the kernel of an exec, with these options.
fn exec(guest: &[u8], options: &[&str]) -> Ended {
    let dir = TempDir::new();
    let kernel = dir.file("kernel", &images::elf(guest));
    let mut command = kickvm(&["exec", "--kernel"]);
    command.arg(kernel).args(options).args(["--", "true"]);
    run::end(command)
}

const BROKEN: &str = "kickvm: the guest broke the channel to its command";

#[test]
fn a_guest_that_speaks_the_channels_language_has_its_say_and_its_status() {
    need_kvm!();
    exec(&SPEAKS, &[]).assert(7, "hay\n", &[]);
}

#[test]
fn a_guest_that_powers_off_without_a_word_is_no_success() {
    need_kvm!();
    for guest in [&SAYS_NOTHING, &NO_HEADER, &NOWHERE] {
        exec(guest, &[]).assert(122, "", &["kickvm: the command's end is not known: the guest powered off"]);
    }
    exec(&EXITS, &[]).assert(3, "", &[]);
}

#[test]
fn a_channel_that_cannot_be_is_the_end() {
    need_kvm!();
    for guest in [&PAGES_OUTSIDE_RAM, &HEAD_TOO_FAR, &HEAD_BEHIND, &NO_SUCH_EVENT] {
        exec(guest, &[]).assert(122, "", &[BROKEN]);
    }
}

#[test]
fn input_that_was_taken_before_it_came_is_the_end() {
    need_kvm!();
    let dir = TempDir::new();
    let kernel = dir.file("kernel", &images::elf(&INPUT_TAKEN_TWICE));
    let mut command = kickvm(&["exec", "--memory", "128M", "--kernel"]);
    command.arg(kernel).args(["--", "true"]).stdin(std::fs::File::open("/etc/passwd").unwrap());
    run::end(command).assert(122, "", &[BROKEN]);
}

#[test]
fn input_without_end_that_is_taken_at_once_does_not_keep_the_loop_from_its_timeout() {
    need_kvm!();
    let dir = TempDir::new();
    let kernel = dir.file("kernel", &images::elf(&TAKES_ALL_INPUT));
    let mut command = kickvm(&["exec", "--memory", "128M", "--timeout", "300ms", "--kernel"]);
    command.arg(kernel).args(["--", "true"]).stdin(std::fs::File::open("/dev/zero").unwrap());
    run::end(command).assert_time_out("", "300ms");
}

#[test]
fn output_that_cannot_be_written_is_an_error_however_soon_the_command_ends() {
    need_kvm!();
    let dir = TempDir::new();
    let kernel = dir.file("kernel", &images::elf(&SPEAKS));
    let mut command = kickvm(&["exec", "--memory", "128M", "--kernel"]);
    command.arg(kernel).args(["--", "true"]).stdout(std::fs::File::options().write(true).open("/dev/full").unwrap());
    let why = "kickvm: cannot write the command's output: No space left on device";
    run::end(command).assert(125, "", &[why]);
}

#[test]
fn a_guest_that_rings_for_ever_or_moves_its_channel_is_ended_by_the_timeout() {
    need_kvm!();
    for guest in [&RINGS_FOR_EVER, &MOVES] {
        exec(guest, &["--timeout", "300ms"]).assert_time_out("", "300ms");
    }
}

#[test]
fn a_signal_before_the_command_ends_the_run() {
    need_kvm!();
    let dir = TempDir::new();
    let kernel = dir.file("kernel", &images::elf(&RINGS_FOR_EVER));
    let mut command = kickvm(&["exec", "--memory", "128M", "--kernel"]);
    command.arg(kernel).args(["--", "true"]);
    let running = run::start(command);
    running.wait_for_thread("vcpu0");
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.end().assert(143, "", &["kickvm: stopped by SIGTERM"]);
}

#[test]
fn options_that_cannot_be_are_said_in_one_line() {
    for (options, said) in [
        (
            &["--fail-on", "smoke"][..],
            "kickvm: invalid value 'smoke' for '--fail-on <TROUBLE,...>': give oops, lockup, hung or warn",
        ),
        (
            &["--console", "stdio"],
            "kickvm: invalid value 'stdio' for '--console <WHERE>': give none, stderr or file=PATH",
        ),
        (&["--tiemout", "5s"], "kickvm: unexpected argument '--tiemout' found"),
        (&["--root", "/no/such"], "kickvm: cannot pack '/no/such': No such file or directory"),
        (&["--add", "/no/such"], "kickvm: cannot pack '/no/such': No such file or directory"),
        (&["--symbols", "/dev/null"], "kickvm: cannot use --symbols '/dev/null': It is not a regular file"),
        (
            &["--memory", "8M", "--add", "/bin/sh"],
            "kickvm: guest memory of 8M is too small for '/bin/sh': its files take ",
        ),
    ] {
        let ended = exec(&SAYS_NOTHING, options);
        assert!(ended.code == Some(125) && ended.stderr.starts_with(said), "{options:?}: {ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    }
}
