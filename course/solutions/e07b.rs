//! Solution of exercise 07b: the guard that is missing.

use vmm_sys_util::eventfd::EventFd;

/// The code of a vCPU thread: runs the vCPU, then kicks the event loop, however `body` ends.
pub fn vcpu_thread(body: impl FnOnce(), exit_event: EventFd) {
    let _guard = Guard(exit_event);
    body();
}

struct Guard(EventFd);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.write(1);
    }
}
