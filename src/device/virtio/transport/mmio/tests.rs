#![expect(clippy::cast_possible_truncation, reason = "indices are small, and the low half of the features is meant")]

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use crate::device::virtio::balloon::Balloon;
use crate::device::virtio::rng::Rng;
use crate::device::virtio::testing::*;

const END: u64 = RAM as u64;

fn rng() -> Driver<Rng> {
    Driver::running(Rng::default(), VERSION_1)
}

/// Asserts that the queue has stopped and that its driver was notified.
#[track_caller]
fn has_stopped(driver: &Driver<Rng>) {
    assert_eq!(driver.used(0), []);
    assert_eq!(driver.read(STATUS), RUNNING | NEEDS_RESET);
    assert_eq!(driver.read(INTERRUPT_STATUS), 3);
    assert!(driver.interrupts() > 0);
    driver.write(QUEUE_SEL, 0);
    assert_eq!(driver.read(QUEUE_READY), 0);
}

/// That a reset brings the device back.
#[track_caller]
fn works_again(driver: &mut Driver<Rng>) {
    driver.write(STATUS, 0);
    assert_eq!((driver.read(STATUS), driver.read(INTERRUPT_STATUS)), (0, 1));
    driver.start(VERSION_1);
    driver.interrupts();
    driver.request(0, &[], &[(BUFFERS, 64)]);
    assert_eq!(driver.used(0), [(0, 64)]);
    assert_eq!(driver.interrupts(), 1);
}

#[test]
fn a_driver_finds_the_device_and_gets_its_answer() {
    let mut driver = rng();
    assert_eq!([0, 4, 8].map(|at| driver.read(at)), [0x7472_6976, 2, 4]);
    assert_eq!(driver.interrupts(), 0);
    driver.request(0, &[], &[(BUFFERS, 10), (BUFFERS + 100, 6)]);
    assert_eq!(driver.used(0), [(0, 16)]);
    assert_eq!(driver.interrupts(), 1);
    let bytes = driver.get(BUFFERS, 106);
    assert_ne!((&bytes[..10], &bytes[100..]), (&[0; 10][..], &[0; 6][..]));
    assert_eq!(bytes[10..100], [0; 90]);
    works_again(&mut driver);
}

#[test]
fn features_are_offered_in_halves_and_only_those_are_accepted() {
    let driver = Driver::new(Rng::default());
    let offered = [0, 1, 2, u32::MAX].map(|half| {
        driver.write(DEVICE_FEATURES_SEL, half);
        driver.read(DEVICE_FEATURES)
    });
    assert_eq!(offered, [(EVENT_IDX | INDIRECT_DESC) as u32, 1, 0, 0]);
    for (features, accepted) in
        [(VERSION_1, true), (VERSION_1 | EVENT_IDX, true), (EVENT_IDX, false), (VERSION_1 | 1, false), (0, false)]
    {
        driver.write(STATUS, 0);
        driver.negotiate(features);
        assert_eq!(driver.read(STATUS) & FEATURES_OK != 0, accepted, "{features:#x}");
        driver.write(STATUS, RUNNING);
        assert_eq!(driver.read(STATUS) & DRIVER_OK != 0, accepted, "{features:#x}");
    }
}

#[test]
fn requests_are_not_looked_at_before_the_driver_is_ready() {
    let mut driver = Driver::new(Rng::default());
    driver.negotiate(VERSION_1);
    driver.set_up(0, SIZE, rings(0));
    driver.request(0, &[], &[(BUFFERS, 64)]);
    assert_eq!(driver.used(0), []);
    driver.write(STATUS, RUNNING);
    driver.run();
    assert_eq!(driver.used(0), [(0, 64)], "what was there already is served then");
}

#[test]
fn a_queue_whose_rings_make_no_sense_does_not_become_ready() {
    let good = rings(0);
    let [a, b, c] = good;
    for (size, rings) in [
        (0, good),
        (3, good),
        (SIZE * 8, good), // more than the device allows
        (SIZE, [a + 8, b, c]),
        (SIZE, [a, b + 1, c]),
        (SIZE, [a, b, c + 2]),
        (SIZE, [END, b, c]),
        (SIZE, [a, END - 2, c]),
        (SIZE, [a, b, END - 4]),
        (SIZE, [u64::MAX - 15, b, c]),
        (SIZE, [a, u64::MAX - 1, c]),
        (SIZE, [a, b, u64::MAX - 3]),
        (SIZE, [a, a, c]),
        (SIZE, [a, b, b]),
        (SIZE, [a, b, a + 16 * 16 - 4]),
    ] {
        let mut driver = Driver::new(Rng::default());
        driver.negotiate(VERSION_1);
        driver.set_up(0, size, rings);
        assert_eq!(driver.read(QUEUE_READY), 0, "{size} {rings:x?}");
        assert_ne!(driver.read(STATUS) & NEEDS_RESET, 0, "{size} {rings:x?}");
        driver.write(STATUS, RUNNING);
        driver.notify(0);
        works_again(&mut driver);
    }
}

