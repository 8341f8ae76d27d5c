//! Standard input of every kind, and the user's terminal: raw while the guest has it, and afterwards as it was.
#![cfg(feature = "vmm")]

mod common;

#[path = "terminal/input.rs"]
mod input;
#[path = "terminal/keys.rs"]
mod keys;
#[path = "terminal/pty.rs"]
mod pty;
#[path = "terminal/restore.rs"]
mod restore;
