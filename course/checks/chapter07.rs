use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::null_mut;
use std::sync::atomic::Ordering;
use std::thread;

use kvm_bindings::kvm_run;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::check;
use super::machine::{Machine, guest};
use crate::work::{e07a, e07b, e07c};

guest!(spins, "2: jmp 2b",);
check!(e07a needs kvm, {
    extern "C" fn handler(number: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        e07a::on_kick(number);
    }
    register_signal_handler(SIGRTMIN(), handler).unwrap();
    // SAFETY: the signal has a handler.
    let kick = || unsafe { libc::raise(SIGRTMIN()) };
    kick(); // this thread runs no vCPU

    let mut machine = Machine::new(&spins).unwrap();
    let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, machine.vcpu.as_raw_fd());
    // SAFETY: the kernel chooses the address. The mapping is never removed.
    let page = unsafe { libc::mmap(null_mut(), 4096, access, libc::MAP_SHARED, fd, 0) };
    assert_ne!(page, libc::MAP_FAILED);
    let address = page.expose_provenance() + offset_of!(kvm_run, immediate_exit);
    e07a::IMMEDIATE_EXIT.with(|word| word.store(address, Ordering::Relaxed));
    kick();
    let result = machine.vcpu.run().map(|exit| format!("{exit:?}"));
    assert_eq!(result.map_err(|error| error.errno()), Err(libc::EINTR));
});

check!(e07b, {
    for panics in [false, true] {
        let exit_event = EventFd::new(EFD_NONBLOCK).unwrap();
        let event = exit_event.try_clone().unwrap();
        let body = move || {
            if panics {
                resume_unwind(Box::new("intended"))
            }
        };
        let result = thread::spawn(move || e07b::vcpu_thread(body, event)).join();
        assert_eq!(result.is_err(), panics);
        let kicks = exit_event.read().map_err(|error| error.kind());
        assert_eq!(kicks, Ok(1), "kicks of a thread that {}", if panics { "panicked" } else { "returned" });
    }
});

check!(e07c, {
    let reason = e07c::Reason::default();
    assert_eq!(reason.get(), None);
    reason.set("the guest powered off");
    reason.set("timeout");
    assert_eq!(reason.get().as_deref(), Some("the guest powered off"));

    let reason = e07c::Reason::default();
    let poison = || reason.with(|_| resume_unwind(Box::new("intended")));
    catch_unwind(AssertUnwindSafe(poison)).unwrap_err();
    reason.set("a thread panicked");
    reason.set("timeout");
    assert_eq!(reason.get().as_deref(), Some("a thread panicked"));
});