#[test]
fn rings_do_not_move_while_the_device_runs() {
    let mut driver = rng();
    driver.set_up(0, SIZE, rings(5));
    driver.write(QUEUE_READY, 0);
    driver.write(DRIVER_FEATURES, 0);
    driver.request(0, &[], &[(BUFFERS, 64)]);
    assert_eq!(driver.used(0), [(0, 64)]);
}

#[test]
fn registers_that_are_not_there_are_nothing() {
    let mut driver = rng();
    for queue in [1, 2, 0xffff, u32::MAX] {
        driver.write(QUEUE_SEL, queue);
        assert_eq!((driver.read(QUEUE_NUM_MAX), driver.read(QUEUE_READY)), (0, 0));
        driver.set_up(queue, SIZE, rings(1));
        driver.notify(queue);
    }
    for offset in (0..0x100).filter(|offset| ![STATUS, QUEUE_SEL, QUEUE_READY].contains(offset)) {
        driver.write_bytes(offset, &[0xff]);
        driver.write_bytes(offset, &[0xff; 2]);
        driver.write_bytes(offset, &[0xff; 8]);
    }
    driver.write(CONFIG, 7);
    driver.write(0xffc, 7);
    assert_eq!([0xb0, 0xb4, 0xb8, 0xbc].map(|at| driver.read(at)), [u32::MAX; 4], "no shared memory");
    driver.request(0, &[], &[(BUFFERS, 64)]);
    assert_eq!(driver.used(0), [(0, 64)]);
}

#[test]
fn a_chain_that_breaks_the_rules_stops_its_queue_until_a_reset() {
    let table = BUFFERS + 0x1000;
    let one = (BUFFERS, 1, WRITE | NEXT, 0);
    let chains: [(&str, Vec<Descriptor>); 12] = [
        ("loops", vec![one]),
        ("loops by two", vec![(BUFFERS, 1, WRITE | NEXT, 1), one]),
        ("leaves the table", vec![(BUFFERS, 1, WRITE | NEXT, SIZE)]),
        ("outside RAM", vec![(END, 1, WRITE, 0)]),
        ("across the end of RAM", vec![(END - 1, 2, WRITE, 0)]),
        ("across the end of the address space", vec![(u64::MAX, 2, WRITE, 0)]),
        ("reads behind writes", vec![(BUFFERS, 1, WRITE | NEXT, 1), (BUFFERS, 1, 0, 0)]),
        ("more than 4 GiB", (0..SIZE).map(|n| (0, u32::MAX, WRITE | NEXT, n + 1)).collect()),
        ("indirect of an odd length", vec![(table, 17, INDIRECT, 0)]),
        ("indirect outside RAM", vec![(END, 16, INDIRECT, 0)]),
        ("indirect longer than the queue", vec![(table, 16 * u32::from(SIZE + 1), INDIRECT, 0)]),
        ("indirect in indirect", vec![(table + 0x800, 16, INDIRECT, 0)]),
    ];
    for (what, chain) in chains {
        println!("{what}");
        let mut driver = rng();
        for n in 0..=u64::from(SIZE) {
            driver.put_descriptor(table + n * 16, (BUFFERS, 1, WRITE | NEXT, n as u16 + 1));
        }
        driver.put_descriptor(table + 0x800, (table, 16, INDIRECT, 0));
        driver.send(0, &chain);
        has_stopped(&driver);
        driver.notify(0);
        assert_eq!(driver.used(0), []);
        driver.write(INTERRUPT_ACK, 3);
        assert_eq!(driver.read(INTERRUPT_STATUS), 1);
        works_again(&mut driver);
    }
}

#[test]
fn an_available_index_that_jumps_stops_its_queue() {
    let mut driver = rng();
    driver.memory.write_obj(SIZE + 1, GuestAddress(rings(0)[1] + 2)).unwrap();
    driver.notify(0);
    has_stopped(&driver);
    works_again(&mut driver);
}

