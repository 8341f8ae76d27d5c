//! On the host: starts the guests, lets them read by turns, and compares.

use super::guest::{MOUNT, PATTERNS, ROUNDS};
use super::side::{Guest, quartiles};
use super::{Result, cpio};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SIDES: [&str; 3] = ["kickvm", "QEMU, virtiofsd", "QEMU, 9p"];
/// Files of the tree, and their bytes; and those of the large file. An emulated processor takes seconds for a turn.
pub const FILES: usize = 200;
const FILE: u64 = 4 << 10;
const LARGE: u64 = 64 << 20;
/// Runs with and without a shared root.
const RUNS: usize = 5;
const MEMORY: &str = "256";
const TAG: &str = "share";

/// The path of a file in the share.
pub fn file(number: usize) -> String {
    format!("tree/{}/file-{number}", number % 20)
}

pub fn main() -> Result<()> {
    let files = Files::new()?;
    files.shared_root()?;
    let _server = Killed(files.virtiofsd()?);
    let commands = [files.kickvm(), files.qemu_virtiofsd(), files.qemu_9p()];
    let mut guests = commands.into_iter().map(Guest::start).collect::<Result<Vec<_>>>()?;
    println!("A share of one Debian guest, medians of {ROUNDS} rounds:");
    for pattern in PATTERNS {
        let mut times: [Vec<f64>; SIDES.len()] = Default::default();
        let mut found = Vec::new();
        for _ in 0..ROUNDS {
            for (guest, times) in guests.iter_mut().zip(&mut times) {
                guest.wait_for(&format!("ready {pattern}"))?;
                guest.go_on()?;
                let words = guest.wait_for("done ")?;
                guest.go_on()?;
                let [took, what] = &words[..] else { return Err(format!("the guest said {words:?}").into()) };
                times.push(took.parse::<f64>()? / 1e6);
                found.push(what.clone());
            }
        }
        found.dedup();
        let [found] = &found[..] else { return Err(format!("{pattern} found {found:?}").into()) };
        println!("{pattern} ({found} bytes or files)");
        for (name, times) in SIDES.iter().zip(&times) {
            println!("  {name:<20} {:>9.1} ms", quartiles(times.iter().copied())[1]);
        }
        let [ours, others @ ..] = &times;
        for ((name, other), least) in SIDES[1..].iter().zip(others).zip([1.5, 3.0]) {
            let [low, median, high] = quartiles(ours.iter().zip(other).map(|(ours, other)| other / ours));
            println!("  speed, kickvm / {name:<18} {median:>6.2}  at least {least}  (quartiles {low:.2} to {high:.2})");
        }
    }
    Ok(())
}

/// What the guests are made of.
struct Files {
    directory: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
}

