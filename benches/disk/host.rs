//! On the host: starts guests by turns, counts what they cost, and compares.

use super::guest::PATTERNS;
use super::{Result, cpio};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

const ROUNDS: usize = 3;
const IMAGE: u64 = 64 << 20;
const JOB: &[u8] = b"#!/bin/sh
cd /lib/modules/$(uname -r) && for module in $(cat order); do insmod $module; done
stty -echo
/reader --guest
";

pub fn main() -> Result<()> {
    let files = Files::new()?;
    let kickvm = || files.kickvm();
    let io_uring = || files.qemu("io_uring");
    let threads = || files.qemu("threads");
    let sides: [(&str, &dyn Fn() -> Command); 3] =
        [("kickvm", &kickvm), ("QEMU, aio=io_uring", &io_uring), ("QEMU, aio=threads", &threads)];
    let mut results: [[Vec<Cost>; PATTERNS.len()]; 3] = Default::default();
    for _ in 0..ROUNDS {
        for ((_, command), results) in sides.iter().zip(&mut results) {
            for (cost, results) in run(command())?.into_iter().zip(results) {
                results.push(cost);
            }
        }
    }
    println!("Disk reads of one Debian guest, O_DIRECT, image in memory, medians of {ROUNDS} runs:");
    for (index, pattern) in PATTERNS.iter().enumerate() {
        println!("{}", pattern.name);
        let speeds = results.each_ref().map(|results| median(&results[index], |cost| cost.speed));
        for ((name, _), (results, speed)) in sides.iter().zip(results.iter().zip(speeds)) {
            let of = |what: fn(&Cost) -> f64| median(&results[index], what);
            println!(
                "  {name:<20} {speed:>9.0} requests/s; each: {:>5.3} exits to user space, {:>5.3} of all kinds, {:>5.3} interrupts",
                of(|cost| cost.user_exits),
                of(|cost| cost.exits),
                of(|cost| cost.interrupts),
            );
        }
        let most = if pattern.depth == 1 { 1.0 } else { 0.5 };
        println!("  speed, kickvm / the better QEMU    {:>6.2}  at least 2", speeds[0] / speeds[1].max(speeds[2]));
        let exits = median(&results[0][index], |cost| cost.user_exits);
        let interrupts = median(&results[0][index], |cost| cost.interrupts);
        println!("  exits to user space, a request     {exits:>6.2}  at most {most}");
        println!("  interrupts a request               {interrupts:>6.2}  at most {most}");
    }
    Ok(())
}

fn median(costs: &[Cost], what: fn(&Cost) -> f64) -> f64 {
    let mut values: Vec<f64> = costs.iter().map(what).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
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
    image: PathBuf,
}

impl Files {
    fn new() -> Result<Self> {
        let unique = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let directory = Path::new("/dev/shm").join(format!("kickvm-bench-{unique}"));
        fs::create_dir(&directory)?;
        let (initramfs, image) = (directory.join("initramfs"), directory.join("image"));
        let mut archive = File::create(&initramfs)?;
        for name in ["KICKVM_STOCK_MODULES", "KICKVM_INITRAMFS"] {
            archive.write_all(&fs::read(std::env::var(name)?)?)?;
        }
        let program = fs::read(std::env::current_exe()?)?;
        archive.write_all(&cpio::archive(&[("job", JOB), ("reader", &program)]))?;
        // Random, so that no page of it is a hole.
        std::io::copy(&mut File::open("/dev/urandom")?.take(IMAGE), &mut File::create(&image)?)?;
        Ok(Self { directory, kernel: std::env::var("KICKVM_STOCK_KERNEL")?, initramfs, image })
    }

    fn kickvm(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kickvm"));
        command.args(["run", "--append", "quiet", "--memory", "256M", "--kernel", &self.kernel, "--initramfs"]);
        command.arg(&self.initramfs).arg("--disk").arg(&self.image).arg("--no-rng");
        command
    }

    fn qemu(&self, engine: &str) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-M", "microvm", "-accel", "kvm", "-cpu", "host", "-m", "256", "-smp", "1", "-nodefaults"]);
        command.args(["-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]);
        command
            .args(["-append", "console=ttyS0 panic=-1 quiet", "-kernel", &self.kernel, "-initrd"])
            .arg(&self.initramfs);
        command.args(["-global", "virtio-mmio.force-legacy=false", "-device", "virtio-blk-device,drive=disk"]);
        let image = self.image.display();
        command.args(["-drive", &format!("id=disk,file={image},format=raw,if=none,aio={engine}")]);
        command
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A guest that is killed when dropped.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(mut command: Command) -> Result<Vec<Cost>> {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut guest = Guest(child.map_err(|error| format!("{command:?}: {error}"))?);
    let id = guest.0.id();
    let mut stdin = guest.0.stdin.take().ok_or("no pipe")?;
    let mut lines = BufReader::new(guest.0.stdout.take().ok_or("no pipe")?).lines();
    let mut seen = Vec::new();
    let mut wait_for = |word: &str| -> Result<Vec<String>> {
        loop {
            let Some(line) = lines.next() else {
                return Err(format!("{command:?} ended:\n{}", seen.join("\n")).into());
            };
            let line = line?;
            if let Some(rest) = line.trim_start().strip_prefix(word) {
                return Ok(rest.split_whitespace().map(str::to_owned).collect());
            }
            seen.push(line);
        }
    };
    let mut costs = Vec::new();
    for pattern in &PATTERNS {
        wait_for(&format!("ready {}", pattern.name))?;
        let before = Counters::of(id)?;
        stdin.write_all(b"\n")?;
        let words = wait_for("done ")?;
        let after = Counters::of(id)?;
        stdin.write_all(b"\n")?;
        let [took, interrupts] = &words[..] else { return Err(format!("the guest said {words:?}").into()) };
        let requests = pattern.requests as f64;
        let each = |name: fn(&Counters) -> u64| (name(&after) - name(&before)) as f64 / requests;
        costs.push(Cost {
            speed: requests / took.parse::<f64>()? * 1e9,
            exits: each(|counters| counters.exits),
            user_exits: each(|counters| counters.mmio_exits),
            interrupts: interrupts.parse::<f64>()? / requests,
        });
    }
    Ok(costs)
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