#[test]
fn a_stopped_queue_leaves_the_others_going() {
    let mut driver = Driver::running(Balloon::new(0), VERSION_1);
    driver.send(0, &[(END, 4, 0, 0)]);
    assert_eq!(driver.read(STATUS), RUNNING | NEEDS_RESET);
    driver.request(1, &[(BUFFERS, 4)], &[]);
    assert_eq!((driver.used(0), driver.used(1)), (vec![], vec![(0, 0)]));
}

#[test]
fn an_indirect_chain_is_as_good_as_any() {
    let mut driver = Driver::running(Rng::default(), VERSION_1 | INDIRECT_DESC);
    let table = BUFFERS + 0x1001; // needs no alignment
    for n in 0..u64::from(SIZE) {
        let next = if n + 1 < SIZE.into() { NEXT } else { 0 };
        driver.put_descriptor(table + n * 16, (BUFFERS + n, 1, WRITE | next, n as u16 + 1));
    }
    driver.send(0, &[(table, 16 * u32::from(SIZE), INDIRECT, 0)]);
    assert_eq!(driver.used(0), [(0, SIZE.into())]);
}

#[test]
fn a_driver_with_event_indices_is_interrupted_when_it_wants_to_be() {
    let mut driver = Driver::running(Rng::default(), VERSION_1 | EVENT_IDX);
    let [_, available, used] = rings(0);
    let used_event = |index: u16| (index, GuestAddress(available + 4 + u64::from(SIZE) * 2));
    let (value, at) = used_event(3);
    driver.memory.write_obj(value, at).unwrap();
    let mut interrupts = Vec::new();
    for _ in 0..6 {
        driver.request(0, &[], &[(BUFFERS, 1)]);
        interrupts.push(driver.interrupts());
    }
    assert_eq!(interrupts, [0, 0, 0, 1, 0, 0]);
    let avail_event: u16 = driver.memory.read_obj(GuestAddress(used + 4 + u64::from(SIZE) * 8)).unwrap();
    assert_eq!(avail_event, 6, "the doorbell is to ring for the seventh");
}

#[test]
fn requests_that_are_taken_together_are_one_interrupt() {
    let mut driver = rng();
    driver.put_descriptor(rings(0)[0], (BUFFERS, 8, WRITE, 0));
    (0..SIZE).for_each(|_| driver.offer(0, 0));
    driver.notify(0);
    assert_eq!((driver.used(0).len(), driver.interrupts()), (SIZE.into(), 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A guest may write anything to registers and memory: the device does not panic, the loop becomes idle, and the
    /// device works after a reset.
    #[test]
    fn no_guest_breaks_the_transport(
        memory in proptest::collection::vec(any::<u8>(), 0x1000),
        writes in proptest::collection::vec((0u64..0x120, prop_oneof![0u32..0x40, any::<u32>()]), 0..60),
        features in prop_oneof![Just(VERSION_1), Just(VERSION_1 | EVENT_IDX), any::<u64>()],
        status in prop_oneof![Just(RUNNING), any::<u32>()],
    ) {
        let mut driver = Driver::new(Rng::default());
        driver.negotiate(features);
        driver.put(rings(0)[0], &memory);
        driver.set_up(0, SIZE, rings(0));
        driver.write(STATUS, status);
        for (offset, value) in writes {
            driver.write(offset & !3, value);
            driver.run();
        }
        driver.notify(0);
        works_again(&mut driver);
    }

    /// The same with rings that are almost right, so that more of them gets past the first check.
    #[test]
    fn no_ring_breaks_a_queue(
        table in proptest::collection::vec((0u64..0x2000, 0u32..0x2000, 0u16..8, 0u16..SIZE + 1), SIZE as usize),
        heads in proptest::collection::vec(0u16..SIZE + 1, 1..40),
        inflate: bool,
    ) {
        let mut driver = Driver::running(Balloon::new(0), VERSION_1);
        for (n, (address, len, flags, next)) in (0..).zip(table) {
            // Most addresses are those of buffers, the first few those of the table itself.
            let address = if address < 0x100 { rings(0)[0] + address } else { BUFFERS + address };
            driver.put_descriptor(rings(0)[0] + n * 16, (address, len, flags, next));
            driver.put_descriptor(rings(2)[0] + n * 16, (address, len, flags, next));
        }
        let queue = if inflate { 0 } else { 2 };
        for head in heads {
            driver.offer(queue, head);
            driver.notify(queue);
        }
        driver.request(1, &[(BUFFERS, 4)], &[]);
        prop_assert_eq!(driver.used(1), [(0, 0)]);
    }
}
