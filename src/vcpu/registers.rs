//! The state in which a vCPU starts: the registers that the boot protocol requires of the first, and the MSRs that
//! firmware sets on each.

use std::io;

use kvm_bindings::{Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::boot::layout::{BOOT_STACK, GDT, PAGE_TABLES};
use crate::boot::long_mode::{CODE_SELECTOR, DATA_SELECTOR, GDT_32, GDT_64};
use crate::boot::{Entry, Protocol};

// Control register and EFER bits (Intel SDM volume 3, 2.2.1 and 2.5).
const CR0_PROTECTED: u64 = 1 << 0;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
/// RFLAGS: bit 1 is always set. Interrupts are disabled.
const RFLAGS_RESERVED: u64 = 1 << 1;
/// Type of a busy 32-bit or 64-bit task-state segment (Intel SDM volume 3, table 3-2). VM entry requires one.
const BUSY_TSS: u8 = 0xb;
/// The limit of the smallest 64-bit task-state segment, 104 bytes (Intel SDM volume 3, 8.7).
const TSS_LIMIT: u32 = 0x67;

// MSRs that firmware sets to other values than a reset does (Intel SDM volume 4).
const IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRINGS: u64 = 1 << 0;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

/// Sets the registers of the first vCPU.
///
/// # Errors
///
/// The error of KVM_SET_SREGS or KVM_SET_REGS.
pub(super) fn set(vcpu: &VcpuFd, entry: &Entry) -> io::Result<()> {
    let mut sregs = vcpu.get_sregs()?;
    set_special(&mut sregs, entry.protocol);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&general(entry))?;
    Ok(())
}

/// Sets the MSRs that firmware sets on every processor.
///
/// # Errors
///
/// The error of KVM_SET_MSRS, or KVM does not support one of the MSRs.
pub(super) fn set_msrs(vcpu: &VcpuFd) -> io::Result<()> {
    let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries = [msr(IA32_MISC_ENABLE, 0), msr(IA32_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK)];
    let mut msrs = Msrs::from_entries(&entries).map_err(|error| io::Error::other(format!("{error:?}")))?;
    // KVM sets bits of the first that mark features as unavailable; they are kept.
    let mut old = msrs.clone();
    vcpu.get_msrs(&mut old)?;
    msrs.as_mut_slice()[0].data = old.as_slice()[0].data | MISC_ENABLE_FAST_STRINGS;
    match vcpu.set_msrs(&msrs)? {
        done if done < entries.len() => Err(io::Error::other(format!("KVM rejects MSR {:#x}", entries[done].index))),
        _ => Ok(()),
    }
}

fn general(entry: &Entry) -> kvm_regs {
    let (rsi, rbx) = if entry.protocol == Protocol::Pvh { (0, entry.boot_data.0) } else { (entry.boot_data.0, 0) };
    kvm_regs { rip: entry.address.0, rflags: RFLAGS_RESERVED, rsp: BOOT_STACK, rsi, rbx, ..Default::default() }
}

#[expect(clippy::cast_possible_truncation, reason = "the GDT has a few entries")]
fn set_special(sregs: &mut kvm_sregs, protocol: Protocol) {
    let gdt = if protocol == Protocol::Pvh { GDT_32 } else { GDT_64 };
    sregs.gdt = kvm_dtable { base: GDT, limit: (size_of_val(&gdt) - 1) as u16, ..Default::default() };
    sregs.idt = kvm_dtable::default();

    let data = segment(&gdt, DATA_SELECTOR);
    sregs.cs = segment(&gdt, CODE_SELECTOR);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: TSS_LIMIT, type_: BUSY_TSS, present: 1, ..Default::default() };

    sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE;
    sregs.cr4 = 0;
    sregs.efer = 0;
    if protocol != Protocol::Pvh {
        sregs.cr0 |= CR0_PAGING;
        sregs.cr3 = PAGE_TABLES;
        sregs.cr4 |= CR4_PHYSICAL_ADDRESS_EXTENSION;
        sregs.efer |= EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE;
    }
}

/// The segment register that loading `selector` from `gdt` gives (Intel SDM volume 3, 3.4.5). All segments are flat:
/// the base is 0, and the limit is the end of the address space.
fn segment(gdt: &[u64], selector: u16) -> kvm_segment {
    let descriptor = gdt[usize::from(selector / 8)];
    let bits = |from: u32, count: u32| (descriptor >> from & ((1 << count) - 1)).to_le_bytes()[0];
    let (type_, s, dpl, present) = (bits(40, 4), bits(44, 1), bits(45, 2), bits(47, 1));
    let (l, db, g) = (bits(53, 1), bits(54, 1), bits(55, 1));
    kvm_segment { limit: u32::MAX, selector, type_, s, dpl, present, l, db, g, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    #[test]
    fn linux_is_entered_in_long_mode_with_the_zero_page_in_rsi() {
        let entry =
            Entry { protocol: Protocol::BzImage, address: GuestAddress(1), is_linux: true, boot_data: GuestAddress(2) };
        let mut sregs = kvm_sregs::default();
        set_special(&mut sregs, entry.protocol);
        assert_eq!((general(&entry).rip, general(&entry).rsi, general(&entry).rflags), (1, 2, 2));
        assert_eq!((sregs.cs.selector, sregs.cs.l, sregs.cs.db, sregs.cs.type_), (0x10, 1, 0, 0xb));
        assert_eq!((sregs.ss.selector, sregs.ss.db, sregs.ss.type_), (0x18, 1, 3));
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x8000_0011, 0x20, 0x500));
    }

    #[test]
    fn pvh_is_entered_in_flat_32_bit_mode_with_the_start_info_in_rbx() {
        let entry =
            Entry { protocol: Protocol::Pvh, address: GuestAddress(1), is_linux: true, boot_data: GuestAddress(2) };
        let mut sregs = kvm_sregs { efer: 0x500, ..Default::default() };
        set_special(&mut sregs, entry.protocol);
        assert_eq!((general(&entry).rip, general(&entry).rbx), (1, 2));
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.g, sregs.cs.limit), (0, 1, 1, u32::MAX));
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x11, 0, 0));
    }
}
