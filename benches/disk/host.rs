//! On the host: starts the guests, lets them read by turns, counts what that costs, and compares.

use super::guest::{PATTERNS, Pattern, ROUNDS};
use super::side::{Guest, quartiles};
use super::{Result, cpio};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

const SIDES: [&str; 3] = ["kickvm", "QEMU, aio=io_uring", "QEMU, aio=threads"];
const IMAGE: u64 = 64 << 20;
const JOB: &[u8] = b"#!/bin/sh
cd /lib/modules/$(uname -r) && for module in $(cat order); do insmod $module; done
stty -echo
/reader --guest
";

pub fn main() -> Result<()> {
    let files = Files::new()?;
    let commands = [files.kickvm()?, files.qemu("io_uring")?, files.qemu("threads")?];
    let mut guests = commands.into_iter().map(Guest::start).collect::<Result<Vec<_>>>()?;
    println!("Disk reads of one Debian guest, O_DIRECT, image in memory, medians of {ROUNDS} rounds:");
    for pattern in &PATTERNS {
        println!("{}", pattern.name);
        let mut costs: [Vec<Cost>; SIDES.len()] = Default::default();
        for _ in 0..ROUNDS {
            for (guest, costs) in guests.iter_mut().zip(&mut costs) {
                costs.push(guest.burst(pattern)?);
            }
        }
        tell(pattern, &costs);
    }
    Ok(())
}

fn tell(pattern: &Pattern, costs: &[Vec<Cost>; SIDES.len()]) {
    for (name, costs) in SIDES.iter().zip(costs) {
        let of = |what: fn(&Cost) -> f64| quartiles(costs.iter().map(what))[1];
        println!(
            "  {name:<20} {:>9.0} requests/s; each: {:>5.3} exits to user space, {:>5.3} of all kinds, {:>5.3} interrupts",
            of(|cost| cost.speed),
            of(|cost| cost.user_exits),
            of(|cost| cost.exits),
            of(|cost| cost.interrupts),
        );
    }
    let [ours, others @ ..] = costs;
    // Round by round, for what slows the machine down slows both.
    let ratios = others.each_ref().map(|other| quartiles(ours.iter().zip(other).map(|(a, b)| a.speed / b.speed)));
    for (name, [low, median, high]) in SIDES[1..].iter().zip(&ratios) {
        println!("  speed, kickvm / {name:<18} {median:>6.2}  at least 2  (quartiles {low:.2} to {high:.2})");
    }
    let most = if pattern.depth == 1 { 1.0 } else { 0.5 };
    let exits = quartiles(ours.iter().map(|cost| cost.user_exits))[1];
    let interrupts = quartiles(ours.iter().map(|cost| cost.interrupts))[1];
    println!("  exits to user space, a request     {exits:>6.2}  at most {most}");
    println!("  interrupts a request               {interrupts:>6.2}  at most {most}");
}

/// What one request costs, on average.
struct Cost {
    speed: f64,
    exits: f64,
    user_exits: f64,
    interrupts: f64,
}

/// What the guests are made of.
struct Files {
    directory: PathBuf,
    kernel: String,
    initramfs: PathBuf,
}

impl Files {
    fn new() -> Result<Self> {
        let unique = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let directory = Path::new("/dev/shm").join(format!("kickvm-bench-{unique}"));
        fs::create_dir(&directory)?;
        let initramfs = directory.join("initramfs");
        let mut archive = File::create(&initramfs)?;
        for name in ["KICKVM_STOCK_MODULES", "KICKVM_INITRAMFS"] {
            archive.write_all(&fs::read(std::env::var(name)?)?)?;
        }
        let program = fs::read(std::env::current_exe()?)?;
        archive.write_all(&cpio::archive(&[("job", JOB), ("reader", &program)]))?;
        Ok(Self { directory, kernel: std::env::var("KICKVM_STOCK_KERNEL")?, initramfs })
    }

    /// A disk for one guest. Random, so that no page of it is a hole.
    fn image(&self, name: &str) -> Result<PathBuf> {
        let image = self.directory.join(name);
        std::io::copy(&mut File::open("/dev/urandom")?.take(IMAGE), &mut File::create(&image)?)?;
        Ok(image)
    }

    fn kickvm(&self) -> Result<Command> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kickvm"));
        command.args(["run", "--append", "quiet", "--memory", "256M", "--kernel", &self.kernel, "--initramfs"]);
        command.arg(&self.initramfs).arg("--disk").arg(self.image("kickvm")?).arg("--no-rng");
        Ok(command)
    }

    fn qemu(&self, engine: &str) -> Result<Command> {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-name", "guest,debug-threads=on", "-M", "microvm", "-accel", "kvm", "-cpu", "host"]);
        command.args(["-m", "256", "-smp", "1", "-nodefaults"]);
        command.args(["-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]);
        command
            .args(["-append", "console=ttyS0 panic=-1 quiet", "-kernel", &self.kernel, "-initrd"])
            .arg(&self.initramfs);
        command.args(["-global", "virtio-mmio.force-legacy=false", "-device", "virtio-blk-device,drive=disk"]);
        let image = self.image(engine)?;
        command.args(["-drive", &format!("id=disk,file={},format=raw,if=none,aio={engine}", image.display())]);
        Ok(command)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Guest {
    /// Has it read for a while.
    fn burst(&mut self, pattern: &Pattern) -> Result<Cost> {
        self.wait_for(&format!("ready {}", pattern.name))?;
        let before = Counters::of(self.child.id())?;
        self.go_on()?;
        let words = self.wait_for("done ")?;
        let after = Counters::of(self.child.id())?;
        self.go_on()?;
        let [took, interrupts] = &words[..] else { return Err(format!("the guest said {words:?}").into()) };
        let requests = pattern.requests as f64;
        let each = |name: fn(&Counters) -> u64| (name(&after) - name(&before)) as f64 / requests;
        Ok(Cost {
            speed: requests / took.parse::<f64>()? * 1e9,
            exits: each(|counters| counters.exits),
            user_exits: each(|counters| counters.mmio_exits),
            interrupts: interrupts.parse::<f64>()? / requests,
        })
    }
}

/// What KVM has counted for a VM so far.
struct Counters {
    exits: u64,
    /// The disk's only way to user space. The console's is ports.
    mmio_exits: u64,
}

impl Counters {
    /// Those of the VM of process `id` (virt/kvm/kvm_main.c: a directory "PID-FD" for each VM).
    fn of(id: u32) -> Result<Self> {
        let prefix = format!("{id}-");
        let directories = fs::read_dir("/sys/kernel/debug/kvm")?;
        let vm = directories.flatten().find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
        let vm = vm.ok_or("KVM has no statistics of the guest in debugfs")?.path();
        let read = |name| Ok::<u64, Box<dyn std::error::Error>>(fs::read_to_string(vm.join(name))?.trim().parse()?);
        Ok(Self { exits: read("exits")?, mmio_exits: read("mmio_exits")? })
    }
}
