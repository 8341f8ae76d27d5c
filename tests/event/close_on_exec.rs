//! No descriptor of the event core reaches a program that is executed.

use std::collections::BTreeSet;

use kickvm::event::{Epoll, Poll, Signals, Timer};

use crate::common::*;

fn open() -> BTreeSet<String> {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let fds: Vec<_> = fds.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    // Without the one that was just used for looking.
    fds.into_iter().filter(|fd| std::fs::metadata(format!("/proc/self/fd/{fd}")).is_ok()).collect()
}

#[test]
fn every_descriptor_is_closed_on_exec() {
    in_own_process("close_on_exec::every_descriptor_is_closed_on_exec", || {
        let before = open();
        let (poll, epoll, manager) = (Poll::new().unwrap(), Epoll::new().unwrap(), manager());
        let copies = (poll.registry().try_clone().unwrap(), epoll.try_clone().unwrap());
        let sources = (Timer::new().unwrap(), Signals::new(&[libc::SIGUSR2]).unwrap());
        let new: Vec<_> = open().difference(&before).cloned().collect();
        assert_eq!(new.len(), 7 + usize::from(cfg!(feature = "remote_endpoint")));
        for fd in new {
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
            let flags = i32::from_str_radix(flags, 8).unwrap();
            assert_ne!(flags & libc::O_CLOEXEC, 0, "{fd}: {info}");
        }
        drop((poll, epoll, manager, copies, sources));
        assert_eq!(open(), before, "nothing stays open");
    });
}
