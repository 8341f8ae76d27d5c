//! Runs that are stopped from outside: by a timeout or a signal.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

#[test]
fn a_timeout_on_a_running_linux_is_124() {
    // A boot takes unknown time here, but less than one of these.
    for seconds in [10, 30, 90] {
        let guest = linux!(BzImage).options(&["--timeout", &format!("{seconds}s")]).job("sleep 1000");
        let greeting = guest.greeting();
        let ended = guest.run();
        ended.assert_code(124);
        let lines: Vec<_> = ended.stderr.lines().collect();
        assert_eq!((lines.len(), lines[0]), (2, format!("kickvm: the timeout of {seconds}s expired").as_str()));
        assert!(lines[1].starts_with("kickvm: vCPU 0 was at 0xffff"), "{}", lines[1]);
        if ended.stdout.contains(&greeting) {
            return;
        }
    }
    panic!("in 90 s the guest did not boot");
}

#[test]
fn sigterm_ends_4_cpus_that_spin_with_143() {
    let spin = "for cpu in 0 1 2 3; do taskset -c $cpu sh -c 'echo spin $0; while :; do :; done' $cpu & done; wait";
    let running = linux!(BzImage).cpus(4).job(spin).start();
    (0..4).for_each(|cpu| running.wait_for_line(&format!("spin {cpu}")));
    let pid = i32::try_from(running.child.id()).expect("a process ID is small");
    let start = Instant::now();
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("cannot send a signal");
    running.finish().assert(143, &["kickvm: stopped by SIGTERM"]);
    assert!(start.elapsed() < Duration::from_secs(20), "it took {:?}", start.elapsed());
}
