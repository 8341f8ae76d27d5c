//! What the VMM adds to the bare system calls, as ratios measured in one run: `cargo bench --bench vmm`, after
//! `cargo build --profile bench --example minimal`. Runs alternate between the two sides; figures are medians.

#[path = "../examples/minimal.rs"]
mod minimal;

use kickvm::boot::Image;
use kickvm::device::{Device, GuestRequest, Response};
use kickvm::vmm::{ConsoleConfig, VMMConfig, VmmBuilder};
use kvm_ioctls::VcpuExit;
use nix::time::{ClockId, clock_gettime};
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const KICKVM: &str = env!("CARGO_BIN_EXE_kickvm");
const RUNS: usize = 201;
const RAM: u64 = 128 << 20;

/// mov dx, 0x3f8; mov al, 10; out dx, al; out 0xf4, al
const PRINT_AND_EXIT: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, 0x0a, 0xee, 0xe6, 0xf4];
/// mov dx, 0x3f8; mov al, 10; out dx, al; sti; hlt; jmp to the hlt
const PRINT_AND_WAIT: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, 0x0a, 0xee, 0xfb, 0xf4, 0xeb, 0xfd];
/// out 0xe0, al; mov dx, 0x100; mov ecx, 20000; out dx, al; loop to the out; out 0xe0, al; out 0xf4, al
const MANY_EXITS: &[u8] =
    &[0xe6, 0xe0, 0x66, 0xba, 0x00, 0x01, 0xb9, 0x20, 0x4e, 0x00, 0x00, 0xee, 0xe2, 0xfd, 0xe6, 0xe0, 0xe6, 0xf4];
const EXITS: u32 = 20_000;
const STAMP_PORT: u16 = 0xe0;

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("--last-instruction") {
        return last_instruction();
    }
    let directory = std::env::temp_dir().join(format!("kickvm-bench-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let result = bench(&directory);
    std::fs::remove_dir_all(&directory)?;
    result
}

fn bench(directory: &Path) -> Result<()> {
    let minimal = minimal()?;
    let raw = directory.join("guest.bin");
    std::fs::write(&raw, PRINT_AND_EXIT)?;
    let elf = directory.join("guest.elf");
    std::fs::write(&elf, elf_of(PRINT_AND_EXIT))?;

    println!("{:<58} {:>10} {:>10} {:>7}  at most", "", "kickvm", "bare", "ratio");
    let first_byte = |mut command: Command| -> Result<Duration> {
        let start = Instant::now();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        child.stdout.take().ok_or("no stdout")?.read_exact(&mut [0])?;
        let elapsed = start.elapsed();
        child.wait()?;
        Ok(elapsed)
    };
    let ours = || kickvm(&elf);
    let bare = || with(&minimal, &raw);
    compare("spawn to the first serial byte", 1.3, || first_byte(ours()), || first_byte(bare()))?;

    let disks = (0..8).map(|number| directory.join(format!("disk{number}"))).collect::<Vec<_>>();
    disks.iter().try_for_each(|disk| std::fs::File::create(disk)?.set_len(1 << 20))?;
    let ten = || {
        let mut command = kickvm(&elf);
        for disk in &disks {
            command.arg("--disk").arg(disk);
        }
        command.arg("--balloon"); // and the entropy device that is there anyway
        command
    };
    let none = || {
        let mut command = kickvm(&elf);
        command.arg("--no-rng");
        command
    };
    compare("the same with 10 virtio devices, against none", 1.2, || first_byte(ten()), || first_byte(none()))?;

    let own = std::env::current_exe()?;
    let ours = || with(&own, "--last-instruction".as_ref());
    compare("guest's last instruction to process exit", 1.3, || after_end(ours()), || after_end(bare()))?;

    // On a thread of its own, as any vCPU: on the main thread the same loop is faster for reasons that are not its own.
    let bare = || std::thread::spawn(|| bare_port_exit().map_err(|error| error.to_string())).join();
    let bare = || Ok(bare().map_err(|_| "the bare loop panicked")??);
    compare("handling one port exit", 1.05, port_exit, bare)?;

    std::fs::write(&elf, elf_of(PRINT_AND_WAIT))?;
    println!(
        "{:<58} {:>10.2} MiB {:>20} 2.5",
        "resident memory beyond guest pages, 128 MiB guest",
        resident(&elf)?,
        ""
    );
    let size = std::fs::metadata(KICKVM)?.len() as f64 / f64::from(1 << 20);
    println!("{:<58} {:>10.2} MiB {:>20} 2.0", "stripped release binary", size, "");
    Ok(())
}

fn compare(
    what: &str,
    most: f64,
    mut ours: impl FnMut() -> Result<Duration>,
    mut bare: impl FnMut() -> Result<Duration>,
) -> Result<()> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        a.push(ours()?);
        b.push(bare()?);
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1e6
    };
    let (a, b) = (median(&mut a), median(&mut b));
    println!("{what:<58} {a:>8.1}µs {b:>8.1}µs {:>7.3}  {most}", a / b);
    Ok(())
}

fn kickvm(guest: &Path) -> Command {
    let mut command = with(KICKVM.as_ref(), "run".as_ref());
    command.args(["--memory", "128M", "--kernel"]).arg(guest);
    command
}

