//! A VM that has what Linux takes for granted: interrupt controllers, a timer, and processors with a CPUID.

use std::error::Error;

use kickvm::boot::layout::{KVM_IDENTITY_MAP, KVM_TSS};
use kickvm::vcpu::CpuidTemplate;
use kvm_bindings::{CpuId, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// A VM that is ready to be loaded.
pub struct Vm {
    pub vcpus: Vec<VcpuFd>,
    pub fd: VmFd,
    pub memory: GuestMemoryMmap,
}

impl Vm {
    pub fn new(ram: u64, cpus: u8) -> Result<Self, Box<dyn Error>> {
        let kvm = Kvm::new()?;
        let fd = kvm.create_vm()?;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), usize::try_from(ram)?)])?;
        let slot = kvm_userspace_memory_region {
            memory_size: ram,
            userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
            ..Default::default()
        };
        // SAFETY: the slot is one whole mapping, which lives longer than the VM: it is the last field.
        unsafe { fd.set_user_memory_region(slot)? };

        // ANCHOR: chips
        fd.set_identity_map_address(KVM_IDENTITY_MAP)?; // Intel: pages that KVM itself uses
        fd.set_tss_address(KVM_TSS)?;
        fd.create_irq_chip()?; // two PICs, an I/O APIC, and a local APIC for each vCPU
        fd.create_pit2(kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() })?;
        // ANCHOR_END: chips

        // ANCHOR: cpuid
        let template = CpuidTemplate::new(&kvm)?;
        let mut vcpus = Vec::new();
        for id in 0..cpus {
            let vcpu = fd.create_vcpu(id.into())?;
            vcpu.set_cpuid2(&CpuId::from_entries(&template.for_vcpu(id, cpus)).map_err(|_| "too many CPUID leaves")?)?;
            vcpus.push(vcpu);
        }
        // ANCHOR_END: cpuid
        Ok(Self { vcpus, fd, memory })
    }

    /// Sets the registers of the first vCPU: 64-bit mode, with the tables at these addresses.
    pub fn set_entry(&self, rip: u64, rsi: u64, gdt: u64, page_tables: u64) -> Result<(), Box<dyn Error>> {
        let vcpu = &self.vcpus[0];
        let mut sregs = vcpu.get_sregs()?;
        let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
        sregs.cs = kvm_segment { selector: 0x10, type_: 0xb, l: 1, ..flat };
        let data = kvm_segment { selector: 0x18, type_: 3, db: 1, ..flat };
        (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
        (sregs.gdt.base, sregs.gdt.limit) = (gdt, 4 * 8 - 1);
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8000_0011, page_tables, 0x20, 0x500);
        vcpu.set_sregs(&sregs)?;
        vcpu.set_regs(&kvm_regs { rip, rsi, rflags: 2, ..Default::default() })?;
        Ok(())
    }
}
