//! Disks that do not answer, or are slow: however a run ends, it ends in time, as waitpid(2) sees it.

use crate::common::fuse::Fuse;
use crate::common::process::{Running, eventually};
use crate::common::{TempDir, read_report};
use crate::support::run::{Run, run};
use crate::support::stuck::{
    LIMIT, Release, Stuck, child_named, dead_device, frozen_ext4, in_mount_namespace, need_mounts, silent_fuse,
    wait_for_end,
};
use crate::{guest, power_off, print_serial};
use nix::pty::openpty;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// A guest controlled by keys: `g` makes 64 requests of this type for different parts of the disk available; `r` resets
/// the device and prints whether that is done; `o` powers off.
macro_rules! disk_user {
    ($name:ident, $kind:literal, $data_flags:literal) => {
        driver!(
            $name,
            [],
            negotiate!(),
            queue!("256", "0x104000", "0x105000", "0x106000"),
            driver_ok!(),
            print_serial!(r"up\n"),
            "7: mov dx, 0x3fd; in al, dx; test al, 1; jz 7b",
            "mov dx, 0x3f8; in al, dx; cmp al, 111; je 8f; cmp al, 114; je 9f; cmp al, 103; jne 7b",
            // Headers are at 0x108000, statuses at 0x107000, data is at 0x120000.
            "xor ecx, ecx; mov edi, 0x104000;",
            "3: mov edx, ecx; shl edx, 4; add edx, 0x108000;",
            concat!("mov dword ptr [rdx], ", $kind, "; mov eax, ecx; shl eax, 5; mov [rdx + 8], eax;"),
            "lea eax, [rcx + 2 * rcx]; mov [0x105004 + 2 * rcx], ax; inc eax; shl eax, 16;",
            "mov [rdi], rdx; mov dword ptr [rdi + 8], 16; mov [rdi + 12], eax; or word ptr [rdi + 12], 1;",
            "add eax, 0x10000; mov edx, ecx; shl edx, 12; add edx, 0x120000;",
            "mov [rdi + 16], rdx; mov dword ptr [rdi + 24], 4096; mov [rdi + 28], eax;",
            concat!("or word ptr [rdi + 28], ", $data_flags, "; lea edx, [rcx + 0x107000];"),
            "mov [rdi + 32], rdx; mov dword ptr [rdi + 40], 1; mov dword ptr [rdi + 44], 2;",
            "add edi, 48; inc ecx; cmp ecx, 64; jne 3b; mov word ptr [0x105002], 64;",
            reg!("0x50", "0"),
            print_serial!(r"busy\n"),
            "jmp 7b; 9:",
            reg!("0x70", "0"),
            "cmp dword ptr [rbx + 0x70], 0; jne 9f",
            print_serial!(r"reset done\n"),
            "jmp 7b; 9:",
            print_serial!(r"reset pending\n"),
            "jmp 7b; 8:",
            power_off!()
        );
    };
}
disk_user!(READER, "0", "3");
disk_user!(WRITER, "1", "1");

// Writes its 512 bytes to 8 sectors, one after the other, and powers off.
driver!(
    SLOW_WRITER,
    [("0x101000", "16", "1", "1"), ("0x102000", "512", "1", "2"), ("0x103000", "1", "2", "0")],
    negotiate!(),
    good_queue!(),
    "mov word ptr [0x100682], 0;",
    driver_ok!(),
    "mov dword ptr [0x101000], 1; mov dword ptr [0x102000], 0x6b63696b; mov byte ptr [0x103000], 99; xor ecx, ecx;",
    "7: mov [0x101008], ecx; inc ecx; mov [0x100682], cx;",
    reg!("0x50", "0"),
    "8: cmp [0x1006c2], cx; jne 8b; cmp byte ptr [0x103000], 0; jne 9f; cmp ecx, 8; jne 7b;",
    power_off!(),
    "9: mov al, 9; out 0xf4, al"
);

