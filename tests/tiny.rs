//! Guests of a few instructions on /dev/kvm, through the command line: how they end, what they see, what they print.
#![cfg(feature = "vmm")]

mod common;

#[path = "tiny/devices.rs"]
mod devices;
#[path = "tiny/ends.rs"]
mod ends;
#[path = "tiny/library.rs"]
mod library;
#[path = "tiny/output.rs"]
mod output;
#[path = "tiny/smp.rs"]
mod smp;
