#![expect(clippy::cast_possible_truncation, reason = "lengths are small, and content wraps to bytes")]

use std::collections::VecDeque;
use std::io::{self, Read, Seek, Write};

use proptest::prelude::*;
use vm_memory::{MmapRegion, VolatileMemory};

use super::*;

/// The channel's pages: contiguous, as in init, or each on its own, as on the host.
struct Memory {
    region: MmapRegion,
    contiguous: bool,
}

impl Memory {
    fn new(contiguous: bool) -> Self {
        Self { region: MmapRegion::new(TOTAL_PAGES * PAGE).unwrap(), contiguous }
    }
}

impl Pages for Memory {
    fn slice(&self, page: usize, offset: usize, len: usize) -> Option<VolatileSlice<'_>> {
        let len = if self.contiguous { len } else { len.min(PAGE - offset) };
        self.region.get_slice(page * PAGE + offset, len).ok()
    }
}

#[test]
fn the_header_fits_into_its_page() {
    const { assert!(FRAMES_OFFSET + 8 * TOTAL_PAGES <= PAGE) };
    const { assert!(RINGS_OFFSET + RING_STRIDE * PAGES.len() <= FRAMES_OFFSET) };
    let (first, pages) = Stream::Files.pages();
    assert_eq!(first + pages, TOTAL_PAGES);
    assert!(
        PAGES.iter().all(|pages| pages.is_power_of_two()),
        "indices wrap at 2^32, which must be a multiple of each ring's size"
    );
}

#[test]
fn frame_numbers_are_read_as_published() {
    let memory = Memory::new(true);
    assert!(!memory.is_published());
    let frames: Vec<u64> = (0..TOTAL_PAGES as u64).map(|n| n << 30).collect();
    memory.publish(&frames).unwrap();
    assert!(memory.is_published());
    assert!((0..TOTAL_PAGES).all(|n| memory.frame(n) == Ok(frames[n])));
}

#[test]
fn the_sleeping_flag_is_taken_once() {
    let memory = Memory::new(true);
    assert_eq!(memory.take_sleeping(), Ok(false));
    memory.set_sleeping(true).unwrap();
    assert_eq!((memory.take_sleeping(), memory.take_sleeping()), (Ok(true), Ok(false)));
}

#[test]
fn a_closed_ring_is_at_its_end_once_it_is_empty() {
    let memory = Memory::new(true);
    let (mut producer, mut consumer) = (Producer::new(Stream::Stdin), Consumer::new(Stream::Stdin));
    producer.push(&memory, b"last").unwrap();
    producer.close(&memory).unwrap();
    assert_eq!(consumer.is_at_end(&memory), Ok(false));
    assert_eq!(consumer.pop(&memory, &mut Vec::new(), 9), Ok(4));
    assert_eq!(consumer.is_at_end(&memory), Ok(true));
}

#[test]
fn a_file_is_copied_through_a_ring() {
    let memory = Memory::new(true);
    let (mut producer, mut consumer) = (Producer::new(Stream::Stdout), Consumer::new(Stream::Stdout));
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
fn an_index_out_of_range_is_a_protocol_error() {
    for wrong in [1, 1 << 31, u32::MAX - 2 * 16 * PAGE as u32] {
        let memory = Memory::new(true);
        let (mut producer, mut consumer) = (Producer::new(Stream::Stdin), Consumer::new(Stream::Controls));
        memory.store(Stream::Stdin.words() + 8, wrong).unwrap(); // TAIL: more was taken out than put in
        assert_eq!(producer.push(&memory, b"x"), Err(ProtocolError));
        assert!(producer.push_from(&memory, &mut tempfile()).is_err());
        memory.store(Stream::Controls.words(), wrong).unwrap(); // HEAD: more was put in than fits, unless it is 1
        let expected = if wrong == 1 { Ok(1) } else { Err(ProtocolError) };
        assert_eq!(consumer.pop(&memory, &mut Vec::new(), 9), expected);
    }
}

#[test]
fn a_page_outside_memory_is_a_protocol_error() {
    struct Nowhere;
    impl Pages for Nowhere {
        fn slice(&self, _: usize, _: usize, _: usize) -> Option<VolatileSlice<'_>> {
            None
        }
    }
    assert_eq!(Producer::new(Stream::Controls).push(&Nowhere, b"x"), Err(ProtocolError));
    assert_eq!(Consumer::new(Stream::Events).pop(&Nowhere, &mut Vec::new(), 1), Err(ProtocolError));
    assert!(!Nowhere.is_published());
    let error: io::Error = ProtocolError.into();
    assert_eq!(error.to_string(), "the guest violated the protocol of the exec channel");
}

#[test]
fn messages_that_arrive_in_parts_are_decoded_whole_and_in_order() {
    let size = crate::sys::winsize::WinSize { rows: 24, cols: 500 };
    let messages = [
        Message::Hello("Linux".into()),
        Message::Started,
        Message::Warning("x".repeat(255)),
        Message::Ended(200),
        Message::Signal(15),
        Message::Resize(size),
        Message::Close(2),
    ];
    let (mut buffer, mut seen) = (Vec::new(), Vec::new());
    for byte in messages.iter().flat_map(Message::encode) {
        buffer.push(byte);
        seen.extend(Message::take(&mut buffer).map(Option::unwrap));
    }
    assert_eq!(seen, messages);
    for invalid in [&[ENDED_KIND, 2, 1, 2], &[0, 0][..], &[9, 0]] {
        assert_eq!(Message::take(&mut invalid.to_vec()), Some(None));
    }
    let long = Message::Failed("é".repeat(200)).encode();
    assert_eq!((long.len(), long[1]), (257, 255));
}

const ENDED_KIND: u8 = 3;

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_pushes_and_pops_preserves_bytes_and_order(
        steps in proptest::collection::vec((any::<bool>(), 0usize..20_000), 1..60),
        contiguous in any::<bool>(),
    ) {
        let memory = Memory::new(contiguous);
        let (mut producer, mut consumer) = (Producer::new(Stream::Stdin), Consumer::new(Stream::Stdin));
        let (mut model, mut next) = (VecDeque::<u8>::new(), 0u32);
        for (push, len) in steps {
            if push {
                let byte = |n: u32| (next + n).wrapping_mul(2_654_435_761).to_le_bytes()[3];
                let bytes: Vec<u8> = (0..len as u32).map(byte).collect();
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
    fn no_content_of_the_header_causes_a_panic(
        words in proptest::collection::vec(any::<u32>(), 20),
        bytes in any::<Vec<u8>>(),
    ) {
        let memory = Memory::new(false);
        for (n, word) in words.iter().enumerate() {
            memory.store(RINGS_OFFSET + 4 * n, *word).unwrap();
        }
        for stream in [Stream::Stdout, Stream::Stderr, Stream::Events, Stream::Stdin, Stream::Controls] {
            let _ = Producer::new(stream).push(&memory, &bytes);
            let _ = Consumer::new(stream).pop(&memory, &mut Vec::new(), 1 << 20);
        }
        let mut bytes = bytes;
        while Message::take(&mut bytes).is_some() {}
    }
}
