//! What a user of kickvm can observe with real Linux in the guest: a stock Debian kernel, and the kernel of
//! `resources/kernel-config`, which is entered by each boot protocol. `debug_kernel` boots its debug
//! variant.
//!
//! Linux needs a KVM that is backed by the processor. scripts/runner, the cargo runner of the tests, starts this binary
//! where there is one, and names the guests' files in the environment: `KICKVM_STOCK_KERNEL`, `KICKVM_STOCK_MODULES`,
//! `KICKVM_KERNEL_DIR`, `KICKVM_DEBUG_KERNEL_DIR`, `KICKVM_INITRAMFS`, `KICKVM_CACHE`. Without them a test prints that
//! it could not run, and fails if `KICKVM_REQUIRE_KVM` is 1.
//!
//! The init of these guests is `resources/guest-init`: it prints a greeting, runs the executable `/job` of a second
//! archive if there is one, and powers off. In `exec` the init is kickvm's own.
#![cfg(feature = "vmm")]

#[path = "../common/mod.rs"]
mod common;
#[macro_use]
mod support;

mod boot;
mod course;
mod debug_kernel;
mod disk;
mod exec;
mod net;
mod virtio;
mod vsock;
