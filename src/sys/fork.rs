//! Child processes that make only system calls: [`fork`].

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::unistd::{self, ForkResult, Pid};

/// Starts a process that executes `run`, with all signals blocked: a key such as Ctrl-C is for the parent, which then
/// lets the child end.
///
/// # Errors
///
/// The error of fork(2).
///
/// # Safety
///
/// `run` makes only system calls, as another thread may have held any lock.
pub unsafe fn fork(run: impl FnOnce()) -> nix::Result<Pid> {
    let mut mask = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut mask))?;
    // SAFETY: the child only executes `run` and ends.
    let forked = unsafe { unistd::fork() };
    if let Ok(ForkResult::Child) = forked {
        run();
        // SAFETY: no destructor of the parent runs in the child.
        unsafe { libc::_exit(0) };
    }
    let unmasked = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None);
    match forked? {
        ForkResult::Parent { child } => unmasked.map(|()| child),
        ForkResult::Child => unreachable!("the child has ended"),
    }
}
