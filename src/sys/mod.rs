//! Wrappers around system calls and KVM memory that need `unsafe`, one subject a file.
//!
//! This floor imports nothing of the crate but `event`.

pub(crate) mod async_io;
pub(crate) mod coalesced_port;
pub(crate) mod flock;
mod io_process;
pub(crate) mod mapping;
pub mod os_error;
pub(crate) mod port_io;
pub mod rlimit;
pub(crate) mod tap;
mod uring;
pub(crate) mod vectored_io;
pub(crate) mod wait;
pub mod winsize;
