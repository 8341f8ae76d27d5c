//! Timers are descriptors.

use std::time::{Duration, Instant};

use kickvm::event::{EventSet, Poll, Timer};

#[test]
fn a_timer_expires_once_or_periodically_or_not_at_all() {
    let timer = Timer::new().unwrap();
    let mut poll = Poll::new().unwrap();
    poll.registry().register(&timer, 1, EventSet::IN).unwrap();
    let mut events = Vec::with_capacity(1);

    let start = Instant::now();
    timer.arm(Duration::from_millis(5)).unwrap();
    poll.poll(&mut events, None).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(5));
    assert_eq!(timer.read().unwrap(), Some(1));
    assert_eq!(timer.read().unwrap(), None);

    timer.arm_periodic(Duration::from_millis(1)).unwrap();
    for _ in 0..3 {
        poll.poll(&mut events, None).unwrap();
        assert!(timer.read().unwrap().unwrap() >= 1);
    }

    timer.disarm().unwrap();
    assert_eq!(timer.read().unwrap(), None);
    poll.poll(&mut events, Some(Duration::from_millis(5))).unwrap();
    assert!(events.is_empty());
}

#[test]
fn a_delay_of_zero_expires_at_once_and_the_longest_one_does_not() {
    let timer = Timer::new().unwrap();
    let mut poll = Poll::new().unwrap();
    poll.registry().register(&timer, 1, EventSet::IN).unwrap();
    let mut events = Vec::with_capacity(1);
    timer.arm(Duration::ZERO).unwrap();
    poll.poll(&mut events, None).unwrap();
    assert_eq!(timer.read().unwrap(), Some(1));
    timer.arm(Duration::MAX).unwrap();
    poll.poll(&mut events, Some(Duration::from_millis(2))).unwrap();
    assert!(events.is_empty());
}
