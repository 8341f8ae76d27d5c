//! Real Linux in the machine: a stock Debian kernel, and the one of `resources/kernel-config` by each boot protocol.
//!
//! Linux needs hardware-grade KVM, so a cargo runner starts this binary where there is one and names in the environment what
//! guests are made of: `KICKVM_STOCK_KERNEL`, `KICKVM_KERNEL_DIR`, `KICKVM_INITRAMFS`. Without them a test says that it could
//! not run, and fails if `KICKVM_REQUIRE_KVM` is 1.
//!
//! In the guest runs `resources/guest-init`: it greets, runs the executable `/job` of a second archive if there is one, and
//! powers off.
#![cfg(feature = "vmm")]

// The tools.
mod common;
#[macro_use]
mod linux;

// The promises.
#[path = "linux/endings.rs"]
mod endings;
#[path = "linux/figures.rs"]
mod figures;
#[path = "linux/initramfs.rs"]
mod initramfs;
#[path = "linux/machine.rs"]
mod machine;
#[path = "linux/panics.rs"]
mod panics;
#[path = "linux/shell.rs"]
mod shell;
#[path = "linux/stopping.rs"]
mod stopping;

use linux::{assets, cpio, guest, terminal, transcript};
