#![expect(clippy::cast_possible_truncation, reason = "lengths and flags are small, and content wraps to bytes")]

use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Write};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::device::virtio::net::tap::Tap;
use crate::device::virtio::testing::*;

const MERGEABLE: u64 = VERSION_1 | 1 << VIRTIO_NET_F_MRG_RXBUF;
const TSO: u64 = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const END: u64 = RAM as u64;

/// A driver, the other end of its tap, and the number of dropped frames.
struct Fixture {
    driver: Driver<Net>,
    wire: File,
    dropped: Arc<AtomicU64>,
}

thread_local! {
    /// Number of taps reported as deleted.
    static DELETED_TAPS: Cell<u32> = const { Cell::new(0) };
}

impl Fixture {
    fn new(features: u64) -> Self {
        let mut fixture = Self::without_driver();
        fixture.driver.start(features);
        fixture
    }

    fn without_driver() -> Self {
        // A SEQPACKET socket transfers whole messages, as a tap does.
        let flags = SockFlag::SOCK_NONBLOCK;
        let (ours, wire) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let net = Net::new(Tap::from_file(ours.into()), MAC, Box::new(|| DELETED_TAPS.set(DELETED_TAPS.get() + 1)));
        let dropped = net.dropped().clone();
        Self { driver: Driver::new(net), wire: wire.into(), dropped }
    }

    /// Receives a frame from the network.
    fn receive(&mut self, frame: &[u8]) {
        self.wire.write_all(frame).unwrap();
        self.driver.run();
    }

    /// Posts receive buffer `number`, which is at [`address`]`(number)`.
    fn post(&mut self, number: u16, len: u32) {
        self.driver.put_descriptor(rings(RX)[0] + u64::from(number) * 16, (address(number), len, WRITE, 0));
        self.driver.offer(RX, number);
        self.driver.notify(RX);
    }

    /// Sends a frame in one buffer.
    fn send(&mut self, frame: &[u8]) {
        self.driver.put(BUFFERS, frame);
        self.driver.request(TX, &[(BUFFERS, frame.len() as u32)], &[]);
    }

    /// Returns the next frame that the guest has sent.
    fn next_sent(&mut self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 2 * MAX_FRAME];
        let len = self.wire.read(&mut frame).ok()?;
        frame.truncate(len);
        Some(frame)
    }

    fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

fn address(number: u16) -> u64 {
    BUFFERS + u64::from(number) * 0x1000
}

/// A frame of `len` bytes after a header of zeros.
fn frame(len: usize) -> Vec<u8> {
    let content = (0..len).map(|index| (index * 7 + len) as u8);
    [0; HEADER_LEN].into_iter().chain(content).collect()
}

/// The frame as the guest receives it in `count` chains.
fn with_num_buffers(mut frame: Vec<u8>, count: u8) -> Vec<u8> {
    frame[NUM_BUFFERS] = count;
    frame
}

#[test]
fn the_configuration_space_has_the_mac_address_and_link_up() {
    let fixture = Fixture::new(VERSION_1);
    let config: Vec<u8> = (0..3).flat_map(|word| fixture.driver.read(CONFIG + word * 4).to_le_bytes()).collect();
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]);
}

#[test]
fn a_frame_is_received_in_one_buffer() {
    let mut fixture = Fixture::new(VERSION_1);
    fixture.post(3, 2000);
    fixture.receive(&frame(100));
    assert_eq!(fixture.driver.used(RX), [(3, 112)]);
    assert_eq!(fixture.driver.get(address(3), 112), with_num_buffers(frame(100), 1));
    assert_eq!(fixture.driver.interrupts(), 1);
}

#[test]
fn a_long_frame_is_received_in_several_buffers() {
    let mut fixture = Fixture::new(MERGEABLE);
    (0..4).for_each(|number| fixture.post(number, 50));
    fixture.receive(&frame(100));
    assert_eq!(fixture.driver.used(RX), [(0, 50), (1, 50), (2, 12)]);
    let parts = [(0, 50), (1, 50), (2, 12)].map(|(number, len)| fixture.driver.get(address(number), len));
    assert_eq!(parts.concat(), with_num_buffers(frame(100), 3));
    fixture.receive(&frame(38)); // fits exactly
    assert_eq!(fixture.driver.used(RX)[3], (3, 50));
    assert_eq!(fixture.driver.get(address(3), 50), with_num_buffers(frame(38), 1));
    assert_eq!(fixture.dropped(), 0);
}

