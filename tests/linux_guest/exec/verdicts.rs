//! Verdicts of kickvm itself: their exit codes and their messages.

use super::run::Exec;

on_both_kernels!(a_time_out, a_panic, too_much_memory, a_hung_task_message, a_fault_that_the_console_hides);
on_kernel!(
    ours_only,
    BzImage,
    a_fork_bomb,
    a_power_off_without_a_status,
    a_message_without_its_rule,
    a_missing_module,
    an_incomplete_log
);
on_kernel!(stock_only, Stock, an_oops, a_module_that_taints);

fn a_time_out(exec: Exec) {
    let ended =
        exec.options(&["--timeout", "40s"]).sh("echo on; echo '<1>last words' >/dev/kmsg; exec busybox sleep 1000");
    ended.assert_verdict(124, "kickvm: the timeout of 40s expired");
    assert_eq!(ended.text(), "on\n");
    let lines: Vec<_> = ended.stderr.lines().collect();
    assert!(lines[1].starts_with("kickvm: vCPU 0 was at 0xffffffff"), "{lines:?}");
    assert_eq!(lines[2], "kickvm: the console's last lines:");
    assert!(lines.len() <= 23 && lines.iter().any(|line| line.ends_with("] last words")), "{lines:?}");
}

fn a_panic(exec: Exec) {
    // Output that is still in a pipe of the guest is lost.
    let ended = exec.sh("echo on; busybox sleep 1; echo c >/proc/sysrq-trigger; echo never");
    ended.assert_verdict(120, "kickvm: the guest kernel panicked");
    assert_eq!(ended.text(), "on\n");
    assert!(ended.stderr.contains("] Kernel panic - not syncing: sysrq triggered crash\n"), "{}", ended.stderr);
}

/// Linux kills the command, which is the command's own status. A message names the lack of memory.
fn too_much_memory(exec: Exec) {
    let ended = exec.options(&["--memory", "192M"]).sh("busybox tail /dev/zero");
    assert_eq!(ended.status.code(), Some(137), "{}", ended.stderr);
    let expected = ["kickvm: the guest ran out of memory and killed process ", " (busybox); try more --memory"];
    assert!(expected.iter().all(|part| ended.stderr.contains(part)), "{}", ended.stderr);
}

/// Limited by the guest's memory, and ended by the timeout, or by Linux if it kills the shell.
fn a_fork_bomb(exec: Exec) {
    let ended =
        exec.options(&["--memory", "128M", "--timeout", "30s"]).sh("f() { f | f & }; f; wait; busybox sleep 1000");
    assert!(matches!(ended.status.code(), Some(124 | 137)), "{:?} {}", ended.status, ended.stderr);
}

fn a_hung_task_message(exec: Exec) {
    let words = "INFO: task sh:1 blocked for more than 120 seconds.";
    let ended =
        exec.options(&["--fail-on", "oops,hung-task"]).sh(&format!("echo '<3>{words}' >/dev/kmsg; busybox sleep 1000"));
    ended.assert_verdict(123, &format!("kickvm: the guest kernel reported a fault (--fail-on hung-task): {words}"));
}

/// Init sends the kernel's log when the command has ended.
fn a_fault_that_the_console_hides(exec: Exec) {
    let options = ["--memory", "192M", "--append", "loglevel=1", "--fail-on", "oom"];
    let ended = exec.options(&options).sh("busybox tail /dev/zero; true");
    let verdict = "kickvm: the guest kernel reported a fault (--fail-on oom): ";
    assert!(ended.status.code() == Some(123) && ended.stderr.contains(verdict), "{:?} {}", ended.status, ended.stderr);
    assert!(ended.stderr.contains(" invoked oom-killer: "), "{}", ended.stderr);
}

fn an_incomplete_log(exec: Exec) {
    let fill = "i=0; while [ $i -lt 5000 ]; do echo \"<6>$i ....................................................\"; \
                i=$((i + 1)); done | while read line; do echo \"$line\" >/dev/kmsg; done";
    let ended = exec.options(&["--append", "quiet printk.devkmsg=on", "--fail-on", "warn"]).sh(fill);
    assert_eq!(ended.status.code(), Some(123), "{}", ended.stderr);
    let verdict = "and the console does not show all faults that --fail-on is about";
    assert!(
        ended.stderr.contains("kickvm: the kernel's log lacks ") && ended.stderr.contains(verdict),
        "{}",
        ended.stderr
    );
}

fn a_message_without_its_rule(exec: Exec) {
    exec.options(&["--fail-on", "lockup"]).sh("echo '<3>BUG: not a lockup' >/dev/kmsg").assert(0, "", "");
}

fn a_power_off_without_a_status(exec: Exec) {
    let ended = exec.sh("echo on; busybox poweroff -f");
    ended.assert_verdict(122, "kickvm: the guest powered off before reporting the command's exit status");
    assert_eq!(ended.text(), "on\n");
}

