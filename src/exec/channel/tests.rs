use std::collections::VecDeque;
use std::io::{self, Read, Seek, Write};

use proptest::prelude::*;
use vm_memory::{MmapRegion, VolatileMemory};

use super::*;

/// Pages that lie together, as the guest sees them, or each alone, as the host does.
struct Memory(MmapRegion, bool);

impl Memory {
    fn new(together: bool) -> Self {
        Self(MmapRegion::new(TOTAL_PAGES * PAGE).unwrap(), together)
    }
}

impl Pages for Memory {
    fn slice(&self, page: usize, offset: usize, len: usize) -> Option<VolatileSlice<'_>> {
        let len = if self.1 { len } else { len.min(PAGE - offset) };
        self.0.get_slice(page * PAGE + offset, len).ok()
    }
}

#[test]
fn the_header_holds_all_there_is_to_hold() {
    const { assert!(FRAMES_AT + 8 * TOTAL_PAGES <= PAGE && Lane::Orders as usize * RING_WORDS + RINGS_AT < FRAMES_AT) };
    let (first, pages) = Lane::Orders.pages();
    assert_eq!(first + pages, TOTAL_PAGES);
    assert!(PAGES.iter().all(|pages| pages.is_power_of_two()), "indices wrap at 2^32");
}

#[test]
fn frames_are_read_as_they_were_published() {
    let memory = Memory::new(true);
    assert!(!is_published(&memory));
    let frames: Vec<u64> = (0..TOTAL_PAGES as u64).map(|n| n << 30).collect();
    publish(&memory, &frames).unwrap();
    assert!(is_published(&memory));
    assert!((0..TOTAL_PAGES).all(|n| frame(&memory, n) == Ok(frames[n])));
}

#[test]
fn a_sleeper_is_woken_once_a_sleep() {
    let memory = Memory::new(true);
    assert_eq!(must_wake(&memory), Ok(false));
    set_sleeping(&memory, true).unwrap();
    assert_eq!((must_wake(&memory), must_wake(&memory)), (Ok(true), Ok(false)));
}

#[test]
fn an_end_is_seen_behind_the_last_byte_and_not_before() {
    let memory = Memory::new(true);
    let (mut producer, mut consumer) = (Producer::new(Lane::Input), Consumer::new(Lane::Input));
    producer.push(&memory, b"last").unwrap();
    producer.close(&memory).unwrap();
    assert_eq!(consumer.is_at_end(&memory), Ok(false));
    assert_eq!(consumer.pop(&memory, &mut Vec::new(), 9), Ok(4));
    assert_eq!(consumer.is_at_end(&memory), Ok(true));
}

#[test]
fn files_are_read_into_a_ring_and_written_out_of_it() {
    let memory = Memory::new(true);
    let (mut producer, mut consumer) = (Producer::new(Lane::Output), Consumer::new(Lane::Output));
    let content: Vec<u8> = (0..300_000u32).map(|n| (n.wrapping_mul(n) >> 5) as u8).collect();
    let (mut from, mut to) = (tempfile(), tempfile());
    from.write_all(&content).unwrap();
    from.rewind().unwrap();
    let mut ended = false;
    while !ended || consumer.available(&memory).unwrap() > 0 {
        if producer.room(&memory).unwrap() > 0 {
            ended = producer.push_from(&memory, &mut from).unwrap() == 0;
        }
        if consumer.available(&memory).unwrap() > 0 {
            consumer.pop_to(&memory, &mut to).unwrap();
        }
    }
    let mut copy = Vec::new();
    to.rewind().unwrap();
    to.read_to_end(&mut copy).unwrap();
    assert_eq!(copy, content);
}

fn tempfile() -> std::fs::File {
    nix::sys::memfd::memfd_create(c"ring", nix::sys::memfd::MFdFlags::empty()).unwrap().into()
}