#[test]
fn an_event_index_in_the_middle_of_a_frame_raises_the_interrupt() {
    for (event, interrupts) in [(0, 1), (1, 1), (2, 1), (3, 0), (u16::MAX, 0)] {
        let mut fixture = Fixture::new(MERGEABLE | EVENT_IDX);
        (0..3).for_each(|number| fixture.post(number, 50));
        let used_event = GuestAddress(rings(RX)[1] + 4 + 2 * u64::from(SIZE));
        fixture.driver.memory.write_obj(event, used_event).unwrap();
        fixture.receive(&frame(100));
        assert_eq!((fixture.driver.used(RX).len(), fixture.driver.interrupts()), (3, interrupts), "event {event}");
    }
}

#[test]
fn a_frame_longer_than_the_posted_buffers_is_completed_when_more_are_posted() {
    let mut fixture = Fixture::new(MERGEABLE);
    (0..2).for_each(|number| fixture.post(number, 50));
    fixture.receive(&frame(200));
    fixture.post(2, 50);
    assert_eq!(fixture.driver.used(RX), []);
    (3..6).for_each(|number| fixture.post(number, 50));
    let used = [(0, 50), (1, 50), (2, 50), (3, 50), (4, 12)];
    assert_eq!(fixture.driver.used(RX), used);
    let parts = used.map(|(number, len)| fixture.driver.get(address(number as u16), len as usize));
    assert_eq!(parts.concat(), with_num_buffers(frame(200), 5));
    fixture.receive(&frame(20));
    assert_eq!(fixture.driver.used(RX)[5], (5, 32));
    assert_eq!(fixture.dropped(), 0);
}

#[test]
fn without_mergeable_buffers_a_frame_longer_than_a_chain_is_dropped() {
    let mut fixture = Fixture::new(VERSION_1);
    fixture.post(0, 100);
    fixture.post(1, 1000);
    fixture.receive(&frame(200));
    assert_eq!((fixture.driver.used(RX), fixture.dropped()), (vec![], 1));
    fixture.receive(&frame(88));
    assert_eq!(fixture.driver.used(RX), [(0, 100)]);
    assert_eq!(fixture.driver.get(address(0), 100), with_num_buffers(frame(88), 1));
}

#[test]
fn frames_stay_in_the_tap_while_no_buffers_are_posted() {
    let mut fixture = Fixture::new(VERSION_1);
    (20..23).for_each(|len| fixture.receive(&frame(len))); // and the loop becomes idle
    (0..3).for_each(|number| fixture.post(number, 100));
    assert_eq!(fixture.driver.used(RX), [(0, 32), (1, 33), (2, 34)]);

    let mut fixture = Fixture::without_driver();
    fixture.receive(&frame(20));
    fixture.driver.start(VERSION_1);
    fixture.post(0, 100);
    assert_eq!(fixture.driver.used(RX), [(0, 32)]);
}

#[test]
fn a_receive_buffer_without_space_for_the_header_stops_only_its_queue() {
    for len in [0, 1, HEADER_LEN as u32 - 1] {
        let mut fixture = Fixture::new(MERGEABLE);
        fixture.post(0, len);
        assert_eq!(fixture.driver.read(STATUS), RUNNING | NEEDS_RESET);
        fixture.receive(&frame(100));
        assert_eq!(fixture.driver.used(RX), []);
        fixture.send(&frame(60));
        assert_eq!((fixture.driver.used(TX), fixture.next_sent()), (vec![(0, 0)], Some(frame(60))));
    }
}

