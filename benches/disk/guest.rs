//! In the guest: reads the disk in three ways, each on request.

use super::Result;
use super::side::say_and_wait;
use io_uring::types::Fixed;
use io_uring::{IoUring, opcode};
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::slice;
use std::time::Instant;

/// How the disk is read.
pub struct Pattern {
    pub name: &'static str,
    pub block: usize,
    pub depth: usize,
    pub random: bool,
    pub requests: usize,
}

/// Bursts of each pattern.
pub const ROUNDS: usize = 21;

pub const PATTERNS: [Pattern; 3] = [
    Pattern { name: "sequential-128k", block: 128 << 10, depth: 1, random: false, requests: 100 },
    Pattern { name: "random-4k-depth-1", block: 4 << 10, depth: 1, random: true, requests: 200 },
    Pattern { name: "random-4k-depth-32", block: 4 << 10, depth: 32, random: true, requests: 3000 },
];

const DISK: &str = "/dev/vda";
const PAGE: usize = 4 << 10;

pub fn main() -> Result<()> {
    let disk = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(DISK)?;
    let size: u64 = fs::read_to_string("/sys/block/vda/size")?.trim().parse::<u64>()? * 512;
    say_and_wait("up")?;
    for pattern in &PATTERNS {
        read(&disk, size, pattern, pattern.requests)?; // to be warm
        for _ in 0..ROUNDS {
            say_and_wait(&format!("ready {}", pattern.name))?;
            let interrupts = interrupts()?;
            let start = Instant::now();
            read(&disk, size, pattern, pattern.requests)?;
            let took = start.elapsed().as_nanos();
            say_and_wait(&format!("done {took} {}", self::interrupts()? - interrupts))?;
        }
    }
    Ok(())
}

/// Interrupts of virtio devices so far; the disk is the one that is busy.
fn interrupts() -> Result<u64> {
    let table = fs::read_to_string("/proc/interrupts")?;
    let lines = table.lines().filter(|line| line.contains("virtio"));
    Ok(lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum())
}

/// Offsets in the disk, one after the other or without a pattern.
fn offsets(size: u64, pattern: &Pattern) -> impl Iterator<Item = u64> {
    let (block, random) = (pattern.block as u64, pattern.random);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..).map(move |n| {
        state ^= state << 13; // xorshift (Marsaglia 2003)
        state ^= state >> 7;
        state ^= state << 17;
        (if random { state } else { n }) % (size / block) * block
    })
}

fn read(disk: &File, size: u64, pattern: &Pattern, requests: usize) -> Result<()> {
    let len = pattern.block * pattern.depth;
    let room = vec![0; len + PAGE].leak(); // whatever happens, the kernel may write to it
    let start = room.as_ptr().align_offset(PAGE);
    let blocks = &mut room[start..start + len];
    let mut offsets = offsets(size, pattern).take(requests);
    if pattern.depth == 1 {
        offsets.try_for_each(|offset| disk.read_exact_at(blocks, offset))?;
        return Ok(());
    }
    deep(disk, blocks.chunks_exact_mut(pattern.block).collect(), offsets)
}

/// Keeps as many reads in flight as there are blocks.
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "blocks are small and few")]
fn deep(disk: &File, mut blocks: Vec<&'static mut [u8]>, mut offsets: impl Iterator<Item = u64>) -> Result<()> {
    let mut ring = IoUring::new(blocks.len() as u32)?;
    ring.submitter().register_files(slice::from_ref(&disk.as_raw_fd()))?;
    let mut free: Vec<usize> = (0..blocks.len()).collect();
    loop {
        while let Some(index) = free.pop() {
            let Some(offset) = offsets.next() else {
                free.push(index);
                break;
            };
            let block = &mut blocks[index];
            let entry = opcode::Read::new(Fixed(0), block.as_mut_ptr(), block.len() as u32).offset(offset).build();
            // SAFETY: the block is not touched until its index is free again, and never freed.
            unsafe { ring.submission().push(&entry.user_data(index as u64)) }?;
        }
        if free.len() == blocks.len() {
            return Ok(());
        }
        ring.submit_and_wait(1)?;
        for entry in ring.completion() {
            let index = entry.user_data() as usize;
            assert_eq!(entry.result(), blocks[index].len() as i32, "a read failed");
            free.push(index);
        }
    }
}