#[test]
fn indices_that_cannot_be_are_an_error_and_nothing_else() {
    for wrong in [1, 1 << 31, u32::MAX - 2 * 16 * PAGE as u32] {
        let memory = Memory::new(true);
        let (mut producer, mut consumer) = (Producer::new(Lane::Input), Consumer::new(Lane::Orders));
        memory.set_word(Lane::Input.words() + 8, wrong).unwrap(); // more taken than was put in
        assert_eq!(producer.push(&memory, b"x"), Err(Broken));
        assert!(producer.push_from(&memory, &mut tempfile()).is_err());
        memory.set_word(Lane::Orders.words(), wrong).unwrap(); // more put in than there is room, but for one
        let expected = if wrong == 1 { Ok(1) } else { Err(Broken) };
        assert_eq!(consumer.pop(&memory, &mut Vec::new(), 9), expected);
    }
}

#[test]
fn a_page_that_is_not_there_is_an_error() {
    struct Nowhere;
    impl Pages for Nowhere {
        fn slice(&self, _: usize, _: usize, _: usize) -> Option<VolatileSlice<'_>> {
            None
        }
    }
    assert_eq!(Producer::new(Lane::Orders).push(&Nowhere, b"x"), Err(Broken));
    assert_eq!(Consumer::new(Lane::Events).pop(&Nowhere, &mut Vec::new(), 1), Err(Broken));
    assert!(!is_published(&Nowhere));
    let error: io::Error = Broken.into();
    assert_eq!(error.to_string(), "the guest broke the channel to its command");
}

#[test]
fn messages_are_taken_whole_and_in_order() {
    let events = [Event::Hello("Linux".into()), Event::Started, Event::Warning("x".repeat(255)), Event::Ended(200)];
    let bytes = events.iter().flat_map(Event::encode).collect::<Vec<_>>();
    let (mut buffer, mut seen) = (Vec::new(), Vec::new());
    for byte in bytes {
        buffer.push(byte);
        seen.extend(take(&mut buffer).map(|(kind, payload)| Event::decode(kind, &payload).unwrap()));
    }
    assert_eq!(seen, events);
    for order in [Order::Signal(15), Order::Size(crate::sys::winsize::WinSize { rows: 24, cols: 500 }), Order::Shut(2)]
    {
        let (kind, payload) = take(&mut order.encode()).unwrap();
        assert_eq!(Order::decode(kind, &payload), Some(order));
    }
    assert_eq!((Event::decode(ENDED_KIND, b"12"), Event::decode(0, b""), Order::decode(9, b"")), (None, None, None));
    let long = Event::Failed("é".repeat(200)).encode();
    assert_eq!((long.len(), long[1]), (257, 255));
}

const ENDED_KIND: u8 = 3;

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_pushes_and_pops_keeps_bytes_and_order(
        steps in proptest::collection::vec((any::<bool>(), 0usize..20_000), 1..60),
        together in any::<bool>(),
    ) {
        let memory = Memory::new(together);
        let (mut producer, mut consumer) = (Producer::new(Lane::Input), Consumer::new(Lane::Input));
        let (mut model, mut next) = (VecDeque::<u8>::new(), 0u32);
        for (push, len) in steps {
            if push {
                let bytes: Vec<u8> = (0..len as u32).map(|n| (next + n).wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
                let done = producer.push(&memory, &bytes).unwrap();
                prop_assert!(done == len || producer.room(&memory) == Ok(0));
                model.extend(&bytes[..done]);
                next += done as u32;
            } else {
                let mut out = Vec::new();
                let done = consumer.pop(&memory, &mut out, len).unwrap();
                prop_assert_eq!(done, model.len().min(len));
                prop_assert!(out.into_iter().eq(model.drain(..done)));
            }
            prop_assert_eq!(consumer.available(&memory), Ok(model.len()));
        }
    }

    #[test]
    fn any_words_in_the_header_are_no_panic(words in proptest::collection::vec(any::<u32>(), 20), bytes in any::<Vec<u8>>()) {
        let memory = Memory::new(false);
        for (n, word) in words.iter().enumerate() {
            memory.set_word(RINGS_AT + 4 * n, *word).unwrap();
        }
        for lane in [Lane::Output, Lane::Errors, Lane::Events, Lane::Input, Lane::Orders] {
            let _ = Producer::new(lane).push(&memory, &bytes);
            let _ = Consumer::new(lane).pop(&memory, &mut Vec::new(), 1 << 20);
        }
        let mut bytes = bytes;
        while let Some((kind, payload)) = take(&mut bytes) {
            let _ = (Event::decode(kind, &payload), Order::decode(kind, &payload));
        }
    }
}