#[test]
fn a_frame_is_sent_however_it_is_split_into_buffers() {
    let mut fixture = Fixture::new(VERSION_1 | TSO);
    fixture.driver.put(BUFFERS, &frame(60));
    for cut in [1, 11, 12, 13, 71] {
        fixture.driver.request(TX, &[(BUFFERS, cut), (BUFFERS + u64::from(cut), 72 - cut)], &[]);
        assert_eq!(fixture.next_sent(), Some(frame(60)), "cut at {cut}");
    }
    let mut long = frame(MAX_FRAME - HEADER_LEN);
    long[..2].copy_from_slice(&[VIRTIO_NET_HDR_F_NEEDS_CSUM as u8, VIRTIO_NET_HDR_GSO_TCPV4 as u8]);
    fixture.send(&long);
    assert!(fixture.next_sent() == Some(long));
    assert_eq!(fixture.dropped(), 0);
}

#[test]
fn an_invalid_frame_is_dropped_and_its_chain_is_returned() {
    let mut fixture = Fixture::new(VERSION_1 | TSO);
    fixture.driver.put(BUFFERS, &frame(60));
    let header = |flags: u32, gso: u32| {
        let mut frame = frame(60);
        frame[..2].copy_from_slice(&[flags as u8, gso as u8]);
        frame
    };
    let mut count = 0;
    let mut check = |fixture: &mut Fixture| {
        count += 1;
        assert_eq!((fixture.driver.used(TX).len() as u64, fixture.dropped()), (count, count));
        assert_eq!(fixture.next_sent(), None);
    };
    for len in [0, 1, HEADER_LEN, MIN_FRAME - 1, MAX_FRAME + 1, 5 * MAX_FRAME] {
        fixture.driver.request(TX, &[(BUFFERS, len as u32)], &[]);
        check(&mut fixture);
    }
    fixture.driver.request(TX, &[], &[(BUFFERS, 72)]);
    check(&mut fixture);
    fixture.driver.request(TX, &[(0, END as u32), (0, END as u32)], &[]);
    check(&mut fixture);
    for (flags, gso) in [
        (0, VIRTIO_NET_HDR_GSO_TCPV6),                          // not negotiated
        (0, VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN), // not negotiated
        (0, 3),
        (0, 0x7f),
    ] {
        fixture.send(&header(flags, gso));
        check(&mut fixture);
    }
    let mut fixture = Fixture::new(VERSION_1);
    fixture.send(&header(VIRTIO_NET_HDR_F_NEEDS_CSUM, 0));
    assert_eq!((fixture.next_sent(), fixture.dropped()), (None, 1));
    fixture.send(&frame(60));
    assert_eq!(fixture.next_sent(), Some(frame(60)));
}

#[test]
fn while_the_tap_is_full_frames_wait_and_none_is_lost() {
    let mut fixture = Fixture::new(VERSION_1);
    let mut sent = 0;
    while fixture.driver.used(TX).len() == sent {
        sent += 1;
        assert!(sent < 10_000);
        fixture.driver.put(BUFFERS, &frame(1000 + sent));
        fixture.driver.request(TX, &[(BUFFERS, (HEADER_LEN + 1000 + sent) as u32)], &[]);
        if fixture.driver.used(TX).len() < sent {
            break;
        }
    }
    fixture.driver.run(); // the loop becomes idle
    for number in 1..=sent {
        assert!(fixture.next_sent() == Some(frame(1000 + number)), "frame {number} of {sent}");
        fixture.driver.run();
    }
    assert_eq!((fixture.driver.used(TX).len(), fixture.dropped()), (sent, 0));
}

#[test]
fn a_reset_discards_posted_buffers_and_partial_frames() {
    let mut fixture = Fixture::new(MERGEABLE);
    (0..2).for_each(|number| fixture.post(number, 50));
    fixture.receive(&frame(200)); // a partial frame
    fixture.driver.write(STATUS, 0);
    fixture.driver.put(address(0), &[0xee; 50]);
    fixture.driver.start(VERSION_1);
    fixture.receive(&frame(20));
    fixture.post(5, 100);
    assert_eq!(fixture.driver.used(RX), [(5, 32)]);
    assert_eq!(fixture.driver.get(address(0), 50), [0xee; 50]);
}

