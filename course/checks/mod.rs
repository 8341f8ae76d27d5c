//! What a solved exercise does. `tests/course.rs` checks the solutions; the test `exercise` checks the reader's work.

use std::panic::catch_unwind;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use crate::can_run::can_run;
use crate::has_kvm::has_kvm;

#[path = "../05-epoll/epoll.rs"]
mod epoll;
#[path = "../02-long-mode/machine.rs"]
mod machine;

mod chapter01;
mod chapter02;
mod chapter03;
mod chapter04;
mod chapter05;
mod chapter06;
mod chapter07;
mod chapter08;
mod chapter09;
mod chapter10;

/// A starter may loop without end.
const LIMIT: Duration = Duration::from_secs(10);

/// The test of one exercise. `make exercise` runs it on the reader's work, and `make test` on the solution. There it
/// also checks that the starter fails.
macro_rules! check {
    ($name:ident $(needs $kvm:ident)?, $body:block) => {
        #[test]
        fn $name() {
            let needs_kvm = [$(stringify!($kvm))?].contains(&"kvm");
            super::judge(stringify!($name), needs_kvm, || $body);
        }
    };
}
use check;

fn judge(name: &str, needs_kvm: bool, check: fn()) {
    if needs_kvm && !can_run(name, has_kvm()) {
        return;
    }
    let (result, results) = channel();
    thread::spawn(move || result.send(catch_unwind(check).is_ok()));
    let passed = results.recv_timeout(LIMIT);
    if crate::ARE_STARTERS && std::env::var_os("KICKVM_EXERCISE").is_none() {
        assert_ne!(passed, Ok(true), "the starter of {name} is a solution");
    } else {
        let passed = passed.unwrap_or_else(|_| panic!("{name} does not end"));
        assert!(passed, "{name} is not solved, see above");
    }
}
