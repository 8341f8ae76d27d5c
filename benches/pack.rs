//! The cost of `kickvm exec` before the guest runs: `cargo bench --bench pack`. Runs alternate between kickvm and cpio;
//! figures are medians.
//!
//! Packing into guest memory is compared with `find | cpio -o -H newc > /dev/null`. As that stores nothing, the pages
//! of the guest memory are allocated before. Packing into new memory, such as a guest's, is compared with cpio into a
//! tmpfs. The last figure is the processor time of a `kickvm exec` whose guest powers off with its first instruction.

#[allow(dead_code)]
#[path = "../tests/common/images.rs"]
mod images;

use kickvm::boot::{InitramfsSource, layout};
use kickvm::exec::rootfs::RootfsSpec;
use kickvm::memory::GuestRam;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const RUNS: usize = 5;
const MIB: u64 = 1 << 20;

/// mov dx, 0x600; mov al, 0x34; out dx, al
const POWER_OFF: &[u8] = &[0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee];

fn main() -> Result<()> {
    let directory = std::env::temp_dir().join(format!("kickvm-bench-pack-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let result = bench(&directory);
    fs::remove_dir_all(&directory)?;
    result
}

fn bench(directory: &Path) -> Result<()> {
    let root = tree(&directory.join("large"), 16, 512)?;
    let many = tree(&directory.join("many"), 200, 100)?;
    fill(&root, 128 << 10)?;
    fill(&many, 1 << 10)?;
    println!("{:<58} {:>10} {:>10} {:>7}  at least", "", "kickvm", "cpio", "ratio");
    compare("packing 1 GiB, 8,192 files of 128 KiB", &root, 1.5, false)?;
    compare("packing 20,000 files of 1 KiB", &many, 1.5, false)?;
    compare("packing 1 GiB into new memory, or a tmpfs", &root, 1.0, true)?;

    let root = tree(&directory.join("small"), 4, 100)?;
    fill(&root, 128 << 10)?;
    let kernel = directory.join("kernel");
    fs::write(&kernel, images::elf(POWER_OFF))?;
    let mut times = Vec::new();
    for _ in 0..21 {
        times.push(exec(&kernel, &root)?);
    }
    times.sort();
    let median = times[times.len() / 2].as_secs_f64() * 1e3;
    println!("{:<58} {median:>8.1}ms {:>20} 30 at most", "processor time of an exec with a root of 50 MiB", "");
    Ok(())
}

/// Creates a tree of `directories` with `files` empty files each.
fn tree(root: &Path, directories: usize, files: usize) -> Result<PathBuf> {
    for directory in 0..directories {
        let path = root.join(format!("directory-{directory}"));
        fs::create_dir_all(&path)?;
        for file in 0..files {
            fs::write(path.join(format!("file-{file}")), b"")?;
        }
    }
    Ok(root.to_owned())
}

/// Gives each file of the tree `len` bytes.
fn fill(root: &Path, len: usize) -> Result<()> {
    let content: Vec<u8> = (0..len).map(|n| (n * 31 >> 3).to_le_bytes()[0]).collect();
    for directory in fs::read_dir(root)? {
        for file in fs::read_dir(directory?.path())? {
            fs::write(file?.path(), &content)?;
        }
    }
    Ok(())
}

fn compare(what: &str, root: &Path, least: f64, new: bool) -> Result<()> {
    let (mut ours, mut cpio) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        ours.push(packed(root, new)?);
        cpio.push(archived(root, new)?);
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1e3
    };
    let (ours, cpio) = (median(&mut ours), median(&mut cpio));
    println!("{what:<58} {ours:>8.1}ms {cpio:>8.1}ms {:>7.2}  {least}", cpio / ours);
    Ok(())
}

/// Packs `root` into guest memory, whose pages are allocated before unless it is to be `new`.
fn packed(root: &Path, new: bool) -> Result<Duration> {
    let size = 1536 * MIB;
    let ram = GuestRam::new(layout::ram_ranges(size))?;
    if !new {
        #[expect(clippy::cast_possible_truncation, reason = "a page has 4096 bytes")]
        let pages = (0..size).step_by(layout::PAGE_SIZE as usize);
        pages.into_iter().try_for_each(|at| ram.memory().write_obj(0u8, GuestAddress(at)))?;
    }
    let root = RootfsSpec { directory: Some(root.to_owned()), ..RootfsSpec::default() };
    let start = Instant::now();
    let written = root.write(ram.memory(), 64 * MIB..size).map_err(|error| error.to_string())?;
    let elapsed = start.elapsed();
    if written.len > size - 64 * MIB { Err("the archive does not fit".into()) } else { Ok(elapsed) }
}

/// Archives `root` with cpio, to /dev/null or to a `new` file in a tmpfs.
fn archived(root: &Path, new: bool) -> Result<Duration> {
    let target = if new { format!("/dev/shm/kickvm-bench-{}", std::process::id()) } else { "/dev/null".to_owned() };
    let start = Instant::now();
    let pipeline = format!("find . -print0 | cpio --quiet -0 -o -H newc >{target}");
    let done = Command::new("sh").args(["-c", &pipeline]).current_dir(root).status()?;
    let elapsed = start.elapsed();
    if new {
        fs::remove_file(target)?;
    }
    if done.success() { Ok(elapsed) } else { Err("find or cpio failed; are they installed?".into()) }
}

/// Measures the processor time of one `kickvm exec`.
fn exec(kernel: &Path, root: &Path) -> Result<Duration> {
    let spent = || -> Result<i64> {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        Ok(usage.user_time().num_microseconds() + usage.system_time().num_microseconds())
    };
    let before = spent()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_kickvm"));
    command
        .arg("exec")
        .arg("--kernel")
        .arg(kernel)
        .arg("--root")
        .arg(format!("{},copy", root.display()))
        .args(["--", "true"]);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if status.code() != Some(122) {
        return Err(format!("kickvm ended with {status}, not with 122").into());
    }
    Ok(Duration::from_micros(u64::try_from(spent()? - before)?))
}