/// A process that ends with this.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Files {
    fn new() -> Result<Self> {
        let unique = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let directory = std::env::temp_dir().join(format!("kickvm-bench-{unique}"));
        let share = directory.join("share");
        for number in 0..FILES {
            let path = share.join(file(number));
            fs::create_dir_all(path.parent().ok_or("it has a parent")?)?;
            fs::write(path, vec![b'x'; usize::try_from(FILE)?])?;
        }
        std::io::copy(&mut File::open("/dev/urandom")?.take(LARGE), &mut File::create(share.join("large"))?)?;
        // Debian's generic kernel, which the nested machine runs, too, as a package.
        let cache = PathBuf::from(std::env::var("KICKVM_CACHE")?);
        let mut releases = fs::read_dir(&cache)?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.join("amd64/modules/virtiofs.ko").exists());
        let source = releases.next().ok_or("there is no generic kernel; scripts/fetch-assets outer")?;
        let release = source.file_name().and_then(|name| name.to_str()?.strip_prefix("linux-")).ok_or("no release")?;
        let modules = directory.join("package/lib/modules").join(format!("{release}-amd64"));
        fs::create_dir_all(&modules)?;
        fs::create_dir_all(directory.join("package/boot"))?;
        let kernel = directory.join("package/boot/vmlinuz");
        fs::copy(source.join("amd64/vmlinuz"), &kernel)?;
        let mut insmods = String::new();
        let mut archived = Vec::new();
        for name in fs::read_to_string(source.join("amd64/modules/order"))?.lines().chain(["modules.dep"]) {
            let content = fs::read(source.join("amd64/modules").join(name))?;
            fs::write(modules.join(name), &content)?;
            if !["kvm.ko", "kvm-amd.ko", "modules.dep"].contains(&name) {
                insmods += &format!("insmod /m/{name}\n");
                archived.push((format!("m/{name}"), content));
            }
        }
        let job = format!(
            "#!/bin/sh\n{insmods}mkdir {MOUNT}\nmount -t virtiofs -o ro {TAG} {MOUNT} 2>/dev/null || \
             mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000 {TAG} {MOUNT}\nstty -echo\n/reader --guest\n"
        );
        let program = fs::read(std::env::current_exe()?)?;
        let mut entries = vec![("m/", &b""[..]), ("job", job.as_bytes()), ("reader", &program)];
        entries.extend(archived.iter().map(|(name, content)| (name.as_str(), content.as_slice())));
        let initramfs = directory.join("initramfs");
        let mut archive = File::create(&initramfs)?;
        archive.write_all(&fs::read(std::env::var("KICKVM_INITRAMFS")?)?)?;
        archive.write_all(&cpio::archive(&entries))?;
        Ok(Self { directory, kernel, initramfs })
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn kickvm(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kickvm"));
        command.args(["exec", "--memory", MEMORY, "--kernel", &self.path("package"), "--no-rng"]);
        command.args(["--share", &format!("{}:{MOUNT},ro", self.path("share"))]);
        command.arg("--copy").arg(format!("{}:/reader", std::env::current_exe().unwrap_or_default().display()));
        command.args(["--", "/reader", "--guest"]);
        command
    }

    fn virtiofsd(&self) -> Result<Child> {
        let socket = self.path("socket");
        let mut command = Command::new("/usr/lib/qemu/virtiofsd");
        command.arg(format!("--socket-path={socket}")).args(["-o", &format!("source={}", self.path("share"))]);
        let server = command.args(["-o", "sandbox=chroot"]).stderr(Stdio::null()).spawn();
        let server = server.map_err(|error| format!("virtiofsd: {error}"))?;
        for _ in 0..1000 {
            if Path::new(&socket).exists() {
                return Ok(server);
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err("virtiofsd does not start".into())
    }

    fn qemu(&self) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-name", "guest,debug-threads=on", "-M", "microvm,memory-backend=memory", "-accel", "kvm"]);
        command.args(["-cpu", "host", "-m", MEMORY, "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-object", &format!("memory-backend-memfd,id=memory,size={MEMORY}M,share=on")]);
        command.args(["-serial", "stdio", "-no-reboot", "-append", "console=ttyS0 panic=-1 quiet"]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
        command.args(["-global", "virtio-mmio.force-legacy=false"]);
        command
    }

    fn qemu_virtiofsd(&self) -> Command {
        let mut command = self.qemu();
        command.args(["-chardev", &format!("socket,id=server,path={}", self.path("socket"))]);
        command.args(["-device", &format!("vhost-user-fs-device,chardev=server,tag={TAG}")]);
        command
    }

    fn qemu_9p(&self) -> Command {
        let mut command = self.qemu();
        let share = self.path("share");
        command
            .args(["-fsdev", &format!("local,id=share,path={share},security_model=none,readonly=on,multidevs=remap")]);
        command.args(["-device", &format!("virtio-9p-device,fsdev=share,mount_tag={TAG}")]);
        command
    }

    /// Compares `exec -- true` in the host's root with an empty root. The guest does not start the same program: one is
    /// static.
    fn shared_root(&self) -> Result<()> {
        let busybox = format!("{}/busybox:/bin/true", std::env::var("KICKVM_CACHE")?);
        let mut costs = [Vec::new(), Vec::new()];
        for _ in 0..RUNS {
            for (root, costs) in [["--root", "/"], ["--copy", &busybox]].iter().zip(&mut costs) {
                costs.push(self.true_in(root)?);
            }
        }
        let [shared, empty] = costs.map(|costs| {
            let of = |value: fn(&(f64, f64)) -> f64| quartiles(costs.iter().map(value))[1];
            (of(|cost| cost.0), of(|cost| cost.1))
        });
        println!("kickvm exec --root / -- true, compared with an empty root, medians of {RUNS} runs:");
        println!("  processor time {:>8.0} ms and {:.0} ms  at most 30 ms more", shared.0, empty.0);
        println!("  largest memory {:>8.1} MiB and {:.1} MiB  at most 20 MiB more", shared.1, empty.1);
        Ok(())
    }

    /// Milliseconds of the processor, and MiB of the largest resident memory.
    fn true_in(&self, root: &[&str; 2]) -> Result<(f64, f64)> {
        let spent = || -> Result<i64> {
            let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
            Ok(usage.user_time().num_microseconds() + usage.system_time().num_microseconds())
        };
        let before = spent()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_kickvm"));
        command.args(["exec", "--memory", MEMORY, "--kernel", &self.path("package")]).args(root).args(["--", "true"]);
        let mut child = command.stdin(Stdio::null()).spawn()?;
        let status = format!("/proc/{}/status", child.id());
        let mut peak = 0.0;
        while child.try_wait()?.is_none() {
            let text = fs::read_to_string(&status).unwrap_or_default(); // it may have ended
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
            peak = kib.map_or(peak, |kib| kib / 1024.0);
            thread::sleep(Duration::from_millis(20));
        }
        if !child.wait()?.success() {
            return Err(format!("{command:?} failed").into());
        }
        Ok(((spent()? - before) as f64 / 1e3, peak))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
