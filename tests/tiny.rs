//! Guests of a few instructions on /dev/kvm, through the command line: how they end, what they see, what they print.
#![cfg(feature = "vmm")]

mod common;

#[path = "tiny/devices.rs"]
mod devices;
#[path = "tiny/ends.rs"]
mod ends;
#[path = "tiny/exec.rs"]
mod exec;
#[path = "tiny/library.rs"]
mod library;
#[path = "tiny/output.rs"]
mod output;
#[path = "tiny/smp.rs"]
mod smp;
#[macro_use]
#[path = "tiny/virtio.rs"]
mod virtio;
#[path = "tiny/block.rs"]
mod block;
#[path = "tiny/stuck_disk.rs"]
mod stuck_disk;
#[path = "tiny/vsock.rs"]
mod vsock;
