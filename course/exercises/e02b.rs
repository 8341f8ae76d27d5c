//! Exercise 02b: name the contradiction for which KVM_SET_SREGS fails with EINVAL.
//!
//! The kernel's answer is one number for all causes. These are the rules (Linux, `kvm_is_valid_sregs`): with EFER.LME
//! and CR0.PG, both CR4.PAE and EFER.LMA must be set. Otherwise, both EFER.LMA and CS.L must be clear.

use kvm_bindings::kvm_sregs;

const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Returns the field that contradicts the others: "CR4.PAE", "EFER.LMA" or "CS.L".
pub fn contradiction(sregs: &kvm_sregs) -> Option<&'static str> {
    // TODO
    let _ = (sregs, CR0_PG, CR4_PAE, EFER_LME, EFER_LMA);
    None
}
