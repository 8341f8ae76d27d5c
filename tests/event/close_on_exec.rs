//! No descriptor of the event core reaches a program that is executed.

use std::collections::BTreeSet;

use kickvm::event::{Epoll, Poll, Signals, Timer};

use crate::common::*;

fn open_descriptors() -> BTreeSet<String> {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let fds: Vec<_> = fds.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    // Without the descriptor of the directory, which is closed by now.
    fds.into_iter().filter(|fd| std::fs::metadata(format!("/proc/self/fd/{fd}")).is_ok()).collect()
}

#[test]
fn every_descriptor_is_closed_on_exec() {
    in_own_process("close_on_exec::every_descriptor_is_closed_on_exec", || {
        let before = open_descriptors();
        let (poll, epoll, manager) = (Poll::new().unwrap(), Epoll::new().unwrap(), manager());
        let copies = (poll.registry().try_clone().unwrap(), epoll.try_clone().unwrap());
        let sources = (Timer::new().unwrap(), Signals::new(&[libc::SIGUSR2]).unwrap());
        let new: Vec<_> = open_descriptors().difference(&before).cloned().collect();
        assert_eq!(new.len(), 7 + usize::from(cfg!(feature = "remote_endpoint")));
        for fd in new {
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
            let flags = i32::from_str_radix(flags, 8).unwrap();
            assert_ne!(flags & libc::O_CLOEXEC, 0, "{fd}: {info}");
        }
        drop((poll, epoll, manager, copies, sources));
        assert_eq!(open_descriptors(), before, "all descriptors are closed on drop");
    });
}
