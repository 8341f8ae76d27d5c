//! The exercises of the course, as the reader edits them. `make exercise N=01a` checks one. Without it, this test
//! checks that no starter is a solution already.
#![cfg(feature = "vmm")]

#[path = "../../tests/common/can_run.rs"]
mod can_run;
#[path = "../checks/mod.rs"]
mod checks;
#[path = "../../tests/common/has_kvm.rs"]
mod has_kvm;
#[path = "mod.rs"]
mod work;

/// For `checks`.
const ARE_STARTERS: bool = true;
