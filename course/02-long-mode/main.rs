//! Chapter 2: a guest in 64-bit mode, and what KVM answers if its registers contradict each other.

mod machine;

use std::error::Error;

use kvm_ioctls::VcpuExit;
use machine::{CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, Machine, guest};

// ANCHOR: guest
guest!(
    prints_hello,
    "lea rsi, [rip + 3f]", // only 64-bit mode has addresses relative to RIP
    "mov dx, 0x3f8",
    "2: lodsb",
    "out dx, al",
    "cmp al, 10", // line feed
    "jne 2b",
    "mov rax, 0x123456789abcdef0",
    "hlt",
    "3: .ascii \"Hello from 64-bit mode\\n\"",
);
// ANCHOR_END: guest

// ANCHOR: contradiction
/// Prints what KVM_SET_SREGS answers after `bit` was cleared in `register`.
fn without(machine: &Machine, name: &str, register: fn(&mut kvm_bindings::kvm_sregs) -> &mut u64, bit: u64) {
    let mut sregs = machine.vcpu.get_sregs().expect("a vCPU has registers");
    *register(&mut sregs) &= !bit;
    match machine.vcpu.set_sregs(&sregs) {
        Ok(()) => println!("without {name}: accepted"),
        Err(error) => println!("without {name}: {error}"),
    }
}
// ANCHOR_END: contradiction

fn main() -> Result<(), Box<dyn Error>> {
    let mut machine = Machine::new(&prints_hello)?;
    without(&machine, "CR4.PAE", |sregs| &mut sregs.cr4, CR4_PAE);
    without(&machine, "EFER.LMA", |sregs| &mut sregs.efer, EFER_LMA);
    without(&machine, "EFER.LME", |sregs| &mut sregs.efer, EFER_LME);

    loop {
        match machine.vcpu.run()? {
            VcpuExit::IoOut(0x3f8, data) => print!("{}", String::from_utf8_lossy(data)),
            VcpuExit::Hlt => break,
            exit => return Err(format!("unexpected exit: {exit:?}").into()),
        }
    }
    // ANCHOR: registers
    let (regs, sregs) = (machine.vcpu.get_regs()?, machine.vcpu.get_sregs()?);
    println!("hlt: rip {:#x}, rax {:#x}", regs.rip, regs.rax);
    let set = |register, bit| register & bit != 0;
    println!("CR0.PE {}, CR0.PG {}", set(sregs.cr0, CR0_PE), set(sregs.cr0, CR0_PG));
    println!("EFER.LMA {}, CS.L {}", set(sregs.efer, EFER_LMA), sregs.cs.l != 0);
    // ANCHOR_END: registers
    Ok(())
}
