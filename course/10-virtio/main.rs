//! Chapter 10: a virtqueue and a disk, and then a stock Linux kernel with kickvm's. `make chapter N=10`

mod block;
mod queue;

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use kickvm::boot::Image;
use kickvm::vmm::{DiskConfig, VMMConfig, Vmm};
use queue::Queue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

// ANCHOR: driver
/// The driver's part: the places of the queue and of one request in guest memory.
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADER: u64 = 0x4000;
const DATA: u64 = 0x5000;
const STATUS: u64 = 0x6000;

/// Offers a request that reads `sector`, with these three descriptors: address, length, flags, next. Prints what the
/// device does with it.
fn request(sector: u64, descriptors: [(u64, u32, u16, u16); 3], disk: &[u8]) -> Result<(), Box<dyn Error>> {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1_0000)])?;
    memory.write_obj(block::READ, GuestAddress(HEADER))?;
    memory.write_obj(sector, GuestAddress(HEADER + 8))?;
    for (at, (address, len, flags, next)) in (DESCRIPTORS..).step_by(16).zip(descriptors) {
        memory.write_obj(address, GuestAddress(at))?;
        memory.write_obj(len, GuestAddress(at + 8))?;
        memory.write_obj([flags, next], GuestAddress(at + 12))?;
    }
    memory.write_obj([0u16, 1, 0], GuestAddress(AVAILABLE))?; // flags, index, the first descriptor of request 0

    let (descriptors, available, used) = (DESCRIPTORS, AVAILABLE, USED);
    let mut queue = Queue { size: 4, descriptors, available, used, next_available: 0, next_used: 0 };
    match block::serve(&mut queue, &memory, disk) {
        Ok(count) => {
            let status: u8 = memory.read_obj(GuestAddress(STATUS))?;
            let used: u16 = memory.read_obj(GuestAddress(USED + 2))?;
            let data: [u8; 6] = memory.read_obj(GuestAddress(DATA))?;
            println!("  {count} request, used index {used}, status {status}, data '{}'", data.escape_ascii());
        }
        Err(error) => println!("  {error}"),
    }
    Ok(())
}
// ANCHOR_END: driver

// ANCHOR: boot
/// Loads the drivers, reads the first line of the disk, writes another, and powers off.
const SCRIPT: &str = "export PATH=/bin; mount -t devtmpfs dev /dev; cd /lib/modules/*; \
    for module in $(cat order); do insmod $module; done; \
    head -n 1 /dev/vda; echo Linux was here >/dev/vda; sync; stty opost; poweroff -f";

/// Boots a stock kernel with a disk.
fn boot(mut files: impl Iterator<Item = PathBuf>) -> Result<(), Box<dyn Error>> {
    let image = Image::File(files.next().ok_or("usage: 10-virtio KERNEL INITRAMFS...")?);
    let path = std::env::temp_dir().join(format!("course-{}.img", std::process::id()));
    let mut content = b"Hello from a virtio disk\n".to_vec();
    content.resize(1 << 20, 0);
    fs::write(&path, content)?;

    let config = VMMConfig {
        initramfs: files.collect(),
        cmdline: format!("console=ttyS0 quiet panic=-1 rdinit=/bin/sh -- -c \"{SCRIPT}\""),
        disks: vec![DiskConfig { path: path.clone(), raw: true, read_only: false, id: None, direct: false }],
        ..VMMConfig::new(image)
    };
    let outcome = Vmm::try_from(config)?.run()?;
    println!("{}, exit code {}", outcome.reason, outcome.reason.code());
    let content = fs::read(&path)?;
    fs::remove_file(&path)?;
    println!("the disk: {}", content.split(|byte| *byte == b'\n').next().unwrap_or_default().escape_ascii());
    Ok(())
}
// ANCHOR_END: boot

fn main() -> Result<(), Box<dyn Error>> {
    let mut disk = vec![b'.'; 4 * 512];
    disk[512..518].copy_from_slice(b"second");
    let (next, write) = (1, 2);
    let (header, status) = ((HEADER, 16, next, 1), (STATUS, 1, write, 0));

    println!("a request:");
    request(1, [header, (DATA, 512, next | write, 2), status], &disk)?;
    println!("behind the end of the disk:");
    request(u64::MAX, [header, (DATA, 512, next | write, 2), status], &disk)?;
    println!("a chain that returns to its first descriptor:");
    request(1, [header, (DATA, 512, next | write, 0), status], &disk)?;
    println!("a descriptor that does not exist:");
    request(1, [header, (DATA, 512, next | write, 4), status], &disk)?;
    println!("a buffer outside of RAM:");
    request(1, [header, (u64::MAX - 7, 512, next | write, 2), status], &disk)?;

    println!("Linux:");
    boot(std::env::args_os().skip(1).map(PathBuf::from))
}
