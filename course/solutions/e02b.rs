//! Solution of exercise 02b: name the contradiction for which KVM_SET_SREGS fails with EINVAL.

use kvm_bindings::kvm_sregs;

const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Returns the field that contradicts the others: "CR4.PAE", "EFER.LMA" or "CS.L".
pub fn contradiction(sregs: &kvm_sregs) -> Option<&'static str> {
    if sregs.efer & EFER_LME != 0 && sregs.cr0 & CR0_PG != 0 {
        (sregs.cr4 & CR4_PAE == 0).then_some("CR4.PAE").or((sregs.efer & EFER_LMA == 0).then_some("EFER.LMA"))
    } else {
        (sregs.efer & EFER_LMA != 0).then_some("EFER.LMA").or((sregs.cs.l != 0).then_some("CS.L"))
    }
}
