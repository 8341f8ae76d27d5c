//! Ten thousand subscribers.

use kickvm::event::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::EventFd;

use crate::common::*;

struct Counter(EventFd, u32);

impl MutEventSubscriber for Counter {
    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        self.1 += 1;
    }
}

#[test]
fn ten_thousand_subscribers_are_added_called_and_removed() {
    in_own_process("many::ten_thousand_subscribers_are_added_called_and_removed", || {
        let limit = libc::rlimit { rlim_cur: 10_100, rlim_max: 10_100 };
        // SAFETY: `limit` is a live local that the kernel only reads.
        let raised = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } == 0;
        assert!(raised, "this test needs 10,100 open files; raise the hard limit (ulimit -Hn)");

        let mut manager = EventManager::<Counter>::new().unwrap();
        let mut ids: Vec<_> = (0..10_000).map(|_| manager.add_subscriber(Counter(ready_eventfd(), 0))).collect();
        // 40 runs of 256 events reach each subscriber at least once.
        let delivered: usize = (0..40).map(|_| manager.run_with_timeout(0).unwrap()).sum();
        assert_eq!(delivered, 40 * 256);
        assert!(ids.iter().all(|&id| (1..=2).contains(&manager.subscriber_mut(id).unwrap().1)));

        // Seats are reused, identifiers are not.
        let removed: Vec<_> = ids.drain(..5_000).collect();
        for &id in &removed {
            manager.remove_subscriber(id).unwrap();
        }
        ids.extend((0..5_000).map(|_| manager.add_subscriber(Counter(idle_eventfd(), 0))));
        assert!(removed.iter().all(|id| manager.subscriber_mut(*id).is_err() && !ids.contains(id)));
        let delivered: usize = (0..20).map(|_| manager.run_with_timeout(0).unwrap()).sum();
        assert_eq!(delivered, 20 * 256);
        for id in ids {
            manager.remove_subscriber(id).unwrap();
        }
        assert_eq!(manager.run_with_timeout(0), Ok(0));
    });
}
