//! /dev/kvm: how it is opened, and what this VMM needs of it.

use kvm_ioctls::{Cap, Kvm};

use super::error::Error;

/// The only API version since Linux 2.6.22 (Documentation/virt/kvm/api.rst, 4.1).
pub const API_VERSION: i32 = 12;

/// What a VM needs from KVM, and its purpose.
pub const CAPABILITIES: [(Cap, &str); 6] = [
    (Cap::UserMemory, "map guest memory (KVM_CAP_USER_MEMORY)"),
    (Cap::Irqchip, "emulate interrupt controllers (KVM_CAP_IRQCHIP)"),
    (Cap::Irqfd, "take interrupts from event descriptors (KVM_CAP_IRQFD)"),
    (Cap::Pit2, "emulate the interval timer (KVM_CAP_PIT2)"),
    (Cap::ExtCpuid, "list its CPUID leaves (KVM_CAP_EXT_CPUID)"),
    (Cap::ImmediateExit, "leave a guest at once (KVM_CAP_IMMEDIATE_EXIT)"),
];

/// Opens /dev/kvm and checks that this VMM can use it.
///
/// # Errors
///
/// It cannot be opened, has another API version, or lacks a capability.
pub(super) fn open_kvm() -> Result<Kvm, Error> {
    let kvm = Kvm::new().map_err(|error| Error::OpenKvm(error.into()))?;
    match kvm.get_api_version() {
        API_VERSION => {}
        version => return Err(Error::ApiVersion(version)),
    }
    match CAPABILITIES.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        None => Ok(kvm),
        Some((_, purpose)) => Err(Error::Capability(purpose)),
    }
}
