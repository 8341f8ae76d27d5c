//! The end of a VM in another process: [`VmCloser`].
//!
//! The last close of a VM's descriptor takes 14 to 80 ms: it waits for grace periods of KVM and of the MMU notifiers
//! (`kvm_destroy_vm` in virt/kvm/kvm_main.c). No result of a run depends on that, so a process with a copy of the
//! descriptor waits instead.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::wait::waitpid;

use super::async_io::close_all_but;
use super::fork::fork;
use super::limited_wait::wait_for;

/// The longest time to wait for the process.
const MAX_START: Duration = Duration::from_millis(100);

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
        let (started, closed) = io::pipe()?;
        let mut kept = [vm.as_raw_fd(), end_of_file.as_raw_fd(), closed.as_raw_fd()];
        kept.sort_unstable();
        let start_closer = || {
            // SAFETY: the descriptors of this process have no other owner. The name is a static. Both processes make
            // only system calls.
            unsafe {
                close_all_but(&kept); // may block on a file whose server does not answer
                libc::prctl(libc::PR_SET_NAME, c"kickvm-close".as_ptr());
                libc::setsid(); // the process group of the run ends with the run
                let _ = fork(|| wait_for_end_of_file(&end_of_file, &closed));
            }
        };
        // SAFETY: as above.
        let parent = unsafe { fork(start_closer) }?;
        drop(closed);
        if wait_for(&started, libc::POLLIN, Instant::now() + MAX_START) {
            // From here on the closer's parent is init, so no caller has to wait for the closer.
            let _ = waitpid(parent, None); // fails if SIGCHLD is ignored, but waits
        }
        Ok(Self { _open: open })
    }
}

fn wait_for_end_of_file(pipe: &PipeReader, closed: &PipeWriter) {
    let mut byte = 0u8;
    // SAFETY: the descriptors of this process have no other owner. The buffer is a live local of one byte.
    unsafe {
        libc::close(closed.as_raw_fd());
        libc::read(pipe.as_raw_fd(), (&raw mut byte).cast(), 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_descriptor_is_open_until_the_closer_is_dropped() {
        let (mut reader, writer) = io::pipe().unwrap();
        let closer = VmCloser::start(&writer).unwrap();
        drop(writer);
        let soon = Instant::now() + Duration::from_millis(50);
        assert!(!wait_for(&reader, libc::POLLIN, soon), "the copy is open");
        drop(closer);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }
}
