//! Chapter 1: a VM with one vCPU, one page of RAM and a guest that executes one `out` instruction.

use std::error::Error;
use std::ptr::null_mut;

use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};

// ANCHOR: guest
/// The guest, in 16-bit code.
const GUEST: [u8; 7] = [
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'K', //       mov al, 'K'
    0xee, //             out dx, al
    0xf4, //             hlt
];
/// The guest-physical address of the guest's RAM and of its first instruction.
const ADDRESS: u64 = 0x1000;
const PAGE_SIZE: usize = 0x1000;
// ANCHOR_END: guest

fn main() -> Result<(), Box<dyn Error>> {
    // ANCHOR: vm
    let kvm = Kvm::new()?; // opens /dev/kvm
    println!("KVM API version {}", kvm.get_api_version()); // KVM_GET_API_VERSION
    let vm = kvm.create_vm()?; // KVM_CREATE_VM
    // ANCHOR_END: vm

    // ANCHOR: memory
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: the kernel chooses the address, so no other memory is replaced.
    let page = unsafe { libc::mmap(null_mut(), PAGE_SIZE, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: the page is mapped and writable, longer than the guest, and new, so nothing else refers to it.
    unsafe { page.cast::<[u8; GUEST.len()]>().write(GUEST) };

    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: ADDRESS,
        memory_size: PAGE_SIZE as u64,
        userspace_addr: page as u64,
    };
    // SAFETY: the page stays mapped until the process ends, and this program does not access it any more.
    unsafe { vm.set_user_memory_region(slot)? }; // KVM_SET_USER_MEMORY_REGION
    // ANCHOR_END: memory

    // ANCHOR: vcpu
    let mut vcpu = vm.create_vcpu(0)?; // KVM_CREATE_VCPU
    let mut sregs = vcpu.get_sregs()?; // KVM_GET_SREGS
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs)?; // KVM_SET_SREGS
    vcpu.set_regs(&kvm_regs { rip: ADDRESS, rflags: 2, ..Default::default() })?; // KVM_SET_REGS
    // ANCHOR_END: vcpu

    // ANCHOR: run
    loop {
        match vcpu.run()? /* KVM_RUN */ {
            VcpuExit::IoOut(port, data) => println!("out: port {port:#x}, data {:?}", data.escape_ascii().to_string()),
            VcpuExit::Hlt => break println!("hlt"),
            exit => return Err(format!("unexpected exit: {exit:?}").into()),
        }
    }
    // ANCHOR_END: run
    Ok(())
}
