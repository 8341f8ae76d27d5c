//! The end of a VM in another process: [`VmCloser`].
//!
//! The last close of a VM's descriptor takes 14 to 80 ms: it waits for grace periods of KVM and of the MMU notifiers
//! (`kvm_destroy_vm` in virt/kvm/kvm_main.c). No result of a run depends on that, so a process with a copy of the
//! descriptor waits instead.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsRawFd;

use nix::sys::wait::waitpid;

use super::async_io::close_all_but;
use super::fork::fork;

/// A process `kickvm-close` that has a copy of a VM's descriptor until this value is dropped.
#[derive(Debug)]
pub struct VmCloser {
    _open: PipeWriter,
}

impl VmCloser {
    /// Starts the process. The owner of the VM drops the VM, then this value.
    ///
    /// # Errors
    ///
    /// The host has no more descriptors or processes.
    pub fn start(vm: &impl AsRawFd) -> io::Result<Self> {
        let (end_of_file, open) = io::pipe()?;
        let mut kept = [vm.as_raw_fd(), end_of_file.as_raw_fd()];
        kept.sort_unstable();
        let start_closer = || {
            // SAFETY: the descriptors of this process have no other owner. The name is a static. Both processes make
            // only system calls.
            unsafe {
                close_all_but(&kept);
                libc::prctl(libc::PR_SET_NAME, c"kickvm-close".as_ptr());
                libc::setsid(); // the process group of the run ends with the run
                let _ = fork(|| wait_for(&end_of_file));
            }
        };
        // SAFETY: as above.
        let parent = unsafe { fork(start_closer) }?;
        // From here on the closer's parent is init, so no caller has to wait for the closer.
        let _ = waitpid(parent, None); // fails if SIGCHLD is ignored, but waits
        Ok(Self { _open: open })
    }
}

fn wait_for(end_of_file: &PipeReader) {
    let mut byte = 0u8;
    // SAFETY: the buffer is a live local of one byte.
    unsafe { libc::read(end_of_file.as_raw_fd(), (&raw mut byte).cast(), 1) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::time::{Duration, Instant};

    #[test]
    fn the_descriptor_is_open_until_the_closer_is_dropped() {
        let (mut reader, writer) = io::pipe().unwrap();
        let closer = VmCloser::start(&writer).unwrap();
        drop(writer);
        let soon = Instant::now() + Duration::from_millis(50);
        assert!(!super::super::async_io::wait_for(&reader, libc::POLLIN, soon), "the copy is open");
        drop(closer);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }
}
