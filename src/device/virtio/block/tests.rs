#![expect(clippy::cast_possible_truncation, reason = "disks and requests are small, and content wraps to bytes")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::request::{MAX_DISCARD_SECTORS, MAX_ZERO_SECTORS, Request, SECTOR};
use super::*;
use crate::device::Device;
use crate::device::virtio::Buffer;
use crate::device::virtio::testing::{
    ACKNOWLEDGE, BUFFERS, CONFIG, DEVICE_FEATURES, Driver, NEEDS_RESET, QUEUE_NOTIFY, QUEUE_READY, QUEUE_SEL, RAM,
    RUNNING, SIZE, STATUS, VERSION_1, ram, rings,
};
use crate::sys::async_io::Operation;
use crate::sys::vectored_io::Direction;

const SECTORS: u64 = 64;
const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;

// The addresses of a request.
const HEADER: u64 = BUFFERS;
const RESULT: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH_TYPE: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// How requests are executed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// Inline where that does not block, on the event loop.
    CachedReads,
    /// Inline, on tmpfs.
    Everything,
    /// By io_uring, and the device has closed its files.
    Uring,
    /// By system calls of the I/O process, and the device has closed its files.
    Calls,
    /// The same without the page cache.
    DirectUring,
    DirectCalls,
}

const WAYS: [Way; 6] = [Way::CachedReads, Way::Everything, Way::Uring, Way::Calls, Way::DirectUring, Way::DirectCalls];

