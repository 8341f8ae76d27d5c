use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Write};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::device::virtio::net::tap::Tap;
use crate::device::virtio::testing::*;

const RX: u32 = RECEIVE;
const TX: u32 = TRANSMIT;
const MERGEABLE: u64 = VERSION_1 | 1 << VIRTIO_NET_F_MRG_RXBUF;
const TSO: u64 = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const END: u64 = RAM as u64;

/// A driver, the far end of its tap, and the count of dropped frames.
struct Bench {
    driver: Driver<Net>,
    wire: File,
    dropped: Arc<AtomicU64>,
}

thread_local! {
    /// How many taps were gone.
    static GONE: Cell<u32> = const { Cell::new(0) };
}

impl Bench {
    fn new(features: u64) -> Self {
        let mut bench = Self::without_driver();
        bench.driver.start(features);
        bench
    }

    fn without_driver() -> Self {
        // A socket that keeps messages apart behaves as a tap does.
        let flags = SockFlag::SOCK_NONBLOCK;
        let (ours, wire) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let net = Net::new(Tap::stand_in(ours.into()), MAC, Box::new(|| GONE.set(GONE.get() + 1)));
        let dropped = net.dropped().clone();
        Self { driver: Driver::new(net), wire: wire.into(), dropped }
    }

    /// A frame comes from the network.
    fn arrive(&mut self, frame: &[u8]) {
        self.wire.write_all(frame).unwrap();
        self.driver.run();
    }

    /// The guest gives a receive buffer with this number, which is its place too.
    fn give(&mut self, number: u16, len: u32) {
        self.driver.put_descriptor(rings(RX)[0] + u64::from(number) * 16, (place(number), len, WRITE, 0));
        self.driver.offer(RX, number);
        self.driver.notify(RX);
    }

    /// The guest sends a frame in one piece.
    fn send(&mut self, frame: &[u8]) {
        self.driver.put(BUFFERS, frame);
        self.driver.request(TX, &[(BUFFERS, frame.len() as u32)], &[]);
    }

    /// The next frame that the guest has sent.
    fn leaves(&mut self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 2 * LONGEST];
        let len = self.wire.read(&mut frame).ok()?;
        frame.truncate(len);
        Some(frame)
    }

    fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

fn place(number: u16) -> u64 {
    BUFFERS + u64::from(number) * 0x1000
}

/// A frame of `len` bytes behind a header that asks for nothing.
fn frame(len: usize) -> Vec<u8> {
    let content = (0..len).map(|index| (index * 7 + len) as u8);
    [0; HEADER].into_iter().chain(content).collect()
}

/// What the guest sees of a frame that came in `count` chains.
fn seen(mut frame: Vec<u8>, count: u8) -> Vec<u8> {
    frame[NUM_BUFFERS] = count;
    frame
}

#[test]
fn the_guest_finds_its_address_and_its_cable_plugged_in() {
    let bench = Bench::new(VERSION_1);
    let config: Vec<u8> = (0..3).flat_map(|word| bench.driver.read(CONFIG + word * 4).to_le_bytes()).collect();
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]);
}

#[test]
fn a_frame_comes_in_one_buffer() {
    let mut bench = Bench::new(VERSION_1);
    bench.give(3, 2000);
    bench.arrive(&frame(100));
    assert_eq!(bench.driver.used(RX), [(3, 112)]);
    assert_eq!(bench.driver.get(place(3), 112), seen(frame(100), 1));
    assert_eq!(bench.driver.interrupts(), 1);
}

#[test]
fn a_long_frame_comes_in_several_buffers() {
    let mut bench = Bench::new(MERGEABLE);
    (0..4).for_each(|number| bench.give(number, 50));
    bench.arrive(&frame(100));
    assert_eq!(bench.driver.used(RX), [(0, 50), (1, 50), (2, 12)]);
    let parts = [(0, 50), (1, 50), (2, 12)].map(|(number, len)| bench.driver.get(place(number), len));
    assert_eq!(parts.concat(), seen(frame(100), 3));
    bench.arrive(&frame(38)); // fits exactly
    assert_eq!(bench.driver.used(RX)[3], (3, 50));
    assert_eq!(bench.driver.get(place(3), 50), seen(frame(38), 1));
    assert_eq!(bench.dropped(), 0);
}

