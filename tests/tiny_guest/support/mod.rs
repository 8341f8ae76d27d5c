//! Support code for tests with guests of a few instructions.

pub mod asm;
pub mod guests;
#[path = "../../common/images.rs"]
pub mod images;
pub mod run;
pub mod stuck;

use std::fs::OpenOptions;

/// Ends the test that contains it if KVM cannot be used.
#[macro_export]
macro_rules! need_kvm {
    () => {
        if !$crate::common::can_run($crate::this_test!(), $crate::support::has_kvm()) {
            return;
        }
    };
}

pub fn has_kvm() -> Result<(), String> {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("/dev/kvm: {error}")),
    }
}
