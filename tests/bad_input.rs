//! Whatever kickvm is given that it cannot use: one line on standard error that names it, exit code 125, and nothing
//! else.
#![cfg(feature = "vmm")]

mod common;

#[path = "bad_input/disks.rs"]
mod disks;
#[path = "bad_input/files.rs"]
mod files;
#[path = "bad_input/host.rs"]
mod host;
#[path = "bad_input/options.rs"]
mod options;
