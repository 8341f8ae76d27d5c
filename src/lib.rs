//! kickvm, a minimal VMM for Linux/KVM on x86-64.
#![deny(missing_docs)]

#[cfg(feature = "vmm")]
pub mod boot;
#[cfg(feature = "vmm")]
mod cause;
#[cfg(feature = "vmm")]
pub mod device;
pub mod event;
#[cfg(feature = "vmm")]
pub mod vcpu;
#[cfg(feature = "vmm")]
pub mod vmm;
