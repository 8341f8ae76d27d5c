//! How often a booting Linux leaves the guest: `scripts/cargo bench --bench bench_linux_exits`. Needs a KVM that can
//! run Linux, and debugfs for the page faults. These are counts, so one run of each is enough and any machine will do.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let kernel = std::env::var("KICKVM_KERNEL_DIR")? + "/bzImage";
    let initramfs = std::env::var("KICKVM_INITRAMFS")?;

    println!("Linux of resources/kernel-config, one vCPU, 128 MiB, from start to power-off:");
    let quiet = boot(&kernel, &initramfs, "quiet kickvm.once")?;
    println!("{:<58} {:>8}  at most 300", "exits to user space, quiet", quiet.exits);
    let chatty = boot(&kernel, &initramfs, "kickvm.once")?;
    let pair = 2 * chatty.bytes;
    println!("{:<58} {:>8}  at most 10802", "exits to user space, with the kernel's log", chatty.exits);
    println!("{:<58} {:>8}", "console bytes, with the kernel's log", chatty.bytes);
    let share = chatty.exits as f64 / pair as f64;
    println!("{:<58} {share:>8.3}", "exits / what two exits a byte would be");
    match quiet.page_faults {
        Some(faults) => println!("{:<58} {faults:>8}  at most 600", "nested page faults, quiet"),
        None => println!("{:<58} {:>8}", "nested page faults, quiet (no debugfs)", "?"),
    }
    println!("busiest ports, with the kernel's log:");
    chatty.ports.iter().for_each(|line| println!("  {line}"));
    Ok(())
}

struct Boot {
    exits: u64,
    bytes: usize,
    page_faults: Option<u64>,
    ports: Vec<String>,
}

fn boot(kernel: &str, initramfs: &str, append: &str) -> Result<Boot> {
    let child = Command::new(env!("CARGO_BIN_EXE_kickvm"))
        .args(["run", "-vv", "--memory", "128M", "--timeout", "2m"])
        .args(["--kernel", kernel, "--initramfs", initramfs, "--append", append])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let id = child.id();
    let watch = thread::spawn(move || {
        let mut last = None;
        while Path::new(&format!("/proc/{id}/fd")).exists() && fs::read_dir(format!("/proc/{id}/fd")).is_ok() {
            last = page_faults(id).or(last);
            thread::sleep(Duration::from_millis(20));
        }
        last
    });
    let output = child.wait_with_output()?;
    let page_faults = watch.join().unwrap_or(None);
    let said = String::from_utf8(output.stderr)?;
    if !output.status.success() {
        return Err(format!("the guest ended with {}: {said}", output.status).into());
    }
    let count = said.lines().find_map(|line| line.strip_prefix("kickvm: ")?.split_once(" exits: "));
    let exits = count.ok_or("kickvm did not count its exits")?.0.parse()?;
    let ports = said.lines().filter(|line| line.starts_with("kickvm: port ")).map(str::to_owned).collect();
    Ok(Boot { exits, bytes: output.stdout.len(), page_faults, ports })
}

/// Faults that the VM of process `id` has taken so far (virt/kvm/kvm_main.c: a directory "PID-FD" for each VM).
fn page_faults(id: u32) -> Option<u64> {
    let prefix = format!("{id}-");
    let directories = fs::read_dir("/sys/kernel/debug/kvm").ok()?;
    let vm = directories.flatten().find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))?;
    fs::read_to_string(vm.path().join("pf_taken")).ok()?.trim().parse().ok()
}