#[test]
fn a_deleted_tap_is_a_link_down() {
    let Fixture { mut driver, wire, dropped } = Fixture::new(VERSION_1);
    drop(wire);
    driver.run();
    assert_eq!(driver.read(CONFIG + 4) >> 16, 0);
    assert_eq!(driver.read(INTERRUPT_STATUS), 3);
    assert_eq!(DELETED_TAPS.get(), 1);
    driver.put(BUFFERS, &frame(60));
    driver.request(TX, &[(BUFFERS, 72)], &[]);
    assert_eq!((driver.used(TX), dropped.load(Ordering::Relaxed)), (vec![(0, 0)], 1));
    driver.request(RX, &[], &[(BUFFERS, 100)]);
    assert_eq!(driver.read(STATUS), RUNNING);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// After arbitrary descriptors and frames the loop becomes idle, and the device works after a reset.
    #[test]
    fn arbitrary_descriptors_and_frames_do_not_break_the_device(
        features in prop_oneof![Just(VERSION_1), Just(MERGEABLE), Just(MERGEABLE | TSO | EVENT_IDX)],
        steps in proptest::collection::vec((0..4, 0u16..SIZE, 0u32..70_000, any::<[u8; 16]>()), 1..60),
    ) {
        let mut fixture = Fixture::new(features);
        for (what, number, len, bytes) in steps {
            let [a, b] = [rings(RX), rings(TX)].map(|rings| rings[0] + u64::from(number) * 16);
            match what {
                0 => fixture.post(number, len),
                1 => drop(fixture.wire.write(&frame(len as usize % 10_000))), // fails if the socket is full
                2 => {
                    fixture.driver.put(BUFFERS, &bytes);
                    fixture.driver.put_descriptor(b, (BUFFERS, len, u16::from(bytes[15] & 1), (number + 1) % SIZE));
                    fixture.driver.offer(TX, number);
                    fixture.driver.notify(TX);
                }
                _ => {
                    let flags = u16::from(bytes[8] & 7);
                    let address = BUFFERS + u64::from(len) * u64::from(bytes[9] & 7);
                    fixture.driver.put_descriptor(a, (address, len, flags, u16::from(bytes[10])));
                    fixture.driver.put_descriptor(b, (address, len, flags, u16::from(bytes[11])));
                }
            }
            while bytes[0] & 1 == 0 && fixture.next_sent().is_some() {}
            fixture.driver.run();
        }
        while fixture.next_sent().is_some() {
            fixture.driver.run();
        }
        fixture.driver.write(STATUS, 0);
        fixture.driver.start(VERSION_1);
        fixture.send(&frame(60));
        prop_assert_eq!(fixture.next_sent(), Some(frame(60)));
    }
}

/// If the chains have more buffers than one system call can use, frames are read into the first chains.
#[test]
fn posted_chains_do_not_exceed_the_buffers_of_one_system_call() {
    let mut fixture =
        Fixture::new(MERGEABLE | 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4 | INDIRECT_DESC);
    let table = |number: u16| BUFFERS + 0x4_0000 + u64::from(number) * 0x100;
    for number in 0..SIZE {
        for index in 0..u64::from(SIZE) {
            let next = if index + 1 < SIZE.into() { NEXT } else { 0 };
            let descriptor = (address(number) + index * 2, 2, WRITE | next, index as u16 + 1);
            fixture.driver.put_descriptor(table(number) + index * 16, descriptor);
        }
        let at = rings(RX)[0] + u64::from(number) * 16;
        fixture.driver.put_descriptor(at, (table(number), 16 * u32::from(SIZE), INDIRECT, 0));
        fixture.driver.offer(RX, number);
    }
    fixture.driver.notify(RX);
    fixture.receive(&frame(300));
    let used = fixture.driver.used(RX);
    assert_eq!(used.len(), 10);
    let parts: Vec<_> =
        used.iter().map(|&(head, len)| fixture.driver.get(address(head as u16), len as usize)).collect();
    assert_eq!(parts.concat(), with_num_buffers(frame(300), 10));
    let index: u16 = fixture.driver.memory.read_obj(GuestAddress(rings(RX)[2] + 2)).unwrap();
    assert_eq!(index, 10);
}
