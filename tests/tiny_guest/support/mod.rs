//! Support code for tests with guests of a few instructions.

pub mod asm;
pub mod guests;
#[path = "../../common/has_kvm.rs"]
mod has_kvm;
#[path = "../../common/images.rs"]
pub mod images;
pub mod run;
pub mod stuck;

pub use has_kvm::has_kvm;

/// Ends the test that contains it if KVM cannot be used.
#[macro_export]
macro_rules! need_kvm {
    () => {
        if !$crate::common::can_run($crate::this_test!(), $crate::support::has_kvm()) {
            return;
        }
    };
}