#[test]
fn a_driver_that_waits_for_a_buffer_in_the_middle_of_a_frame_is_interrupted() {
    for (event, interrupts) in [(0, 1), (1, 1), (2, 1), (3, 0), (u16::MAX, 0)] {
        let mut bench = Bench::new(MERGEABLE | EVENT_IDX);
        (0..3).for_each(|number| bench.give(number, 50));
        let used_event = GuestAddress(rings(RX)[1] + 4 + 2 * u64::from(SIZE));
        bench.driver.memory.write_obj(event, used_event).unwrap();
        bench.arrive(&frame(100));
        assert_eq!((bench.driver.used(RX).len(), bench.driver.interrupts()), (3, interrupts), "event {event}");
    }
}

#[test]
fn a_frame_that_is_longer_than_the_buffers_waits_for_more() {
    let mut bench = Bench::new(MERGEABLE);
    (0..2).for_each(|number| bench.give(number, 50));
    bench.arrive(&frame(200));
    bench.give(2, 50);
    assert_eq!(bench.driver.used(RX), []);
    (3..6).for_each(|number| bench.give(number, 50));
    let used = [(0, 50), (1, 50), (2, 50), (3, 50), (4, 12)];
    assert_eq!(bench.driver.used(RX), used);
    let parts = used.map(|(number, len)| bench.driver.get(place(number as u16), len as usize));
    assert_eq!(parts.concat(), seen(frame(200), 5));
    bench.arrive(&frame(20));
    assert_eq!(bench.driver.used(RX)[5], (5, 32));
    assert_eq!(bench.dropped(), 0);
}

#[test]
fn a_frame_that_is_longer_than_a_chain_is_dropped_and_counted() {
    let mut bench = Bench::new(VERSION_1);
    bench.give(0, 100);
    bench.give(1, 1000);
    bench.arrive(&frame(200));
    assert_eq!((bench.driver.used(RX), bench.dropped()), (vec![], 1));
    bench.arrive(&frame(88));
    assert_eq!(bench.driver.used(RX), [(0, 100)]);
    assert_eq!(bench.driver.get(place(0), 100), seen(frame(88), 1));
}

#[test]
fn frames_wait_while_the_guest_has_no_buffers() {
    let mut bench = Bench::new(VERSION_1);
    (20..23).for_each(|len| bench.arrive(&frame(len))); // and the loop comes to rest
    (0..3).for_each(|number| bench.give(number, 100));
    assert_eq!(bench.driver.used(RX), [(0, 32), (1, 33), (2, 34)]);

    let mut bench = Bench::without_driver();
    bench.arrive(&frame(20));
    bench.driver.start(VERSION_1);
    bench.give(0, 100);
    assert_eq!(bench.driver.used(RX), [(0, 32)]);
}

#[test]
fn a_receive_buffer_without_room_for_the_header_stops_its_queue_only() {
    for len in [0, 1, HEADER as u32 - 1] {
        let mut bench = Bench::new(MERGEABLE);
        bench.give(0, len);
        assert_eq!(bench.driver.read(STATUS), RUNNING | NEEDS_RESET);
        bench.arrive(&frame(100));
        assert_eq!(bench.driver.used(RX), []);
        bench.send(&frame(60));
        assert_eq!((bench.driver.used(TX), bench.leaves()), (vec![(0, 0)], Some(frame(60))));
    }
}

