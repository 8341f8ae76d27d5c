//! Disk requests, most of them invalid, on a machine with one disk of 8 sectors. Each guest ends with the status of its
//! request: 0 success, 1 an I/O error, 2 unsupported; or with 64 if the device needs a reset, 65 if there is no
//! response.

use crate::common::TempDir;
use crate::support::run::run;
use crate::{guest, need_kvm};
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

const OK: i32 = 0;
const ERROR: i32 = 1;
const UNKNOWN: i32 = 2;
const NEEDS_RESET: i32 = 64;

/// Sends a request of this type for this sector: its header is at 0x101000, its data at 0x102000, its status at
/// 0x103000.
macro_rules! send_request {
    ($kind:literal, $sector:literal) => {
        concat!(
            "mov dword ptr [0x101000], ",
            $kind,
            "; mov rax, ",
            $sector,
            "; mov [0x101008], rax; mov byte ptr [0x103000], 99; ",
            "mov word ptr [0x1006c2], 0; mov word ptr [0x100682], 1; ",
            driver_ok!(),
            reg!("0x50", "0"),
            "mov ecx, 200000; ",
            "2: cmp word ptr [0x1006c2], 0; jne 4f; ",
            "mov al, 64; test byte ptr [rbx + 0x70], 0x40; jnz 3f; ",
            "dec ecx; jnz 2b; mov al, 65; jmp 3f; ",
            "4: mov al, [0x103000]; ",
            "3: out 0xf4, al"
        )
    };
}

macro_rules! disk_driver {
    ($name:ident, [$($descriptor:tt),*], $kind:literal, $sector:literal) => {
        driver!($name, [$($descriptor),*], negotiate!(), good_queue!(), send_request!($kind, $sector));
    };
}

disk_driver!(
    DISK_READ,
    [("0x101000", "16", "1", "1"), ("0x102000", "512", "3", "2"), ("0x103000", "1", "2", "0")],
    "0",
    "7"
);
disk_driver!(
    DISK_WRITE,
    [("0x101000", "16", "1", "1"), ("0x102000", "512", "1", "2"), ("0x103000", "1", "2", "0")],
    "1",
    "7"
);
disk_driver!(
    DISK_PAST_END,
    [("0x101000", "16", "1", "1"), ("0x102000", "1024", "3", "2"), ("0x103000", "1", "2", "0")],
    "0",
    "7"
);
disk_driver!(
    DISK_LARGEST_SECTOR,
    [("0x101000", "16", "1", "1"), ("0x102000", "512", "3", "2"), ("0x103000", "1", "2", "0")],
    "0",
    "0xffffffffffffffff"
);
disk_driver!(
    DISK_PARTIAL_SECTOR,
    [("0x101000", "16", "1", "1"), ("0x102000", "511", "3", "2"), ("0x103000", "1", "2", "0")],
    "0",
    "0"
);
disk_driver!(
    DISK_DISCARD,
    [("0x101000", "16", "1", "1"), ("0x102000", "512", "3", "2"), ("0x103000", "1", "2", "0")],
    "11",
    "0"
);
disk_driver!(DISK_UNKNOWN, [("0x101000", "16", "1", "1"), ("0x103000", "1", "2", "0")], "99", "0");
disk_driver!(DISK_SHORT, [("0x101000", "15", "1", "1"), ("0x103000", "1", "2", "0")], "0", "0");
disk_driver!(DISK_NO_HEADER, [("0x103000", "1", "2", "0")], "0", "0");
disk_driver!(DISK_NO_STATUS, [("0x101000", "16", "1", "1"), ("0x102000", "512", "0", "0")], "1", "0");

/// Runs `guest` with a disk in each of two file systems, one of them a tmpfs. Asserts the exit code, and that the disk
/// is unchanged except for the sectors `zeros`, which hold zeros.
#[track_caller]
fn ends(guest: &[u8], options: &str, end: i32, zeros: std::ops::Range<usize>) {
    let dir = TempDir::new();
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let in_memory = format!("/dev/shm/kickvm-tiny-{}-{number}", std::process::id());
    for path in [dir.path().join("disk").display().to_string(), in_memory] {
        let mut content = vec![0x55; 4096];
        fs::write(&path, &content).unwrap();
        let ended = run(guest, &["--no-rng", "--disk", &format!("{path}{options}")]).end();
        let now = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        ended.assert(end, "", &[]);
        content[zeros.start * 512..zeros.end * 512].fill(0);
        assert!(now == content, "{path} has changed");
    }
}

/// One test for each driver.
macro_rules! disk_drivers {
    ($($name:ident: $guest:ident with $options:literal is $end:ident and zeros $zeros:expr,)*) => {$(
        #[test]
        fn $name() {
            need_kvm!();
            ends(&$guest, $options, $end, $zeros);
        }
    )*};
}

disk_drivers! {
    a_read: DISK_READ with "" is OK and zeros 0..0,
    a_write: DISK_WRITE with "" is OK and zeros 7..8,
    a_write_to_a_read_only_disk: DISK_WRITE with ",ro" is ERROR and zeros 0..0,
    a_read_past_the_end: DISK_PAST_END with "" is ERROR and zeros 0..0,
    a_read_at_the_largest_sector_number: DISK_LARGEST_SECTOR with "" is ERROR and zeros 0..0,
    a_read_of_a_partial_sector: DISK_PARTIAL_SECTOR with "" is ERROR and zeros 0..0,
    a_discard_without_a_range: DISK_DISCARD with "" is ERROR and zeros 0..0,
    a_request_of_an_unknown_type: DISK_UNKNOWN with "" is UNKNOWN and zeros 0..0,
    a_truncated_header: DISK_SHORT with "" is ERROR and zeros 0..0,
    no_header: DISK_NO_HEADER with "" is ERROR and zeros 0..0,
    no_buffer_for_the_status: DISK_NO_STATUS with "" is NEEDS_RESET and zeros 0..0,
}
