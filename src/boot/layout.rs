//! The memory map: every guest-physical address has a name here.
//!
//! ```text
//!          0 ┌──────────────────────────────┐
//!      0x500 │ GDT                          │
//!     0x1000 │ boot stack, up to 0x6000      │
//!     0x6000 │ PVH start info, memory map   │
//!     0x7000 │ zero page (boot_params)      │
//!     0x8000 │ page tables, 6 pages         │
//!    0x20000 │ kernel command line          │
//!    0xa0000 ├──────────────────────────────┤ not RAM for the guest
//!    0xe0000 │ ACPI tables                  │
//!    0xffff0 │ reset vector                 │
//!   0x100000 ├──────────────────────────────┤
//!            │ kernel … initramfs           │
//!      3 GiB ├──────────────────────────────┤
//!            │ MMIO gap                     │ virtio, IOAPIC, LAPIC, KVM's own pages
//!      4 GiB ├──────────────────────────────┤
//!            │ the rest of RAM              │
//!            └──────────────────────────────┘
//! ```

/// The guest's page size in bytes.
pub const PAGE_SIZE: u64 = 4 << 10;

/// Global descriptor table for the first instructions.
pub const GDT: u64 = 0x500;
/// Top of a small stack, for guests that do not set one up. Linux does.
pub const BOOT_STACK: u64 = 0x6000;
/// PVH `hvm_start_info`.
pub const PVH_START_INFO: u64 = 0x6000;
/// PVH module list. Its only module is the initramfs.
pub const PVH_MODULES: u64 = 0x6040;
/// PVH memory map.
pub const PVH_MEMORY_MAP: u64 = 0x6080;
/// Linux's zero page, `boot_params`.
pub const ZERO_PAGE: u64 = 0x7000;
/// Page-map level 4. The page-directory pointer table and four page directories follow.
pub const PAGE_TABLES: u64 = 0x8000;
/// Kernel command line.
pub const COMMAND_LINE: u64 = 0x20000;
/// Space for the command line including the NUL, in bytes.
pub const COMMAND_LINE_ROOM: usize = 0x10000;

/// End of the RAM below the ISA hole, which begins with video memory on a PC.
pub const LOW_RAM_END: u64 = 0xa_0000;
/// ACPI tables, in the range that a kernel searches for the RSDP (ACPI 6.5, 5.2.5.1).
pub const ACPI_TABLES: u64 = 0xe_0000;
/// End of the range for ACPI tables.
pub const ACPI_TABLES_END: u64 = 0x10_0000;
/// Where a processor starts after a reset in real mode. A reboot through the BIOS jumps there.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Start of the RAM above the ISA hole. Kernels are loaded here or higher.
pub const HIGH_RAM: u64 = 0x10_0000;

/// Start of the MMIO gap. RAM below 4 GiB ends here or lower.
pub const MMIO_GAP: u64 = 3 << 30;
/// End of the MMIO gap. The rest of RAM begins here.
pub const MMIO_GAP_END: u64 = 4 << 30;

/// Registers of the first virtio device. The others follow; each has a page.
pub const VIRTIO_REGISTERS: u64 = MMIO_GAP;
/// The interrupts of virtio devices, one for each: the pins of the 24 of the I/O APIC that timers, serial ports and the
/// power button do not use.
pub const VIRTIO_GSIS: [u32; 17] = [16, 17, 18, 19, 20, 21, 22, 23, 10, 11, 12, 13, 14, 15, 5, 6, 7];

/// The places for virtio devices in order: (start of the registers, interrupt).
pub fn virtio_slots() -> impl Iterator<Item = (u64, u32)> {
    (0..).map(|index| VIRTIO_REGISTERS + index * PAGE_SIZE).zip(VIRTIO_GSIS)
}

/// I/O APIC (Intel 82093AA data sheet).
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APIC (Intel SDM volume 3, 11.4.1).
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// A page outside RAM and below 4 GiB. KVM needs it on Intel hosts to run guests without paging
/// (Documentation/virt/kvm/api.rst, KVM_SET_IDENTITY_MAP_ADDR).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages outside RAM and below 4 GiB. KVM needs them on Intel hosts for real mode (KVM_SET_TSS_ADDR).
pub const KVM_TSS: usize = 0xfffb_d000;

/// The RAM ranges (start, length) of a guest with `size` bytes of RAM, split around the MMIO gap.
pub fn ram_ranges(size: u64) -> impl Iterator<Item = (u64, u64)> {
    let low = size.min(MMIO_GAP);
    [(0, low), (MMIO_GAP_END, size - low)].into_iter().filter(|(_, length)| *length > 0)
}

/// Kinds of memory, numbered as in e820 and in the memory map of PVH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// RAM that the guest may use.
    Ram = 1,
    /// Memory that the guest must not use.
    Reserved = 2,
}

/// The memory map that the guest receives: (start, length, kind), in order. `size` is more than [`HIGH_RAM`].
pub fn memory_map(size: u64) -> impl Iterator<Item = (u64, u64, MemoryKind)> {
    let below = [(0, LOW_RAM_END, MemoryKind::Ram), (ACPI_TABLES, ACPI_TABLES_END - ACPI_TABLES, MemoryKind::Reserved)];
    let above = ram_ranges(size).map(|(start, length)| match start {
        0 => (HIGH_RAM, length - HIGH_RAM, MemoryKind::Ram),
        _ => (start, length, MemoryKind::Ram),
    });
    below.into_iter().chain(above)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_around_the_gap_to_the_byte() {
        let ranges = |size| ram_ranges(size).collect::<Vec<_>>();
        assert_eq!(ranges(128 << 20), [(0, 128 << 20)]);
        assert_eq!(ranges(3 << 30), [(0, 3 << 30)]);
        assert_eq!(ranges((3 << 30) + 4096), [(0, 3 << 30), (4 << 30, 4096)]);
        assert_eq!(ranges(5 << 30), [(0, 3 << 30), (4 << 30, 2 << 30)]);
    }

    #[test]
    fn the_memory_map_is_right_to_the_page() {
        use MemoryKind::{Ram, Reserved};
        let expected = [
            (0, 0xa0000, Ram),
            (0xe0000, 0x20000, Reserved),
            (0x10_0000, (3 << 30) - (1 << 20), Ram),
            (4 << 30, 4096, Ram),
        ];
        assert_eq!(memory_map((3 << 30) + 4096).collect::<Vec<_>>(), expected);
    }
}
