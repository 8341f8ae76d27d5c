//! The exec port, from inside the guest: by /dev/port, where a port's number is an offset (mem(4)).

use crate::device::exec_port::{BELL, EXEC_PORT, SIGNATURE};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The ports, and where they are.
#[derive(Debug)]
pub struct Ports(File);

impl Ports {
    /// Opens them for this process alone.
    pub fn open() -> io::Result<Self> {
        File::options().read(true).write(true).open("/dev/port").map(Self)
    }

    /// Whether the device is there.
    pub fn is_there(&self) -> bool {
        let mut signature = [0; SIGNATURE.len()];
        self.0.read_exact_at(&mut signature, EXEC_PORT.into()).is_ok() && signature == SIGNATURE
    }

    /// Says in which page the channel's header is.
    pub fn set_frame(&self, frame: u32) -> io::Result<()> {
        self.0.write_all_at(&frame.to_le_bytes(), EXEC_PORT.into())
    }

    /// Rings the bell.
    pub fn ring(&self) {
        let _ = self.0.write_all_at(&[0], (EXEC_PORT + BELL).into()); // as it did before, for `set_frame`
    }
}
