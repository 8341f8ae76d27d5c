//! Hosts that lack a resource: /dev/kvm, the permission to open it, file descriptors, memory for threads.

use crate::common::process::{contained, end};
use crate::common::{TempDir, can_run};
use crate::support::images::elf;
use crate::{need_kvm, this_test};
use std::process::Command;

/// A shell with its own mount namespace that runs `script`, which ends by executing `kickvm`.
fn with_mounts(script: &str, args: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    // Root may mount already; other users may in a user namespace.
    command.args(["--mount", "--map-root-user"]);
    command.args(["sh", "-c", &format!("{script} \"$0\" \"$@\""), env!("CARGO_BIN_EXE_kickvm")]).args(args);
    contained(&mut command);
    command
}

fn mounts() -> Result<(), String> {
    let ended = end(with_mounts("mount -t tmpfs tmpfs /dev && exec true", &[]));
    if ended.code == Some(0) { Ok(()) } else { Err(format!("no mount namespace: {}", ended.stderr)) }
}

const LOAD_KVM: &str =
    "load KVM with 'sudo modprobe -a kvm_intel kvm_amd', and switch virtualization on in the firmware";
const JOIN_KVM: &str = "join its group with 'sudo usermod -aG kvm $USER' and log in again";

/// Asserts the messages of `kickvm demo` and `kickvm doctor` after `script`.
#[track_caller]
fn assert_both(script: &str, demo: &str, doctor: &[&str]) {
    end(with_mounts(script, &["demo"])).assert(125, "", &[demo]);
    let doctor: String = doctor.iter().flat_map(|line| [line, "\n"]).collect();
    end(with_mounts(script, &["doctor"])).assert(125, &doctor, &[]);
}

#[test]
fn no_dev_kvm() {
    if !can_run(this_test!(), mounts()) {
        return;
    }
    assert_both(
        "mount -t tmpfs tmpfs /dev && exec",
        &format!("kickvm: cannot open /dev/kvm: No such file or directory; {LOAD_KVM}"),
        &[&format!("FAIL /dev/kvm cannot be opened: No such file or directory; {LOAD_KVM}")],
    );
}

#[test]
fn no_permission_on_dev_kvm() {
    if !can_run(this_test!(), mounts()) {
        return;
    }
    assert_both(
        "mount -t tmpfs tmpfs /dev && : >/dev/kvm && chmod 0 /dev/kvm && \
         exec setpriv --bounding-set=-dac_override,-dac_read_search",
        &format!("kickvm: cannot open /dev/kvm: Permission denied; {JOIN_KVM}"),
        &[&format!("FAIL /dev/kvm cannot be opened: Permission denied; {JOIN_KVM}")],
    );
}

#[test]
fn dev_kvm_is_another_device() {
    need_kvm!(); // a file to mount over
    if !can_run(this_test!(), mounts()) {
        return;
    }
    assert_both(
        "mount --bind /dev/null /dev/kvm && exec",
        "kickvm: /dev/kvm has API version -1, but 12 is needed: it is not the KVM device, or the host is older than Linux 2.6.22",
        &[
            "ok   /dev/kvm opens for reading and writing",
            "FAIL KVM's API version is -1, not 12; make it KVM's device: \
             'sudo rm /dev/kvm && sudo mknod -m 660 /dev/kvm c 10 232'",
        ],
    );
}

/// `kickvm` under a limit that the shell's `ulimit` sets.
fn limited(limit: &str, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_kickvm")]).args(args);
    contained(&mut command);
    command
}

#[test]
fn any_descriptor_limit_gives_one_line() {
    need_kvm!();
    let dir = TempDir::new();
    let kernel = dir.file("kernel", &elf(&[0xb0, 7, 0xe6, 0xf4]));
    let args = ["run", "--kernel", kernel.to_str().unwrap()];
    // A dynamic linker needs one, and has an error of its own without it.
    let mut enough = if cfg!(target_feature = "crt-static") { 3 } else { 4 };
    loop {
        let ended = end(limited(&format!("-n {enough}"), &args));
        if ended.code == Some(7) {
            break;
        }
        let line = ended.stderr.trim_end();
        assert!(
            line.starts_with("kickvm: cannot ")
                && line
                    .ends_with(": Too many open files; 'sudo prlimit --nofile=4096 --pid $$' allows this shell more"),
            "{enough}: {line}"
        );
        ended.assert(125, "", &[line]);
        enough += 1;
    }
    assert!((10..40).contains(&enough), "{enough}");
}

#[test]
fn a_thread_that_cannot_start_is_an_error_and_not_a_hang() {
    need_kvm!();
    let line = "kickvm: cannot start a vCPU's thread: Resource temporarily unavailable";
    let dir = TempDir::new();
    let kernel = dir.file("kernel", &elf(&[0xeb, 0xfe])); // jmp to itself
    let args = ["run", "--cpus=100", "--memory=2M", "--kernel", kernel.to_str().unwrap()];
    // Stacks so large that only a few fit into the address space, and there is still room for everything else.
    let mut command = limited("-v 262144", &args);
    command.env("RUST_MIN_STACK", "67108864").env("MALLOC_ARENA_MAX", "1");
    end(command).assert(125, "", &[line]);
}

#[test]
fn an_unwritable_standard_error_changes_nothing() {
    need_kvm!();
    for redirect in ["2>/dev/full", "2>&-", "2>&1 | true"] {
        let mut command = Command::new("bash");
        let script = format!("\"$0\" demo >/dev/null {redirect}; exit ${{PIPESTATUS[0]}}");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_kickvm")]);
        contained(&mut command);
        end(command).assert(0, "", &[]);
    }
}