fn a_missing_module(exec: Exec) {
    let ended = exec.options(&["--module", "nosuch"]).sh("true");
    assert_eq!(ended.status.code(), Some(125));
    let why = "kickvm: cannot load --module 'nosuch', which the host does not have: '/lib/modules/";
    assert!(ended.stderr.starts_with(why), "{}", ended.stderr);
}

/// A real oops: a module of this kernel with an invalid opcode among its first instructions.
fn an_oops(exec: Exec) {
    let exec = unsigned_module(exec, break_init).options(&["--fail-on", "oops", "--timeout", "90s"]);
    let ended = exec.sh("busybox insmod /unsigned.ko; busybox sleep 1000");
    // Which kind of fault it is depends on what the rest of those instructions comes to.
    let verdict = "kickvm: the guest kernel reported a fault (--fail-on oops): ";
    assert!(ended.status.code() == Some(123) && ended.stderr.contains(verdict), "{:?} {}", ended.status, ended.stderr);
    assert!(ended.stderr.contains("failover_init+") && ended.stderr.contains("| "), "{}", ended.stderr);
}

fn a_module_that_taints(exec: Exec) {
    let ended = unsigned_module(exec, |_| {}).options(&["--fail-on", "taint"]).sh("busybox insmod /unsigned.ko");
    let line = "failover: module verification failed: signature and/or required key missing - tainting kernel";
    ended.assert_verdict(123, &format!("kickvm: the guest kernel reported a fault (--fail-on taint): {line}"));
}

/// Copies a module of the stock kernel that `change` has changed to `/unsigned.ko`.
fn unsigned_module(exec: Exec, change: impl Fn(&mut [u8])) -> Exec {
    let directory = exec.assets.kernel.with_file_name("modules");
    let mut module = std::fs::read(directory.join("failover.ko")).unwrap();
    strip_signature(&mut module);
    change(&mut module);
    let copy = format!("{}:/unsigned.ko", exec.scratch.file("unsigned.ko", &module).display());
    exec.options(&["--copy", &copy])
}

/// Removes the signature, because Linux rejects a wrong one but accepts a missing one. At the end of the file are the
/// signature, twelve bytes that end with its length, and a magic string (Linux, scripts/sign-file.c).
fn strip_signature(module: &mut Vec<u8>) {
    const MAGIC: &[u8] = b"~Module signature appended~\n";
    if let Some(rest) = module.strip_suffix(MAGIC) {
        let (rest, len) = rest.split_at(rest.len() - 4);
        let len = u32::from_be_bytes(len.try_into().unwrap()) as usize;
        module.truncate(rest.len() - 8 - len);
    }
}

/// Writes `ud2`, which raises an invalid-opcode exception, after the call to ftrace at the start of an ELF object's
/// `init_module`.
fn break_init(elf: &mut [u8]) {
    let field =
        |at: usize, len: usize| elf[at..at + len].iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte));
    // Elf64_Ehdr: e_shoff, e_shentsize, e_shnum. Elf64_Shdr: sh_type, sh_offset, sh_size, sh_link.
    let (table, size, count) = (field(0x28, 8), field(0x3a, 2), field(0x3c, 2));
    let section = |n: usize| table + n * size;
    let symbols = (0..count).map(section).find(|at| field(at + 4, 4) == 2).expect("there are symbols");
    let names = field(section(field(symbols + 0x28, 4)) + 0x18, 8);
    let (start, len) = (field(symbols + 0x18, 8), field(symbols + 0x20, 8));
    let init = (start..start + len).step_by(24).find(|at| {
        let name = names + field(*at, 4);
        elf[name..].starts_with(b"init_module\0")
    });
    let init = init.expect("there is an init_module");
    let (text, start) = (field(init + 6, 2), field(init + 8, 8));
    let code = field(section(text) + 0x18, 8);
    const FTRACE: usize = 5; // the size of the call
    const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
    let start = start + FTRACE + if elf[code + start..].starts_with(&ENDBR64) { ENDBR64.len() } else { 0 };
    let patch = start..start + 2;
    // No relocation may overwrite the patch, so those there become R_X86_64_NONE.
    let relocations = (0..count).map(section).filter(|at| field(at + 4, 4) == 4 && field(at + 0x2c, 4) == text);
    let entries = relocations.flat_map(|at| {
        let (start, len) = (field(at + 0x18, 8), field(at + 0x20, 8));
        (start..start + len).step_by(24)
    });
    let hit: Vec<usize> = entries.filter(|at| field(*at, 8) < patch.end && field(*at, 8) + 4 > patch.start).collect();
    let code = code + patch.start;
    hit.into_iter().for_each(|at| elf[at + 8..at + 16].fill(0));
    elf[code..][..2].copy_from_slice(&[0x0f, 0x0b]);
}
