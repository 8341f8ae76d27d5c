//! The smallest VMM: only the system calls that create the machine Linux needs, with interrupt controllers, a timer,
//! RAM and one vCPU.
//!
//! It runs a file of raw 64-bit code from 1 MiB, prints what the guest writes to port 0x3f8, and ends when the guest
//! writes to port 0xf4. It has no event loop and no exit handler: compare its `main` with `Vmm::run`. It does not
//! validate the code, and a signal ends it without any teardown. This guest prints an exclamation mark:
//!
//! ```text
//! $ printf '\146\272\370\003\260\041\356\346\364' >code
//! $ cargo run --example minimal code
//! ```
//!
//! `make bench` uses it as the baseline for kickvm. If standard error is not a terminal, it receives the time of the
//! guest's last instruction (CLOCK_MONOTONIC in nanoseconds, 8 bytes).

use kickvm::boot::long_mode::{CODE_SELECTOR, DATA_SELECTOR, GDT_64};
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nix::time::{ClockId, clock_gettime};
use std::io::{IsTerminal, Write};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const RAM: usize = 128 << 20;
const CODE: u64 = 1 << 20;
const GDT: u64 = 0x500;
const PAGE_TABLES: u64 = 0x8000;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A VM that is ready to run.
#[derive(Debug)]
pub struct Machine {
    /// Its only vCPU.
    pub vcpu: VcpuFd,
    _vm: VmFd,
    _memory: GuestMemoryMmap,
}

/// Creates a VM whose vCPU begins at the first byte of `code`.
pub fn machine(code: &[u8]) -> Result<Machine> {
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    vm.set_identity_map_address(0xfffb_c000)?;
    vm.set_tss_address(0xfffb_d000)?;
    vm.create_irq_chip()?;
    vm.create_pit2(kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() })?;

    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)])?;
    let slot = kvm_userspace_memory_region {
        memory_size: RAM as u64,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        ..Default::default()
    };
    // SAFETY: the slot is one whole mapping, which lives as long as the machine.
    unsafe { vm.set_user_memory_region(slot)? };
    memory.write_slice(code, GuestAddress(CODE))?;
    memory.write_obj(GDT_64, GuestAddress(GDT))?;
    memory.write_obj(PAGE_TABLES + 0x1000 | 3, GuestAddress(PAGE_TABLES))?;
    memory.write_obj(PAGE_TABLES + 0x2000 | 3, GuestAddress(PAGE_TABLES + 0x1000))?;
    memory.write_obj(0x83u64, GuestAddress(PAGE_TABLES + 0x2000))?; // the first 2 MiB, identity-mapped

    let vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    let mut sregs = vcpu.get_sregs()?;
    let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: CODE_SELECTOR, type_: 0xb, l: 1, ..flat };
    let data = kvm_segment { selector: DATA_SELECTOR, type_: 3, db: 1, ..flat };
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 31);
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8000_0011, PAGE_TABLES, 0x20, 0x500);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs { rip: CODE, rsp: 0x6000, rflags: 2, ..Default::default() })?;
    Ok(Machine { vcpu, _vm: vm, _memory: memory })
}

#[allow(dead_code)] // the benchmark uses only `machine`
fn main() -> Result<()> {
    let code = std::fs::read(std::env::args_os().nth(1).ok_or("usage: minimal CODE")?)?;
    let mut machine = machine(&code)?;
    let mut stdout = std::io::stdout();
    loop {
        match machine.vcpu.run()? {
            VcpuExit::IoOut(0x3f8, data) => {
                stdout.write_all(data)?;
                stdout.flush()?;
            }
            VcpuExit::IoOut(0xf4, _) => break,
            VcpuExit::IoIn(_, data) => data.fill(0xff),
            VcpuExit::IoOut(..) => {}
            exit => return Err(format!("{exit:?}").into()),
        }
    }
    let mut stderr = std::io::stderr();
    if !stderr.is_terminal() {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        stderr.write_all(&(now.tv_sec() * 1_000_000_000 + now.tv_nsec()).to_ne_bytes())?;
    }
    Ok(())
}
