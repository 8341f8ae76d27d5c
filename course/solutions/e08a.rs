//! Solution of exercise 08a: an initramfs at the wrong place.

/// Returns the highest address for an initramfs of `len` bytes, if there is one. RAM ends at `ram`, and the kernel
/// needs the memory up to `kernel_end`.
pub fn initramfs_address(len: u64, ram: u64, kernel_end: u64, initrd_addr_max: u32) -> Option<u64> {
    let end = ram.min(u64::from(initrd_addr_max) + 1);
    let start = end.checked_sub(len)? & !0xfff;
    (start >= kernel_end).then_some(start)
}
