use super::check;
use crate::work::{e08a, e08b};

check!(e08a, {
    for (len, ram, kernel_end, max, address) in [
        (0x1000, 0x1000_0000, 0x400_0000, u32::MAX, Some(0x0fff_f000)),
        (0x1001, 0x1000_0000, 0x400_0000, u32::MAX, Some(0x0fff_e000)),
        (0x1000, 0x1000_0000, 0x400_0000, 0x07ff_ffff, Some(0x07ff_f000)),
        (0x1000, 0x2_0000_0000, 0x400_0000, u32::MAX, Some(0xffff_f000)),
        (0x0c00_0000, 0x1000_0000, 0x400_0000, u32::MAX, Some(0x400_0000)),
        (0x0c00_0001, 0x1000_0000, 0x400_0000, u32::MAX, None),
        (0x2000_0000, 0x1000_0000, 0x400_0000, u32::MAX, None),
    ] {
        let found = e08a::initramfs_address(len, ram, kernel_end, max);
        assert_eq!(found, address, "{len:#x} bytes, RAM to {ram:#x}, kernel to {kernel_end:#x}, at most {max:#x}");
    }
});

check!(e08b, {
    let (kib, mib, gib) = (1 << 10, 1 << 20, 1 << 30);
    let first = (0, 640 * kib);
    assert_eq!(e08b::memory_map(256 * mib), [first, (mib, 255 * mib)]);
    assert_eq!(e08b::memory_map(3 * gib), [first, (mib, 3 * gib - mib)]);
    assert_eq!(e08b::memory_map(3 * gib + 4096), [first, (mib, 3 * gib - mib), (4 * gib, 4096)]);
    assert_eq!(e08b::memory_map(8 * gib), [first, (mib, 3 * gib - mib), (4 * gib, 5 * gib)]);
});
