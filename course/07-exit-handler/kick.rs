//! The signal that gets a vCPU thread out of KVM_RUN.

use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::ptr::{null_mut, with_exposed_provenance_mut};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use libc::c_int;

const PAGE_SIZE: usize = 4096;

// ANCHOR: handler
thread_local! {
    /// The address of `immediate_exit` of the vCPU that this thread runs, or 0. It is constant at first and has no
    /// destructor, so a signal handler may access it at any time.
    static IMMEDIATE_EXIT: AtomicUsize = const { AtomicUsize::new(0) };
}

pub extern "C" fn sets_immediate_exit(_: c_int) {
    IMMEDIATE_EXIT.with(|word| match word.load(Ordering::Relaxed) {
        0 => {}
        // SAFETY: `RunPage` stores the address while the page is mapped, and this handler runs on the same thread.
        address => unsafe { AtomicU8::from_ptr(with_exposed_provenance_mut(address)) }.store(1, Ordering::Relaxed),
    });
}
// ANCHOR_END: handler

// ANCHOR: install
/// The signal: the first that libc and its thread library do not use themselves.
pub fn signal() -> c_int {
    libc::SIGRTMIN()
}

/// Installs the handler of the signal. Without SA_RESTART, the signal interrupts KVM_RUN with EINTR.
pub fn install(handler: extern "C" fn(c_int)) -> io::Result<()> {
    // SAFETY: all zeros are a valid `sigaction`: no flags, and an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    // SAFETY: both handlers only access an atomic.
    match unsafe { libc::sigaction(signal(), &raw const action, null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
// ANCHOR_END: install

// ANCHOR: page
/// While this value lives, the signal to the thread that created it ends the current or the next KVM_RUN of one vCPU.
pub struct RunPage(*mut libc::c_void);

impl RunPage {
    /// Maps the page a second time: `VcpuFd` owns its own mapping.
    pub fn new(vcpu: &VcpuFd) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel chooses the address, so no other memory is replaced.
        let page = unsafe { libc::mmap(null_mut(), PAGE_SIZE, protection, libc::MAP_SHARED, vcpu.as_raw_fd(), 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = page.expose_provenance() + offset_of!(kvm_run, immediate_exit);
        IMMEDIATE_EXIT.with(|word| word.store(address, Ordering::Relaxed));
        Ok(Self(page))
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.with(|word| word.store(0, Ordering::Relaxed));
        // SAFETY: this is the mapping of `new`, and its address was removed above.
        unsafe { libc::munmap(self.0, PAGE_SIZE) };
    }
}
// ANCHOR_END: page