/// An image file that is removed when dropped.
struct Image(PathBuf);

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Image {
    fn new(content: &[u8]) -> Self {
        Self::of(Way::CachedReads, content)
    }

    fn of(way: Way, content: &[u8]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("kickvm-disk-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = if way == Way::Everything { "/dev/shm".into() } else { std::env::temp_dir() };
        let path = directory.join(name);
        fs::write(&path, content).unwrap();
        Self(path)
    }

    fn open(&self, read_only: bool) -> Disk {
        Disk::open(&self.0, read_only, false).unwrap()
    }
}

/// Bytes of which each sector is different.
fn content() -> Vec<u8> {
    (0..SECTORS * SECTOR).map(|at| (at / SECTOR * 7 + at % 251) as u8).collect()
}

/// A disk on `image` with its driver. None if the host does not support that `way`.
fn running(image: &Image, way: Way, read_only: bool) -> Option<Driver<Block>> {
    let direct = matches!(way, Way::DirectUring | Way::DirectCalls);
    let mut disk = match Disk::open(&image.0, read_only, direct) {
        Err(_) if direct => return None, // a file system without O_DIRECT
        disk => disk.unwrap(),
    };
    match way {
        Way::CachedReads => {}
        Way::Everything => assert_eq!(disk.inline, Inline::Everything, "/dev/shm is a tmpfs"),
        _ => disk.inline = Inline::Nothing,
    }
    let memory = ram();
    let engine = Engine::new(disk, &memory, !matches!(way, Way::Calls | Way::DirectCalls)).unwrap();
    let block = Block::with_engine(engine, "the serial number", Box::new(|_| {}));
    let mut driver = Driver::with_memory(block, memory);
    driver.start(if read_only { VERSION_1 } else { VERSION_1 | FLUSH });
    Some(driver)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn segment(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

impl Driver<Block> {
    /// Sends a request with `readable` bytes behind its header and room for `len` bytes, waits for it, and returns its
    /// status and the number of bytes written.
    fn ask(&mut self, kind: u32, sector: u64, readable: &[u8], len: u32) -> (u8, u32) {
        let before = self.used_index(0);
        self.put(HEADER, &header(kind, sector));
        self.put(RESULT, &[0xaa]);
        let mut from = vec![(HEADER, 16)];
        if !readable.is_empty() {
            self.put(DATA, readable);
            from.push((DATA, readable.len() as u32));
        }
        let mut to = if len > 0 { vec![(DATA, len)] } else { vec![] };
        to.push((RESULT, 1));
        self.request(0, &from, &to);
        self.wait_until(0, |given| given != before);
        (self.get(RESULT, 1)[0], self.last_len())
    }

    fn last_len(&self) -> u32 {
        let last = self.used_index(0).wrapping_sub(1) % SIZE;
        self.memory.read_obj(GuestAddress(rings(0)[2] + 8 + u64::from(last) * 8)).unwrap()
    }
}

#[test]
fn the_driver_reads_size_and_features() {
    let image = Image::new(&content());
    for (read_only, expected) in [(false, 0b110_0110_0100_0100), (true, 0b000_0100_0110_0100)] {
        let driver = running(&image, Way::CachedReads, read_only).unwrap();
        assert_eq!(driver.read(CONFIG), SECTORS as u32);
        assert_eq!(driver.read(CONFIG + 12), 254, "segments");
        assert_eq!(driver.read(CONFIG + 20), 512, "block size");
        assert_eq!(driver.read(DEVICE_FEATURES) & 0xffff, expected, "{read_only}");
    }
}

#[test]
fn what_is_read_and_written_is_what_the_file_holds() {
    for way in WAYS {
        let image = Image::of(way, &content());
        let Some(mut driver) = running(&image, way, false) else { continue };
        assert_eq!(driver.ask(IN, 3, &[], 2048), (OK, 2049), "{way:?}");
        assert_eq!(driver.get(DATA, 2048), content()[3 * 512..7 * 512], "{way:?}");

        let data: Vec<u8> = (0..1024u32).map(|n| (n * 3) as u8).collect();
        assert_eq!(driver.ask(OUT, SECTORS - 2, &data, 0), (OK, 1), "{way:?}");
        let mut expected = content();
        expected[(SECTORS as usize - 2) * 512..].copy_from_slice(&data);
        assert_eq!(fs::read(&image.0).unwrap(), expected, "{way:?}");

        assert_eq!(driver.ask(FLUSH_TYPE, 0, &[], 0), (OK, 1), "{way:?}");
        assert_eq!(driver.ask(IN, 0, &[], 0), (OK, 1), "nothing, {way:?}");
        assert_eq!(driver.ask(IN, SECTORS, &[], 0), (OK, 1), "nothing, {way:?}");
    }
}

/// A header in pieces, data in pieces of odd sizes and at odd addresses, and the status in the last of them.
#[test]
fn how_a_request_is_cut_into_buffers_does_not_matter() {
    for way in WAYS {
        let image = Image::of(way, &content());
        let Some(mut driver) = running(&image, way, false) else { continue };
        driver.put(HEADER, &header(IN, 1));
        let pieces = [(DATA + 1, 100), (DATA + 333, 1), (DATA + 0x1003, 411), (DATA + 0x4000, 513)];
        driver.request(0, &[(HEADER, 3), (HEADER + 3, 13)], &pieces);
        driver.wait_until(0, |given| given == 1);
        let read: Vec<u8> = pieces.iter().flat_map(|&(at, len)| driver.get(at, len as usize)).collect();
        assert_eq!((&read[..1024], read[1024]), (&content()[512..1536], OK), "{way:?}");

        driver.put(HEADER, &[header(OUT, 5), vec![0x55; 512]].concat());
        driver.request(0, &[(HEADER, 100), (HEADER + 100, 428)], &[(RESULT, 1)]);
        driver.wait_until(0, |given| given == 2);
        assert_eq!(driver.get(RESULT, 1), [OK], "{way:?}");
        assert_eq!(fs::read(&image.0).unwrap()[5 * 512..6 * 512], [0x55; 512], "{way:?}");
    }
}

#[test]
fn the_serial_number_is_returned() {
    let image = Image::new(&content());
    let mut driver = running(&image, Way::CachedReads, true).unwrap();
    assert_eq!(driver.ask(GET_ID, 0, &[], 20), (OK, 21));
    assert_eq!(driver.get(DATA, 20), b"the serial number\0\0\0");
    driver.put(DATA, &[0; 20]);
    assert_eq!(driver.ask(GET_ID, 0, &[], 3), (OK, 4), "a small buffer");
    assert_eq!(driver.get(DATA, 4), b"the\0");
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    for way in WAYS {
        let image = Image::of(way, &content());
        let Some(mut driver) = running(&image, way, false) else { continue };
        assert_eq!(driver.ask(WRITE_ZEROES, 0, &segment(8, 8, 0), 0), (OK, 1), "{way:?}");
        assert_eq!(driver.ask(WRITE_ZEROES, 0, &segment(17, 1, 1), 0), (OK, 1), "{way:?}");
        assert_eq!(driver.ask(DISCARD, 0, &segment(SECTORS - 8, 8, 0), 0), (OK, 1), "{way:?}");
        assert_eq!(driver.ask(DISCARD, 0, &segment(0, 0, 0), 0), (OK, 1), "{way:?}");
        let now = fs::read(&image.0).unwrap();
        let mut expected = content();
        expected[8 * 512..16 * 512].fill(0);
        expected[17 * 512..18 * 512].fill(0);
        let kept = (SECTORS as usize - 8) * 512;
        assert_eq!((now.len(), &now[..kept]), (expected.len(), &expected[..kept]), "{way:?}");
    }
}

#[test]
fn requests_that_make_no_sense_get_their_status() {
    let image = Image::new(&content());
    let mut driver = running(&image, Way::CachedReads, false).unwrap();
    let two = [segment(0, 1, 0), segment(1, 1, 0)].concat();
    for (kind, sector, readable, len, status) in [
        (IN, 0, vec![], 511, IOERR),
        (IN, 0, vec![], 513, IOERR),
        (IN, SECTORS - 1, vec![], 1024, IOERR),
        (IN, SECTORS, vec![], 512, IOERR),
        (IN, SECTORS + 1, vec![], 0, IOERR),
        (IN, u64::MAX, vec![], 512, IOERR),
        (IN, u64::MAX / 512, vec![], 512, IOERR),
        (OUT, 0, vec![1; 100], 0, IOERR),
        (OUT, SECTORS - 1, vec![1; 1024], 0, IOERR),
        (OUT, u64::MAX, vec![1; 512], 0, IOERR),
        (2, 0, vec![], 512, UNSUPP),
        (16, 0, vec![], 512, UNSUPP),
        (u32::MAX, 0, vec![], 0, UNSUPP),
        (DISCARD, 0, vec![], 0, IOERR),
        (DISCARD, 0, vec![0; 15], 0, IOERR),
        (DISCARD, 0, two.clone(), 0, IOERR),
        (DISCARD, 0, segment(0, 1, 1), 0, UNSUPP),
        (DISCARD, 0, segment(0, 1, 2), 0, UNSUPP),
        (DISCARD, 0, segment(SECTORS, 1, 0), 0, IOERR),
        (DISCARD, 0, segment(u64::MAX, u32::MAX, 0), 0, IOERR),
        (DISCARD, 0, segment(0, MAX_DISCARD_SECTORS + 1, 0), 0, IOERR),
        (WRITE_ZEROES, 0, two, 0, IOERR),
        (WRITE_ZEROES, 0, segment(0, 1, 3), 0, UNSUPP),
        (WRITE_ZEROES, 0, segment(0, MAX_ZERO_SECTORS + 1, 0), 0, IOERR),
        (WRITE_ZEROES, 0, segment(SECTORS - 1, 2, 1), 0, IOERR),
    ] {
        let answer = driver.ask(kind, sector, &readable, len);
        assert_eq!(answer, (status, 0), "{kind} {sector} {readable:?} {len}");
    }
    assert_eq!(fs::read(&image.0).unwrap(), content());
    assert_eq!(driver.read(STATUS), RUNNING);
}

#[test]
fn a_header_that_is_too_short_is_an_error() {
    let image = Image::new(&content());
    let mut driver = running(&image, Way::CachedReads, false).unwrap();
    driver.request(0, &[(HEADER, 15)], &[(RESULT, 1)]);
    driver.request(0, &[], &[(DATA, 512), (RESULT, 1)]);
    assert_eq!(driver.used(0).len(), 2);
    assert_eq!(driver.get(RESULT, 1), [IOERR]);
}

#[test]
fn a_request_without_room_for_its_status_stops_the_queue() {
    let image = Image::new(&content());
    let mut driver = running(&image, Way::CachedReads, false).unwrap();
    driver.put(HEADER, &header(IN, 0));
    driver.request(0, &[(HEADER, 16)], &[]);
    assert_eq!((driver.read(STATUS), driver.used(0)), (RUNNING | NEEDS_RESET, vec![]));
    driver.reset();
    driver.start(VERSION_1);
    assert_eq!(driver.ask(IN, 0, &[], 512), (OK, 513));
}

#[test]
fn a_read_only_disk_refuses_to_be_changed() {
    for way in WAYS {
        let image = Image::of(way, &content());
        let Some(mut driver) = running(&image, way, true) else { continue };
        assert_eq!(driver.ask(OUT, 0, &[1; 512], 0), (IOERR, 0));
        assert_eq!(driver.ask(DISCARD, 0, &segment(0, 1, 0), 0), (UNSUPP, 0));
        assert_eq!(driver.ask(WRITE_ZEROES, 0, &segment(0, 1, 0), 0), (UNSUPP, 0));
        assert_eq!(driver.ask(FLUSH_TYPE, 0, &[], 0), (OK, 1));
        assert_eq!(driver.ask(IN, 0, &[], 512), (OK, 513));
        assert_eq!(fs::read(&image.0).unwrap(), content());
    }
}

#[test]
fn a_file_that_shrinks_is_an_error_until_it_has_grown_again() {
    for way in WAYS {
        let image = Image::of(way, &content());
        let Some(mut driver) = running(&image, way, false) else { continue };
        let file = fs::OpenOptions::new().write(true).open(&image.0).unwrap();
        file.set_len(8 * 512 + 100).unwrap();
        assert_eq!(driver.ask(IN, 7, &[], 1024), (IOERR, 0), "{way:?}");
        assert_eq!(driver.ask(IN, 9, &[], 512), (IOERR, 0), "{way:?}");
        assert_eq!(driver.ask(IN, 0, &[], 4096), (OK, 4097), "{way:?}");
        file.set_len(SECTORS * 512).unwrap();
        assert_eq!(driver.ask(IN, 7, &[], 1024), (OK, 1025), "{way:?}");
    }
}

#[test]
fn the_first_error_of_the_host_is_reported() {
    let image = Image::new(&content());
    let said = Arc::new(Mutex::new(Vec::new()));
    let listener = said.clone();
    let memory = ram();
    let on_error = Box::new(move |error: &io::Error| listener.lock().unwrap().push(error.to_string()));
    let mut driver = Driver::with_memory(Block::new(image.open(true), "", &memory, on_error).unwrap(), memory);
    driver.start(VERSION_1);
    assert_eq!(driver.ask(IN, SECTORS, &[], 512), (IOERR, 0), "the guest's own fault");
    fs::OpenOptions::new().write(true).open(&image.0).unwrap().set_len(0).unwrap();
    assert_eq!(driver.ask(IN, 0, &[], 512), (IOERR, 0));
    assert_eq!(driver.ask(IN, 0, &[], 512), (IOERR, 0));
    assert_eq!(*said.lock().unwrap(), ["the file was truncated"]);
}

/// More requests in flight than entries, because the driver gives the same entry again and again without waiting.
#[test]
fn a_driver_that_does_not_wait_for_answers_has_to() {
    for way in WAYS {
        let image = Image::of(way, &content());
        let Some(mut driver) = running(&image, way, false) else { continue };
        driver.put(HEADER, &header(IN, 0));
        let mut offered = 0u16;
        for _ in 0..200 {
            // A ring's worth more than there are slots: what is not taken still fits into the ring.
            driver.wait_until(0, |given| offered - given <= QUEUE_SIZE);
            (1..SIZE).for_each(|_| driver.offer(0, 0));
            driver.request(0, &[(HEADER, 16)], &[(DATA, 4096), (RESULT, 1)]);
            offered += SIZE;
        }
        driver.wait_until(0, |given| given == offered);
        assert_eq!((driver.read(STATUS), driver.get(RESULT, 1)), (RUNNING, vec![OK]), "{way:?}");
    }
}

/// After a reset the guest's memory is not accessed, and the disk works as a new one.
#[test]
fn a_reset_in_the_middle_of_requests_ends_them() {
    for way in WAYS {
        let image = Image::of(way, &vec![0x11; 4 << 20]);
        let Some(mut driver) = running(&image, way, false) else { continue };
        for _ in 0..20 {
            driver.put(HEADER, &header(IN, 0));
            for head in 0..4u64 {
                let flags = [1, 3, 2];
                let pieces = [(HEADER, 16), (DATA + head * 0x10000, 0x10000), (RESULT + head, 1)];
                for (index, ((address, len), flags)) in (0u16..).zip(pieces.into_iter().zip(flags)) {
                    let at = head as u16 * 3 + index;
                    driver.put_descriptor(rings(0)[0] + u64::from(at) * 16, (address, len, flags, at + 1));
                }
                driver.offer(0, head as u16 * 3);
            }
            driver.write(QUEUE_NOTIFY, 0);
            driver.run();
            driver.reset();
            driver.put(DATA, &[0x22; 0x4_0000]);
            driver.start(VERSION_1 | FLUSH);
            driver.run();
            assert_eq!(driver.get(DATA, 0x4_0000), [0x22; 0x4_0000], "{way:?}");
            assert_eq!(driver.ask(IN, 0, &[], 512), (OK, 513), "{way:?}");
        }
    }
}

#[test]
fn a_driver_without_flushes_has_its_writes_on_the_medium() {
    let transfer = |direction, durable| {
        let mut inflight = Inflight { request: Request::Transfer { direction, offset: 512 }, ..Inflight::default() };
        inflight.chain.readable.push(Buffer { address: GuestAddress(DATA), len: 512 });
        inflight.chain.writable.push(Buffer { address: GuestAddress(DATA), len: 512 });
        inflight.operation(durable).unwrap()
    };
    let operation = |direction, flags| Operation::Transfer { direction, offset: 512, flags };
    assert_eq!(transfer(Direction::Write, true), operation(Direction::Write, libc::RWF_DSYNC));
    assert_eq!(transfer(Direction::Write, false), operation(Direction::Write, 0));
    assert_eq!(transfer(Direction::Read, true), operation(Direction::Read, 0));
    for way in WAYS {
        let image = Image::of(way, &content());
        let Some(mut driver) = running(&image, way, false) else { continue };
        driver.reset();
        driver.start(VERSION_1);
        assert_eq!(driver.ask(OUT, 1, &[9; 512], 0), (OK, 1), "{way:?}");
        assert_eq!(driver.ask(WRITE_ZEROES, 0, &segment(2, 1, 0), 0), (OK, 1), "{way:?}");
        assert_eq!(fs::read(&image.0).unwrap()[512..1536], [vec![9; 512], vec![0; 512]].concat(), "{way:?}");
    }
}

/// A request as bytes: its header, what follows, room for an answer, and how it is cut.
fn any_request() -> impl Strategy<Value = (u32, u64, Vec<u8>, u32)> {
    let known = prop::sample::select(&[IN, OUT, FLUSH_TYPE, DISCARD, WRITE_ZEROES][..]);
    let kind = prop_oneof![8 => known, 1 => 0u32..17, 1 => any::<u32>()];
    let sector = prop_oneof![8 => 0..SECTORS + 4, 1 => any::<u64>()];
    let sectors = prop_oneof![4 => (0usize..5).prop_map(|n| n * 512), 1 => 0usize..2000];
    let segment = (0..SECTORS + 2, prop_oneof![0u32..12, any::<u32>()], 0u32..4)
        .prop_map(|(at, count, flags)| segment(at, count, flags));
    let data = prop_oneof![
        sectors.clone().prop_map(|len| vec![0x77; len]),
        segment,
        prop::collection::vec(any::<u8>(), 0..40)
    ];
    (kind, sector, data, sectors.prop_map(|len| len as u32))
}

/// What a disk that holds `image` should answer, and then hold.
fn model(image: &mut [u8], kind: u32, sector: u64, data: &[u8], len: u32) -> u8 {
    let range = |sector: u64, bytes: usize| {
        let start = usize::try_from(sector.checked_mul(512)?).ok()?;
        Some(start..start.checked_add(bytes)?).filter(|range| range.end <= image.len())
    };
    match kind {
        IN if len.is_multiple_of(512) && range(sector, len as usize).is_some() => OK,
        OUT if data.len().is_multiple_of(512) => match range(sector, data.len()) {
            Some(range) => {
                image[range].copy_from_slice(data);
                OK
            }
            None => IOERR,
        },
        FLUSH_TYPE | GET_ID => OK,
        IN | OUT => IOERR,
        DISCARD | WRITE_ZEROES if data.len() == 16 => {
            let word = |at: usize| u32::from_le_bytes(data[at..at + 4].try_into().unwrap());
            let (start, count, flags) = (u64::from_le_bytes(data[..8].try_into().unwrap()), word(8), word(12));
            match range(start, count as usize * 512) {
                _ if flags > u32::from(kind == WRITE_ZEROES) => UNSUPP,
                Some(range) if count <= MAX_ZERO_SECTORS => {
                    image[range].fill(0); // a regular file's holes read as zeros
                    OK
                }
                _ => IOERR,
            }
        }
        DISCARD | WRITE_ZEROES => IOERR,
        _ => UNSUPP,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_requests_do_what_a_model_of_the_disk_does(
        requests in prop::collection::vec(any_request(), 1..20), way in prop::sample::select(&WAYS[..])
    ) {
        let image = Image::of(way, &content());
        let Some(mut driver) = running(&image, way, false) else { return Ok(()) };
        let mut expected = content();
        for (kind, sector, data, len) in requests {
            let (status, written) = driver.ask(kind, sector, &data, len);
            let before = expected.clone();
            let wanted = model(&mut expected, kind, sector, &data, len);
            prop_assert_eq!(status, wanted, "{} {} {:?} {}", kind, sector, data, len);
            prop_assert!(written <= len + 1);
            if kind == IN && status == OK {
                let start = sector as usize * 512;
                prop_assert_eq!(driver.get(DATA, len as usize), &before[start..start + len as usize]);
            }
            prop_assert_eq!(driver.read(STATUS), RUNNING);
        }
        prop_assert_eq!(fs::read(&image.0).unwrap(), expected);
    }

    #[test]
    fn whatever_is_in_the_rings_the_disk_ends_its_turn_and_can_be_reset(
        descriptors in prop::collection::vec((BUFFERS - 0x2000..RAM as u64 + 0x1000, 0u32..9000, 0u16..8, 0u16..20), 16),
        heads in prop::collection::vec(0u16..18, 16),
        available in 0u16..20,
        headers in prop::collection::vec((0u32..16, 0..SECTORS + 2), 32),
        way in prop::sample::select(&WAYS[..]),
    ) {
        let image = Image::of(way, &content());
        let Some(mut driver) = running(&image, way, false) else { return Ok(()) };
        for (at, (kind, sector)) in (BUFFERS - 0x2000..RAM as u64).step_by(0x4000).zip(headers) {
            driver.put(at, &header(kind, sector));
        }
        for (index, descriptor) in (0..).zip(descriptors) {
            driver.put_descriptor(rings(0)[0] + index * 16, descriptor);
        }
        for (index, head) in (0..).zip(heads) {
            driver.memory.write_obj(head, GuestAddress(rings(0)[1] + 4 + index * 2)).unwrap();
        }
        driver.memory.write_obj(available, GuestAddress(rings(0)[1] + 2)).unwrap();
        driver.notify(0);
        prop_assert!(matches!(driver.read(STATUS), RUNNING | 0x4f));
        prop_assert_eq!(fs::metadata(&image.0).unwrap().len(), SECTORS * 512);
        driver.reset();
        driver.start(VERSION_1 | FLUSH);
        prop_assert_eq!(driver.ask(IN, 0, &[], 512), (OK, 513));
    }
}

// ---- The file ----

#[test]
fn a_disk_that_is_written_has_no_other_user() {
    let image = Image::new(&content());
    let why = |read_only| Disk::open(&image.0, read_only, false).unwrap_err().to_string();
    let path = image.0.display();
    let already = format!("cannot use disk '{path}': it is already a disk of this guest");
    {
        let _writer = image.open(false);
        assert_eq!([why(false), why(true)], [already.clone(), already.clone()]);
    }
    let _readers = [image.open(true), image.open(true)];
    assert_eq!(why(false), already);
}

#[test]
fn files_that_are_no_disk_say_why() {
    let why = |path: &Path| Disk::open(path, false, false).unwrap_err().to_string();
    let image = Image::new(&[0; 1000]);
    let path = image.0.display();
    let partial = "its size of 1000 bytes is not a multiple of 512; 'truncate -s %512' fills up the last sector";
    assert_eq!(why(&image.0), format!("cannot use disk '{path}': {partial}"));
    fs::write(&image.0, b"").unwrap();
    assert_eq!(
        why(&image.0),
        format!("cannot use disk '{path}': it is empty; 'truncate -s 1G' makes an image of 1 GiB")
    );
    assert_eq!(why(Path::new("/")), "cannot use disk '/': it is a directory");
    let neither = "cannot use disk '/dev/null': it is neither a regular file nor a block device";
    assert_eq!(why(Path::new("/dev/null")), neither);
    assert_eq!(why(Path::new("/nowhere")), "cannot open disk '/nowhere': No such file or directory");
}

#[test]
fn more_pieces_than_one_call_takes_are_moved_in_parts() {
    let image = Image::new(&content());
    let memory = ram();
    let pieces: Vec<_> = (0..150)
        .map(|n| Buffer { address: GuestAddress(DATA + n * 1000), len: if n < 75 { 100 } else { 5 } })
        .collect();
    let request = Request::Transfer { direction: Direction::Read, offset: 512 };
    let mut inflight = Box::new(Inflight { request, ..Inflight::default() });
    pieces.iter().for_each(|piece| inflight.chain.writable.push(*piece));
    let mut engine = Engine::new(image.open(true), &memory, false).unwrap();
    let Progress::Ended(inflight, Ok(())) = engine.start(inflight, &mut TurnBudget::new(0)) else {
        panic!("not cached")
    };
    let request = Request::Transfer { direction: Direction::Read, offset: 512 + 75 * 105 };
    assert_eq!((inflight.request, inflight.data().len()), (request, 0));
    let mut read = Vec::new();
    for Buffer { address, len } in pieces {
        let start = read.len();
        read.resize(start + len, 0);
        memory.read_slice(&mut read[start..], address).unwrap();
    }
    assert_eq!(read, content()[512..512 + 75 * 105]);
}

#[test]
fn a_request_larger_than_the_kernel_is_given_at_once_is_done_in_parts() {
    const PIECE: usize = 0x3_0000;
    let content: Vec<u8> = (0..12 * PIECE).map(|at| (at / 4099) as u8).collect();
    let image = Image::of(Way::Uring, &content);
    let Some(mut driver) = running(&image, Way::Uring, true) else { return };
    driver.put(HEADER, &header(IN, 0));
    // Each piece is read to the same place, and the last one stays.
    let mut to = vec![(DATA, PIECE as u32); 12];
    to.push((RESULT, 1));
    driver.request(0, &[(HEADER, 16)], &to);
    driver.wait_until(0, |given| given == 1);
    assert_eq!((driver.get(RESULT, 1), driver.last_len()), (vec![OK], 12 * PIECE as u32 + 1));
    assert!(driver.get(DATA, PIECE) == content[11 * PIECE..]);
}

// ---- Requests that do not end ----

impl Driver<Block> {
    /// Makes `count` reads available, and lets the device take them.
    fn read_without_waiting(&mut self, count: u16) {
        self.put(HEADER, &header(IN, 1));
        self.put(RESULT, &[0xaa]);
        for (index, (address, len, flags)) in (0..).zip([(HEADER, 16, 1), (DATA, 512, 3), (RESULT, 1, 2)]) {
            self.put_descriptor(rings(0)[0] + u64::from(index) * 16, (address, len, flags, index + 1));
        }
        for _ in 0..count / SIZE {
            (0..SIZE).for_each(|_| self.offer(0, 0));
            self.notify(0);
        }
    }

    fn in_flight(&self) -> usize {
        self.virtio.lock().unwrap().device.engine.in_flight()
    }

    /// Stops or continues the process that does the I/O.
    fn signal(&self, signal: Signal) {
        let pid = self.virtio.lock().unwrap().device.engine.process_id();
        kill(Pid::from_raw(pid), signal).unwrap();
    }
}

/// A disk that does not answer, because its process is stopped.
fn stuck(image: &Image, way: Way) -> Driver<Block> {
    let driver = running(image, way, false).unwrap();
    driver.signal(Signal::SIGSTOP);
    driver
}

#[test]
fn a_reset_is_pending_until_the_last_of_64_requests_has_ended() {
    for way in [Way::Uring, Way::Calls] {
        let image = Image::new(&content());
        let mut driver = stuck(&image, way);
        driver.read_without_waiting(64);
        driver.write(STATUS, 0);
        driver.run();
        assert_eq!((driver.in_flight(), driver.read(STATUS)), (64, RUNNING), "{way:?}");
        // Nothing that the driver writes has an effect.
        driver.write(STATUS, ACKNOWLEDGE);
        driver.set_up(0, SIZE, rings(0));
        driver.write(STATUS, 0);
        driver.notify(0);
        assert_eq!(driver.read(STATUS), RUNNING, "{way:?}");

        driver.interrupts();
        driver.signal(Signal::SIGCONT);
        driver.wait_for(|driver| driver.read(STATUS) == 0);
        driver.write(QUEUE_SEL, 0);
        assert_eq!((driver.in_flight(), driver.read(QUEUE_READY)), (0, 0), "{way:?}");
        assert_eq!((driver.used(0), driver.get(RESULT, 1), driver.interrupts()), (vec![], vec![0xaa], 0), "{way:?}");

        driver.start(VERSION_1 | FLUSH);
        driver.read_without_waiting(16);
        driver.wait_until(0, |index| index == 16);
        assert_eq!((driver.read(STATUS), driver.get(RESULT, 1)), (RUNNING, vec![OK]), "{way:?}");
    }
}

#[test]
fn a_vcpu_that_resets_a_device_waits_for_the_event_loop_without_the_lock() {
    let image = Image::new(&content());
    let mut driver = stuck(&image, Way::Uring);
    driver.read_without_waiting(16);
    driver.registers.reset_wait = Duration::from_secs(30);
    thread::scope(|scope| {
        let registers = &driver.registers;
        let vcpu = scope.spawn(|| {
            assert!(registers.write(STATUS, &0u32.to_le_bytes()).is_continue());
            let mut status = [0xff; 4];
            registers.read(STATUS, &mut status);
            assert_eq!(status, [0; 4]);
        });
        driver.manager.run_with_timeout(30).unwrap(); // takes the lock
        let pid = driver.virtio.lock().unwrap().device.engine.process_id();
        kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
        while !vcpu.is_finished() {
            driver.manager.run_with_timeout(30).unwrap();
        }
    });
}

#[test]
fn a_vcpu_that_resets_a_device_does_not_wait_for_ever() {
    let image = Image::new(&content());
    let mut driver = stuck(&image, Way::Uring);
    driver.read_without_waiting(16);
    driver.registers.reset_wait = Duration::from_millis(20);
    driver.write(STATUS, 0);
    assert_eq!(driver.read(STATUS), RUNNING);
    driver.signal(Signal::SIGCONT);
    driver.wait_for(|driver| driver.read(STATUS) == 0);
}

#[test]
fn requests_that_do_not_end_in_time_are_abandoned() {
    for way in [Way::Uring, Way::Calls] {
        let image = Image::new(&content());
        let mut driver = stuck(&image, way);
        driver.read_without_waiting(64);
        let began = Instant::now();
        let deadline = began + Duration::from_millis(50);
        assert_eq!(driver.virtio.lock().unwrap().device.drain(deadline), 64);
        assert!(Instant::now() >= deadline);
        let pid = Pid::from_raw(driver.virtio.lock().unwrap().device.engine.process_id());
        drop(driver);
        assert!(began.elapsed() < Duration::from_secs(10));
        let why = Disk::open(&image.0, false, false).unwrap_err().to_string();
        assert!(why.contains("it is already a disk of this guest"), "still locked: {why}");
        kill(pid, Signal::SIGCONT).unwrap();
        let ended = waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
        assert_eq!(ended, WaitStatus::Exited(pid, 0));
        drop(image.open(false));
    }
}

#[test]
fn a_disk_that_is_stopped_finishes_its_requests_and_releases_its_lock() {
    for way in WAYS {
        let image = Image::of(way, &content());
        let Some(mut driver) = running(&image, way, false) else { continue };
        driver.put(HEADER, &[header(OUT, 5), vec![0x55; 512]].concat());
        driver.request(0, &[(HEADER, 528)], &[(RESULT, 1)]);
        {
            let mut virtio = driver.virtio.lock().unwrap();
            let deadline = Instant::now() + Duration::from_secs(30);
            // One that has not begun may fail, but it has ended.
            assert_eq!(virtio.device.drain(deadline), 0, "{way:?}");
            virtio.device.wait(deadline);
        }
        drop(image.open(false));
    }
}
