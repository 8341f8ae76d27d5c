//! Socket device (virtio 1.3, 5.10): streams between programs in the guest and Unix sockets on the host.
//!
//! ```text
//!   host program ── connects to PATH, writes "CONNECT 1024\n", reads "OK 1073741824\n" ──▶ guest program, port 1024
//!   guest program ── connects to CID 2, port 52 ──▶ host program that listens at PATH_52
//! ```
//!
//! This is the protocol of Firecracker, so existing host programs work.

mod connection;
mod listener;
mod muxer;
mod packet;

pub use listener::UdsListener;
pub use muxer::Vsock;

#[cfg(test)]
mod tests;