fn with(program: &Path, argument: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg(argument);
    command
}

/// The floor: examples/minimal.rs, built beside this program.
fn minimal() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.parent().and_then(Path::parent).ok_or("no target directory")?.join("examples/minimal");
    match path.exists() {
        true => Ok(path),
        false => Err("build it first: cargo build --profile bench --example minimal".into()),
    }
}

/// Runs `command`, which writes the time of its guest's last instruction to stderr, and returns how long it lived after
/// it.
fn after_end(mut command: Command) -> Result<Duration> {
    // The last VM must be destroyed: its grace periods would shorten those of the next.
    std::thread::sleep(Duration::from_millis(100));
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = child.spawn()?.wait_with_output()?;
    let end = now()?;
    let stamp: [u8; 8] = output.stderr.as_slice().try_into().map_err(|_| "no time stamp")?;
    Ok(Duration::from_nanos(end - u64::from_ne_bytes(stamp)))
}

/// Nanoseconds on a clock that all processes share.
fn now() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok((now.tv_sec() * 1_000_000_000 + now.tv_nsec()).cast_unsigned())
}

/// kickvm's way out from the moment that a device sees the guest's last instruction.
fn last_instruction() -> Result<()> {
    struct Stamp;
    impl Device for Stamp {
        fn read(&self, _offset: u64, _data: &mut [u8]) {}
        fn write(&self, _offset: u64, _data: &[u8]) -> Response {
            let _ = std::io::stderr().write_all(&now().unwrap_or(0).to_ne_bytes());
            ControlFlow::Break(GuestRequest::PowerOff)
        }
    }
    /// mov dx, 0x100; out dx, al
    const END: &[u8] = &[0x66, 0xba, 0x00, 0x01, 0xee];
    let config = VMMConfig { memory: RAM, ..VMMConfig::new(Image::Raw(END)) };
    let vmm = VmmBuilder::new(config)?.port_device(0x100, 1, Arc::new(Stamp))?.build();
    std::process::exit(vmm.run()?.reason.code().into());
}

/// The time of one of many exits for a port that nobody claims.
fn port_exit() -> Result<Duration> {
    #[derive(Default)]
    struct Stamps(Mutex<Vec<Instant>>);
    impl Device for Stamps {
        fn read(&self, _offset: u64, _data: &mut [u8]) {}
        fn write(&self, _offset: u64, _data: &[u8]) -> Response {
            self.0.lock().unwrap_or_else(|stamps| stamps.into_inner()).push(Instant::now());
            ControlFlow::Continue(())
        }
    }
    let stamps = Arc::new(Stamps::default());
    let config = VMMConfig { memory: RAM, console: ConsoleConfig::None, ..VMMConfig::new(Image::Raw(MANY_EXITS)) };
    VmmBuilder::new(config)?.port_device(STAMP_PORT, 1, stamps.clone())?.build().run()?;
    match stamps.0.lock().unwrap_or_else(|stamps| stamps.into_inner())[..] {
        [start, end] => Ok((end - start) / EXITS),
        _ => Err("no two stamps".into()),
    }
}

/// The same with a loop that does nothing else.
fn bare_port_exit() -> Result<Duration> {
    let mut machine = minimal::machine(MANY_EXITS)?;
    let mut start = None;
    loop {
        match machine.vcpu.run()? {
            VcpuExit::IoOut(STAMP_PORT, _) => match start {
                None => start = Some(Instant::now()),
                Some(start) => return Ok(start.elapsed() / EXITS),
            },
            VcpuExit::IoOut(..) => {}
            exit => return Err(format!("{exit:?}").into()),
        }
    }
}

/// MiB that a waiting kickvm has in memory, its guest's RAM left out.
fn resident(guest: &Path) -> Result<f64> {
    let mut child = kickvm(guest).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    child.stdout.take().ok_or("no stdout")?.read_exact(&mut [0])?;
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps", child.id()))?;
    child.kill()?;
    child.wait()?;
    let (mut size, mut sum) = (0, 0);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next().and_then(|kib| kib.parse::<u64>().ok())) {
            (Some("Size:"), Some(kib)) => size = kib,
            (Some("Rss:"), Some(kib)) if size < RAM >> 10 => sum += kib,
            _ => {}
        }
    }
    Ok(sum as f64 / 1024.0)
}

/// An ELF image with one segment, `code`, at 1 MiB (System V ABI, gABI 4.1 and 5.1).
fn elf_of(code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    const START: u64 = 1 << 20;
    let len = code.len() as u64;
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend([2u16, 62].map(u16::to_le_bytes).concat()); // executable, x86-64
    elf.extend(1u32.to_le_bytes());
    elf.extend([START, 64, 0].map(u64::to_le_bytes).concat()); // entry, program headers, no sections
    elf.extend(0u32.to_le_bytes());
    elf.extend([64u16, 56, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    elf.extend([1u32, 7].map(u32::to_le_bytes).concat()); // PT_LOAD, rwx
    elf.extend([HEADERS, START, START, len, len, 4096].map(u64::to_le_bytes).concat());
    elf.extend(code);
    elf
}
