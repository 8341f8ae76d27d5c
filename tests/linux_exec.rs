//! `kickvm exec` on real Linux: a stock Debian kernel, and the one of `resources/kernel-config`.
//!
//! Linux needs hardware-grade KVM; see `linux_boot.rs`. The guest's files are those that a test adds.
#![cfg(feature = "vmm")]

// The tools.
mod common;
mod linux;
#[macro_use]
#[path = "linux_exec/exec.rs"]
mod exec;

// The promises.
#[path = "linux_exec/ends.rs"]
mod ends;
#[path = "linux_exec/files.rs"]
mod files;
#[path = "linux_exec/reports.rs"]
mod reports;
#[path = "linux_exec/signals.rs"]
mod signals;
#[path = "linux_exec/streams.rs"]
mod streams;
#[path = "linux_exec/terminal.rs"]
mod terminal;
#[path = "linux_exec/verdicts.rs"]
mod verdicts;

use linux::{assets, pty};
