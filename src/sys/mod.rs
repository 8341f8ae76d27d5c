//! Wrappers of system calls and shared memory, one subject a file. Most contain `unsafe` code.
//!
//! The rest of the crate's `unsafe` code is in `event::{epoll, sys}`, `memory` and two files of `vcpu`;
//! `doctor::embedded_guests` declares symbols. This floor may import `event`.
//!
//! ```
//! use kickvm::sys::os_error;
//!
//! let error = std::fs::File::open("/nonexistent").unwrap_err();
//! assert_eq!(error.to_string(), "No such file or directory (os error 2)");
//! assert_eq!(os_error::describe(&error), "No such file or directory");
//! ```

pub(crate) mod async_io;
pub(crate) mod coalesced_port;
pub(crate) mod execute;
pub(crate) mod file_writer;
mod fork;
pub(crate) mod limited_wait;
pub(crate) mod mapping;
pub mod os_error;
pub(crate) mod port_io;
pub(crate) mod replace_descriptor;
pub mod rlimit;
pub(crate) mod shared_process;
pub(crate) mod tap;
pub(crate) mod unread;
pub(crate) mod vectored_io;
pub(crate) mod vm_close;
pub(crate) mod wait;
pub mod winsize;
pub(crate) mod xattr;
