//! What a user of kickvm can observe without Linux in the guest: bad input, terminals, and guests of a few
//! instructions, which run on any `/dev/kvm`.
#![cfg(feature = "vmm")]

#[path = "../common/mod.rs"]
mod common;
mod support;

mod bad_input;
mod devices;
mod ends;
mod exec;
mod library;
mod matrix;
mod merge;
mod output;
mod results;
mod slurm;
mod smp;
mod stuck_output;
mod terminal;
mod verdicts;
mod virtio;