/// Takes io_uring from the command.
#[expect(clippy::cast_possible_truncation, reason = "instructions have 16 bits, and numbers of system calls are small")]
fn without_io_uring(command: &mut Command) {
    let deny = || {
        let instruction = |code: u32, jf, k| libc::sock_filter { code: code as u16, jt: 0, jf, k };
        let mut filter = [
            instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0), // the number of the call
            instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, libc::SYS_io_uring_setup as u32),
            instruction(libc::BPF_RET, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
            instruction(libc::BPF_RET, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the program and its instructions are live locals.
        let result = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
                | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: the closure makes system calls only.
    unsafe { command.pre_exec(deny) };
}

/// What ends the run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kick {
    Timeout,
    Sigterm,
    PowerOff,
    CtrlAX,
    PowerOffAfterReset,
}

/// Starts a guest at a terminal, and waits until it is up.
fn start(mut run: Run) -> (Running, File) {
    let pty = openpty(None, None).unwrap();
    run.command.stdin(pty.slave);
    let mut running = run.start();
    running.wait_for("up\n");
    (running, pty.master.into())
}

/// Stops `fs`, lets the guest use its disk there, and waits until a request is stuck. Returns the I/O process.
#[track_caller]
fn get_stuck(running: &mut Running, keys: &mut File, fs: &dyn Stuck) -> Pid {
    fs.stop();
    keys.write_all(b"g").unwrap();
    running.wait_for("busy\n");
    eventually("a request to be stuck", || {
        child_named(running.pid(), "kickvm-io").filter(|process| fs.has_stopped(*process))
    })
}

/// Runs `guest`, which uses the disk on `fs`, stops `fs`, and asserts that `kick` ends the run in time.
#[track_caller]
fn ends_in_time(fs: &dyn Stuck, guest: &[u8], io_uring: bool, kick: Kick) {
    let mut run: Run = run(guest, &["--no-rng"]);
    let disk = fs.file().display().to_string();
    let report = run.dir.path().join("report");
    run.command.args(["--disk", &disk, "--report"]).arg(&report);
    if kick == Kick::Timeout {
        run.command.args(["--timeout", "2s"]);
    }
    if !io_uring {
        without_io_uring(&mut run.command);
    }
    let began = Instant::now();
    let (mut running, mut keys) = start(run);
    let release = Release(fs);
    let io_process = get_stuck(&mut running, &mut keys, fs);
    if kick == Kick::PowerOffAfterReset {
        keys.write_all(b"r").unwrap();
        running.wait_for("reset pending\n");
    }
    let (code, kicked) = match kick {
        Kick::Timeout => (124, None),
        Kick::Sigterm => {
            running.signal(Signal::SIGTERM);
            (143, Some(Instant::now()))
        }
        Kick::PowerOff | Kick::PowerOffAfterReset => {
            keys.write_all(b"o").unwrap();
            (0, Some(Instant::now()))
        }
        Kick::CtrlAX => {
            keys.write_all(b"\x01x").unwrap();
            (0, Some(Instant::now()))
        }
    };
    let status = eventually("the process to end", || running.child.try_wait().unwrap());
    let ended = Instant::now();
    let report = read_report(&report);
    let kicked = kicked.unwrap_or(began + Duration::from_secs_f64(report["seconds"]["to_end"].as_f64().unwrap()));
    let late = ended.saturating_duration_since(kicked);
    assert!(late < LIMIT, "{kick:?}: it ended after {late:?}");
    assert_eq!(status.code(), Some(code), "{kick:?}");
    assert_eq!(report["exit_code"], code);
    assert!(report["console"].as_array().unwrap().iter().any(|line| line == "busy"), "{report}");
    let note = report["notes"][0].as_str().unwrap_or_default();
    assert!(note.starts_with(&format!("disk '{disk}' did not answer: ")), "{report}");
    assert!(note.ends_with(" abandoned"), "{report}");

    drop(release);
    wait_for_end(io_process);
}

/// Two tests, with and without io_uring, for each combination.
macro_rules! stuck_disks {
    ($($name:ident: $guest:ident on $fs:ident, $kick:ident;)*) => {$(
        #[test]
        fn $name() {
            need_mounts!();
            for io_uring in [true, false] {
                in_mount_namespace(|| {
                    let dir = TempDir::new();
                    ends_in_time(&$fs(&dir), &$guest, io_uring, Kick::$kick);
                });
            }
        }
    )*};
}

stuck_disks! {
    reads_of_a_silent_fuse_server_end_by_the_timeout: READER on silent_fuse, Timeout;
    reads_of_a_silent_fuse_server_end_by_sigterm: READER on silent_fuse, Sigterm;
    reads_of_a_silent_fuse_server_end_by_power_off: READER on silent_fuse, PowerOff;
    reads_of_a_silent_fuse_server_end_by_ctrl_a_x: READER on silent_fuse, CtrlAX;
    reads_of_a_silent_fuse_server_end_by_a_reset: READER on silent_fuse, PowerOffAfterReset;
    writes_to_a_silent_fuse_server_end_by_the_timeout: WRITER on silent_fuse, Timeout;
    writes_to_a_silent_fuse_server_end_by_sigterm: WRITER on silent_fuse, Sigterm;
    writes_to_a_silent_fuse_server_end_by_power_off: WRITER on silent_fuse, PowerOff;
    writes_to_a_silent_fuse_server_end_by_ctrl_a_x: WRITER on silent_fuse, CtrlAX;
    writes_to_a_silent_fuse_server_end_by_a_reset: WRITER on silent_fuse, PowerOffAfterReset;
    reads_of_a_dead_device_end_by_the_timeout: READER on dead_device, Timeout;
    reads_of_a_dead_device_end_by_power_off: READER on dead_device, PowerOff;
    writes_to_a_frozen_file_system_end_by_the_timeout: WRITER on frozen_ext4, Timeout;
    writes_to_a_frozen_file_system_end_by_sigterm: WRITER on frozen_ext4, Sigterm;
    writes_to_a_frozen_file_system_end_by_power_off: WRITER on frozen_ext4, PowerOff;
    writes_to_a_frozen_file_system_end_by_ctrl_a_x: WRITER on frozen_ext4, CtrlAX;
    writes_to_a_frozen_file_system_end_by_a_reset: WRITER on frozen_ext4, PowerOffAfterReset;
}

#[test]
fn an_idle_disk_whose_server_is_silent_does_not_keep_a_run_from_ending() {
    need_mounts!();
    in_mount_namespace(|| {
        let dir = TempDir::new();
        let fs = silent_fuse(&dir);
        let (mut running, mut keys) =
            start(run(&READER, &["--no-rng", "--disk", &Fuse::file(&fs).display().to_string()]));
        let release = Release(&fs);
        fs.stop();
        keys.write_all(b"o").unwrap();
        let kicked = Instant::now();
        let status = eventually("the process to end", || running.child.try_wait().unwrap());
        assert!(kicked.elapsed() < LIMIT);
        assert_eq!(status.code(), Some(0));
        drop(release);
    });
}

#[test]
fn a_disk_with_abandoned_requests_stays_locked_until_they_have_ended() {
    need_mounts!();
    in_mount_namespace(|| {
        let dir = TempDir::new();
        let fs = frozen_ext4(&dir);
        let disk = fs.file().display().to_string();
        let writer = || run(&WRITER, &["--no-rng", "--disk", &disk]);
        let (mut running, mut keys) = start(writer());
        let release = Release(&fs);
        let io_process = get_stuck(&mut running, &mut keys, &fs);
        running.signal(Signal::SIGTERM);
        let first = running.pid();
        eventually("the process to end", || running.child.try_wait().unwrap());

        let ended = writer().end();
        let why = format!("it is in use: requests of process {first}, which has ended, are still in flight");
        ended.assert(125, "", &[&format!("kickvm: cannot use disk '{disk}': {why}")]);
        drop(release);
        wait_for_end(io_process);
        let (running, mut keys) = start(writer());
        keys.write_all(b"o").unwrap();
        running.end().assert(0, "", &[]);
    });
}

#[test]
fn a_slow_disk_only_delays() {
    need_mounts!();
    for io_uring in [true, false] {
        in_mount_namespace(|| {
            let dir = TempDir::new();
            let fuse = silent_fuse(&dir);
            fuse.slow_down(Duration::from_millis(200));
            let mut run = run(&SLOW_WRITER, &["--no-rng"]);
            run.command.arg("--disk").arg(fuse.file());
            if !io_uring {
                without_io_uring(&mut run.command);
            }
            let began = Instant::now();
            run.end().assert(0, "", &[]);
            assert!(began.elapsed() >= Duration::from_millis(8 * 200));
            let content = fuse.content();
            for sector in 0..8 {
                assert_eq!(content[sector * 512..][..4], *b"kick", "sector {sector}");
            }
        });
    }
}