#[test]
fn a_frame_leaves_whatever_pieces_it_is_in() {
    let mut bench = Bench::new(VERSION_1 | TSO);
    bench.driver.put(BUFFERS, &frame(60));
    for cut in [1, 11, 12, 13, 71] {
        bench.driver.request(TX, &[(BUFFERS, cut), (BUFFERS + u64::from(cut), 72 - cut)], &[]);
        assert_eq!(bench.leaves(), Some(frame(60)), "cut at {cut}");
    }
    let mut long = frame(LONGEST - HEADER);
    long[..2].copy_from_slice(&[VIRTIO_NET_HDR_F_NEEDS_CSUM as u8, VIRTIO_NET_HDR_GSO_TCPV4 as u8]);
    bench.send(&long);
    assert!(bench.leaves() == Some(long));
    assert_eq!(bench.dropped(), 0);
}

#[test]
fn a_frame_that_makes_no_sense_is_dropped_and_its_buffers_come_back() {
    let mut bench = Bench::new(VERSION_1 | TSO);
    bench.driver.put(BUFFERS, &frame(60));
    let header = |flags: u32, gso: u32| {
        let mut frame = frame(60);
        frame[..2].copy_from_slice(&[flags as u8, gso as u8]);
        frame
    };
    let mut count = 0;
    let mut check = |bench: &mut Bench| {
        count += 1;
        assert_eq!((bench.driver.used(TX).len() as u64, bench.dropped()), (count, count));
        assert_eq!(bench.leaves(), None);
    };
    for len in [0, 1, HEADER, SHORTEST - 1, LONGEST + 1, 5 * LONGEST] {
        bench.driver.request(TX, &[(BUFFERS, len as u32)], &[]);
        check(&mut bench);
    }
    bench.driver.request(TX, &[], &[(BUFFERS, 72)]);
    check(&mut bench);
    bench.driver.request(TX, &[(0, END as u32), (0, END as u32)], &[]);
    check(&mut bench);
    for (flags, gso) in [
        (0, VIRTIO_NET_HDR_GSO_TCPV6),                          // was not negotiated
        (0, VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN), // nor was this
        (0, 3),
        (0, 0x7f),
    ] {
        bench.send(&header(flags, gso));
        check(&mut bench);
    }
    let mut bench = Bench::new(VERSION_1);
    bench.send(&header(VIRTIO_NET_HDR_F_NEEDS_CSUM, 0));
    assert_eq!((bench.leaves(), bench.dropped()), (None, 1));
    bench.send(&frame(60));
    assert_eq!(bench.leaves(), Some(frame(60)));
}

#[test]
fn a_tap_without_room_keeps_frames_waiting_and_none_is_lost() {
    let mut bench = Bench::new(VERSION_1);
    let mut sent = 0;
    while bench.driver.used(TX).len() == sent {
        sent += 1;
        assert!(sent < 10_000);
        bench.driver.put(BUFFERS, &frame(1000 + sent));
        bench.driver.request(TX, &[(BUFFERS, (HEADER + 1000 + sent) as u32)], &[]);
        if bench.driver.used(TX).len() < sent {
            break;
        }
    }
    bench.driver.run(); // comes to rest
    for number in 1..=sent {
        assert!(bench.leaves() == Some(frame(1000 + number)), "frame {number} of {sent}");
        bench.driver.run();
    }
    assert_eq!((bench.driver.used(TX).len(), bench.dropped()), (sent, 0));
}

#[test]
fn a_reset_forgets_buffers_and_frames() {
    let mut bench = Bench::new(MERGEABLE);
    (0..2).for_each(|number| bench.give(number, 50));
    bench.arrive(&frame(200)); // waits for more room
    bench.driver.write(STATUS, 0);
    bench.driver.put(place(0), &[0xee; 50]);
    bench.driver.start(VERSION_1);
    bench.arrive(&frame(20));
    bench.give(5, 100);
    assert_eq!(bench.driver.used(RX), [(5, 32)]);
    assert_eq!(bench.driver.get(place(0), 50), [0xee; 50]);
}

