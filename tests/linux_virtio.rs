//! The virtio devices that need nothing of the host, under real Linux: entropy, console, balloon.
#![cfg(feature = "vmm")]

// The tools.
mod common;
#[macro_use]
mod linux;

// The promises.
#[path = "linux/balloon.rs"]
mod balloon;
#[path = "linux/entropy.rs"]
mod entropy;
#[path = "linux/hvc.rs"]
mod hvc;

use linux::{devices, guest, pty, terminal, transcript};