#[test]
fn a_tap_that_is_gone_is_a_cable_pulled() {
    let Bench { mut driver, wire, dropped } = Bench::new(VERSION_1);
    drop(wire);
    driver.run();
    assert_eq!(driver.read(CONFIG + 4) >> 16, 0);
    assert_eq!(driver.read(INTERRUPT_STATUS), 3);
    assert_eq!(GONE.get(), 1);
    driver.put(BUFFERS, &frame(60));
    driver.request(TX, &[(BUFFERS, 72)], &[]);
    assert_eq!((driver.used(TX), dropped.load(Ordering::Relaxed)), (vec![(0, 0)], 1));
    driver.request(RX, &[], &[(BUFFERS, 100)]);
    assert_eq!(driver.read(STATUS), RUNNING);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever a guest offers and the network sends, the device survives, the loop comes to rest, and a reset mends it.
    #[test]
    fn no_guest_breaks_a_network_interface(
        features in prop_oneof![Just(VERSION_1), Just(MERGEABLE), Just(MERGEABLE | TSO | EVENT_IDX)],
        steps in proptest::collection::vec((0..4, 0u16..SIZE, 0u32..70_000, any::<[u8; 16]>()), 1..60),
    ) {
        let mut bench = Bench::new(features);
        for (what, number, len, bytes) in steps {
            let [a, b] = [rings(RX), rings(TX)].map(|rings| rings[0] + u64::from(number) * 16);
            match what {
                0 => bench.give(number, len),
                1 => drop(bench.wire.write(&frame(len as usize % 10_000))), // it may be full
                2 => {
                    bench.driver.put(BUFFERS, &bytes);
                    bench.driver.put_descriptor(b, (BUFFERS, len, u16::from(bytes[15] & 1), (number + 1) % SIZE));
                    bench.driver.offer(TX, number);
                    bench.driver.notify(TX);
                }
                _ => {
                    let flags = u16::from(bytes[8] & 7);
                    let address = BUFFERS + u64::from(len) * u64::from(bytes[9] & 7);
                    bench.driver.put_descriptor(a, (address, len, flags, u16::from(bytes[10])));
                    bench.driver.put_descriptor(b, (address, len, flags, u16::from(bytes[11])));
                }
            }
            while bytes[0] & 1 == 0 && bench.leaves().is_some() {}
            bench.driver.run();
        }
        while bench.leaves().is_some() {
            bench.driver.run();
        }
        bench.driver.write(STATUS, 0);
        bench.driver.start(VERSION_1);
        bench.send(&frame(60));
        // What the network has sent meanwhile comes first.
        prop_assert_eq!(bench.leaves(), Some(frame(60)));
    }
}

/// Where chains have more pieces than one call takes, frames go into the first of them.
#[test]
fn chains_of_many_pieces_are_not_held_beyond_what_a_call_takes() {
    let mut bench = Bench::new(MERGEABLE | 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4 | INDIRECT_DESC);
    let table = |number: u16| BUFFERS + 0x4_0000 + u64::from(number) * 0x100;
    for number in 0..SIZE {
        for piece in 0..u64::from(SIZE) {
            let next = if piece + 1 < SIZE.into() { NEXT } else { 0 };
            let descriptor = (place(number) + piece * 2, 2, WRITE | next, piece as u16 + 1);
            bench.driver.put_descriptor(table(number) + piece * 16, descriptor);
        }
        let at = rings(RX)[0] + u64::from(number) * 16;
        bench.driver.put_descriptor(at, (table(number), 16 * u32::from(SIZE), INDIRECT, 0));
        bench.driver.offer(RX, number);
    }
    bench.driver.notify(RX);
    bench.arrive(&frame(300));
    let used = bench.driver.used(RX);
    assert_eq!(used.len(), 10);
    let parts: Vec<_> = used.iter().map(|&(head, len)| bench.driver.get(place(head as u16), len as usize)).collect();
    assert_eq!(parts.concat(), seen(frame(300), 10));
    let index: u16 = bench.driver.memory.read_obj(GuestAddress(rings(RX)[2] + 2)).unwrap();
    assert_eq!(index, 10);
}
