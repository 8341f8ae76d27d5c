#![expect(clippy::cast_possible_truncation, reason = "lengths and numbers are small")]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::connection::BUF_ALLOC;
use super::muxer::{MAX_CONNECTIONS, MAX_PENDING_RSTS};
use super::packet::{HEADER_LEN, HOST_CID, Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};
use super::*;
use crate::device::virtio::testing::*;

// The queues.
const RX: u32 = 0;
const TX: u32 = 1;
const CID: u64 = 3;
/// The host port for which a host program listens.
const HOST_PORT: u32 = 52;
/// Length of each receive buffer.
const RX_BUFFER_LEN: u32 = 1024;
/// Address of the packets that the guest sends.
const TX_BUFFER: u64 = BUFFERS + 0x8000;
/// `buf_alloc` in the packets of the guest.
const GUEST_BUF_ALLOC: u32 = 10_000;

/// A guest driver and a listening host program.
struct Fixture {
    driver: Driver<Vsock>,
    dir: PathBuf,
    listener: UnixListener,
    received: u16, // number of packets
}

impl Drop for Fixture {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

impl Fixture {
    fn new() -> Self {
        let mut fixture = Self::without_driver();
        fixture.start();
        fixture
    }

    /// Starts the driver, which posts receive buffers.
    fn start(&mut self) {
        self.driver.start(VERSION_1);
        self.received = 0;
        (0..SIZE).for_each(|number| self.post(number));
        self.driver.notify(RX);
    }

    fn without_driver() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("kickvm-vsock-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).unwrap();
        let listener = UnixListener::bind(dir.join(format!("s_{HOST_PORT}"))).unwrap();
        listener.set_nonblocking(true).unwrap();
        let device = Vsock::new(CID as u32, UdsListener::bind(&dir.join("s")).unwrap());
        Self { driver: Driver::new(device), dir, listener, received: 0 }
    }

    fn post(&mut self, number: u16) {
        let address = BUFFERS + u64::from(number) * u64::from(RX_BUFFER_LEN);
        self.driver.put_descriptor(rings(RX)[0] + u64::from(number) * 16, (address, RX_BUFFER_LEN, WRITE, 0));
        self.driver.offer(RX, number);
    }

    /// Returns the packets received so far and posts their buffers again, without a notification.
    fn take(&mut self) -> Vec<(Header, Vec<u8>)> {
        let used = rings(RX)[2];
        let index: u16 = self.driver.memory.read_obj(GuestAddress(used + 2)).unwrap();
        let packets = (self.received..index).map(|index| {
            let at = used + 4 + u64::from(index % SIZE) * 8;
            let [head, len] = [at, at + 4].map(|at| self.driver.memory.read_obj::<u32>(GuestAddress(at)).unwrap());
            let bytes = self.driver.get(BUFFERS + u64::from(head) * u64::from(RX_BUFFER_LEN), len as usize);
            let header = Header::from_bytes(bytes[..HEADER_LEN].try_into().unwrap());
            assert_eq!(header.len as usize, bytes.len() - HEADER_LEN);
            assert_eq!(header.dst_cid, CID);
            (head as u16, (header, bytes[HEADER_LEN..].to_vec()))
        });
        let (heads, packets): (Vec<_>, Vec<_>) = packets.unzip();
        self.received = index;
        heads.into_iter().for_each(|head| self.post(head));
        packets
    }

    /// Receives packets until the device has no more.
    fn packets(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        loop {
            self.driver.run();
            match self.take() {
                some if some.is_empty() => return packets,
                some => packets.extend(some),
            }
            self.driver.notify(RX);
        }
    }

    /// Receives packets until the device has no more, and checks operation, length and flags of each.
    #[track_caller]
    fn expect(&mut self, expected: &[(u16, u32, u32)]) -> Vec<(Header, Vec<u8>)> {
        let packets = self.packets();
        let seen: Vec<_> = packets.iter().map(|(header, _)| (header.op, header.len, header.flags)).collect();
        assert_eq!(seen, expected);
        packets
    }

    fn send(&mut self, header: Header, content: &[u8]) {
        self.driver.put(TX_BUFFER, &[&header.to_bytes(), content].concat());
        self.driver.request(
            TX,
            &[(TX_BUFFER, HEADER_LEN as u32), (TX_BUFFER + HEADER_LEN as u64, content.len() as u32)],
            &[],
        );
    }

    /// Sends a packet of the connection from guest port 1000 to host port `port`.
    fn send_op(&mut self, port: u32, op: u16, content: &[u8]) {
        self.send(Header { len: content.len() as u32, ..packet(1000, port, op) }, content);
    }

    /// Connects from guest port 1000 to [`HOST_PORT`].
    fn connect_from_guest(&mut self) -> UnixStream {
        self.send_op(HOST_PORT, op::REQUEST, &[]);
        self.expect(&[(op::RESPONSE, 0, 0)]);
        let stream = self.listener.accept().unwrap().0;
        stream.set_nonblocking(true).unwrap();
        stream
    }

    /// Connects a host program, which sends `line`.
    fn connect_from_host(&mut self, line: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.dir.join("s")).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        stream
    }
}

fn packet(guest: u32, host: u32, op: u16) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: guest,
        dst_port: host,
        socket_type: TYPE_STREAM,
        op,
        buf_alloc: GUEST_BUF_ALLOC,
        ..Header::default()
    }
}

/// Reads until there is nothing more to read now.
fn read_all(mut stream: &UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    let mut len = 0;
    while let Ok(more @ 1..) = stream.read(&mut bytes[len..]) {
        len += more;
    }
    bytes.truncate(len);
    bytes
}

#[track_caller]
fn assert_closed(mut stream: &UnixStream) {
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[track_caller]
fn assert_open(mut stream: &UnixStream) {
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn the_configuration_space_has_the_context_identifier() {
    let fixture = Fixture::new();
    assert_eq!([CONFIG, CONFIG + 4].map(|at| fixture.driver.read(at)), [3, 0]);
}

#[test]
fn a_guest_program_connects_to_the_host() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.connect_from_guest();
    fixture.send_op(HOST_PORT, op::RW, b"question");
    assert_eq!(read_all(&stream), b"question");
    stream.write_all(b"answer").unwrap();
    let packets = fixture.expect(&[(op::RW, 6, 0)]);
    let (header, content) = &packets[0];
    assert_eq!((header.src_port, header.dst_port, header.socket_type), (HOST_PORT, 1000, TYPE_STREAM));
    assert_eq!((header.fwd_cnt, header.buf_alloc, &content[..]), (8, BUF_ALLOC, &b"answer"[..]));
}

#[test]
fn a_host_program_connects_to_the_guest() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.connect_from_host("CONNECT 1000\nearly");
    let packets = fixture.expect(&[(op::REQUEST, 0, 0)]);
    let port = packets[0].0.src_port;
    assert!(port >= 1 << 30);
    assert_open(&stream);
    fixture.send_op(port, op::RESPONSE, &[]);
    assert_eq!(read_all(&stream), format!("OK {port}\n").as_bytes());
    assert_eq!(fixture.expect(&[(op::RW, 5, 0)])[0].1, b"early");
    stream.write_all(b"late").unwrap();
    fixture.send_op(port, op::RW, b"reply");
    assert_eq!(read_all(&stream), b"reply");
    assert_eq!(fixture.expect(&[(op::RW, 4, 0)])[0].1, b"late");

    let other = fixture.connect_from_host("CONNECT 1000\n");
    assert_ne!(fixture.expect(&[(op::REQUEST, 0, 0)])[0].0.src_port, port);
    assert_open(&other);
}

#[test]
fn a_connection_without_a_listener_is_refused() {
    let mut fixture = Fixture::new();
    fixture.send_op(HOST_PORT + 1, op::REQUEST, &[]);
    let packets = fixture.expect(&[(op::RST, 0, 0)]);
    assert_eq!((packets[0].0.src_port, packets[0].0.dst_port), (HOST_PORT + 1, 1000));
    // An operation on a connection that does not exist is answered by RST, except an RST.
    for op in [0, op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 8, 0xffff] {
        fixture.send_op(HOST_PORT, op, &[]);
        fixture.expect(&[(op::RST, 0, 0)]);
    }
    fixture.send_op(HOST_PORT, op::RST, &[]);
    fixture.expect(&[]);
    fixture.send(Header { dst_cid: 4, ..packet(1000, HOST_PORT, op::REQUEST) }, &[]);
    assert_eq!(fixture.expect(&[(op::RST, 0, 0)])[0].0.src_cid, 4);
    fixture.send(Header { socket_type: 2, ..packet(1000, HOST_PORT, op::REQUEST) }, &[]);
    fixture.expect(&[(op::RST, 0, 0)]);
    fixture.send(Header { src_cid: 4, ..packet(1000, HOST_PORT, op::REQUEST) }, &[]);
    fixture.expect(&[]);
    assert_eq!(fixture.listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);

    let stream = fixture.connect_from_host("CONNECT 1000\n");
    let port = fixture.expect(&[(op::REQUEST, 0, 0)])[0].0.src_port;
    fixture.send_op(port, op::RST, &[]);
    fixture.expect(&[]);
    assert_closed(&stream);
    for line in ["CONNECT\n", "\n", "CONNECT 1 2\n", "GET / HTTP/1.1\r\n", "CONNECT 99999999999999999999999999"] {
        let stream = fixture.connect_from_host(line);
        fixture.expect(&[]);
        assert!(matches!((&stream).read(&mut [0]), Ok(0) | Err(_)), "{line}");
    }
}

#[test]
fn each_side_can_shut_down_sending_and_still_receive() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.connect_from_guest();
    fixture.send_op(HOST_PORT, op::RW, b"question");
    fixture.send(Header { flags: SHUTDOWN_SEND, ..packet(1000, HOST_PORT, op::SHUTDOWN) }, &[]);
    assert_eq!(read_all(&stream), b"question");
    assert_closed(&stream);
    stream.write_all(b"answer").unwrap();
    fixture.expect(&[(op::RW, 6, 0)]);
    drop(stream);
    fixture.expect(&[(op::SHUTDOWN, 0, SHUTDOWN_SEND | SHUTDOWN_RECEIVE)]);
    fixture.send_op(HOST_PORT, op::RST, &[]);
    fixture.expect(&[]);

    let mut stream = fixture.connect_from_guest();
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    fixture.expect(&[(op::RW, 8, 0), (op::SHUTDOWN, 0, SHUTDOWN_SEND)]);
    fixture.send_op(HOST_PORT, op::RW, b"answer");
    fixture.send(Header { flags: SHUTDOWN_SEND | SHUTDOWN_RECEIVE, ..packet(1000, HOST_PORT, op::SHUTDOWN) }, &[]);
    assert_eq!(read_all(&stream), b"answer");
    assert_closed(&stream);
    fixture.expect(&[(op::RST, 0, 0)]);
}

#[test]
fn data_that_a_host_program_sends_before_closing_arrives() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.connect_from_guest();
    stream.write_all(&[7; 3000]).unwrap();
    drop(stream);
    // The guest still writes to the closed socket.
    fixture.send_op(HOST_PORT, op::RW, b"discarded");
    let max_payload = RX_BUFFER_LEN - HEADER_LEN as u32;
    let packets = fixture.packets();
    let sum: u32 = packets.iter().map(|(header, _)| header.len).sum();
    assert_eq!((packets[0].0.len, sum), (max_payload, 3000));
    assert_eq!(
        packets.last().map(|(header, _)| (header.op, header.flags)),
        Some((op::SHUTDOWN, SHUTDOWN_SEND | SHUTDOWN_RECEIVE))
    );
    assert!(packets.iter().all(|(header, _)| header.op != op::RST));
}

#[test]
fn the_device_does_not_exceed_the_credit_of_the_guest() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.connect_from_guest();
    stream.write_all(&[1; 30_000]).unwrap();
    let receive = |fixture: &mut Fixture| -> (u32, bool) {
        let packets = fixture.packets();
        let requested = packets.iter().any(|(header, _)| header.op == op::CREDIT_REQUEST);
        (packets.iter().map(|(header, _)| header.len).sum(), requested)
    };
    assert_eq!(receive(&mut fixture), (GUEST_BUF_ALLOC, true));
    fixture.driver.run();
    fixture.send(Header { fwd_cnt: 4000, ..packet(1000, HOST_PORT, op::CREDIT_UPDATE) }, &[]);
    assert_eq!(receive(&mut fixture), (4000, true));
    fixture.send(Header { fwd_cnt: 4000, ..packet(1000, HOST_PORT, op::CREDIT_UPDATE) }, &[]);
    assert_eq!(receive(&mut fixture), (0, false), "values that have not changed cause no CREDIT_REQUEST");
    // If the guest claims to have consumed more than was sent, there is no credit.
    fixture.send(Header { fwd_cnt: 20_000, ..packet(1000, HOST_PORT, op::CREDIT_UPDATE) }, &[]);
    assert_eq!(receive(&mut fixture).0, 0);
    fixture.send(Header { fwd_cnt: 14_000, ..packet(1000, HOST_PORT, op::CREDIT_UPDATE) }, &[]);
    assert_eq!(receive(&mut fixture).0, GUEST_BUF_ALLOC);
    // The rest and the SHUTDOWN arrive although the host program has closed its end before.
    drop(stream);
    fixture.driver.run();
    fixture.send(Header { fwd_cnt: 24_000, ..packet(1000, HOST_PORT, op::CREDIT_UPDATE) }, &[]);
    let packets = fixture.packets();
    assert_eq!(packets.iter().map(|(header, _)| header.len).sum::<u32>(), 6000);
    assert_eq!(packets.last().map(|(header, _)| header.flags), Some(SHUTDOWN_SEND | SHUTDOWN_RECEIVE));
}

/// Uses up the credit of a connection whose host program does not read. Returns the number of bytes sent.
fn fill(fixture: &mut Fixture, port: u32) -> usize {
    let block = [5; 8000];
    let mut total = 0;
    let mut reported = 0;
    while total + block.len() <= reported + BUF_ALLOC as usize {
        fixture.send_op(port, op::RW, &block);
        total += block.len();
        let updates = fixture.packets();
        assert!(updates.iter().all(|(header, _)| header.op == op::CREDIT_UPDATE));
        reported = updates.last().map_or(reported, |(header, _)| header.fwd_cnt as usize);
    }
    total
}

#[test]
fn a_host_program_that_never_reads_does_not_block_other_connections() {
    let mut fixture = Fixture::new();
    let stuck = fixture.connect_from_guest();
    let sent = fill(&mut fixture, HOST_PORT);
    fixture.driver.run(); // the loop becomes idle

    fixture.send(packet(1001, HOST_PORT, op::REQUEST), &[]);
    fixture.expect(&[(op::RESPONSE, 0, 0)]);
    let other = fixture.listener.accept().unwrap().0;
    other.set_nonblocking(true).unwrap();
    fixture.send(Header { len: 5, ..packet(1001, HOST_PORT, op::RW) }, b"hello");
    assert_eq!(read_all(&other), b"hello");

    // When the host program reads, the guest gets credit updates and no byte is lost.
    fixture.send(Header { flags: SHUTDOWN_SEND, ..packet(1000, HOST_PORT, op::SHUTDOWN) }, &[]);
    let mut got = 0;
    loop {
        match read_all(&stuck).len() {
            0 => break,
            len => got += len,
        }
        assert!(fixture.packets().iter().all(|(header, _)| header.op == op::CREDIT_UPDATE));
    }
    assert_closed(&stuck);
    assert_eq!(got, sent);
}

#[test]
fn data_that_the_guest_sends_before_closing_arrives() {
    for op in [op::RST, op::SHUTDOWN] {
        let mut fixture = Fixture::new();
        let slow = fixture.connect_from_guest();
        let sent = fill(&mut fixture, HOST_PORT);
        fixture.send(Header { flags: SHUTDOWN_SEND | SHUTDOWN_RECEIVE, ..packet(1000, HOST_PORT, op) }, &[]);
        fixture.expect(&[]);
        // The guest may use the ports of a reset connection again.
        let again = (op == op::RST).then(|| fixture.connect_from_guest());
        let mut got = 0;
        while let len @ 1.. = read_all(&slow).len() {
            got += len;
            fixture.driver.run();
        }
        assert_eq!(got, sent);
        assert_closed(&slow);
        match again {
            Some(again) => assert_open(&again),
            None => assert_eq!(fixture.packets().last().map(|(header, _)| header.op), Some(op::RST)),
        }
    }
}

#[test]
fn a_connection_on_which_the_guest_exceeds_its_credit_is_reset() {
    let mut fixture = Fixture::new();
    let stuck = fixture.connect_from_guest();
    fill(&mut fixture, HOST_PORT);
    fixture.send(packet(1001, HOST_PORT, op::REQUEST), &[]);
    fixture.expect(&[(op::RESPONSE, 0, 0)]);
    let other = fixture.listener.accept().unwrap().0;
    other.set_nonblocking(true).unwrap();
    fixture.send_op(HOST_PORT, op::RW, &[5; 8000]);
    fixture.expect(&[(op::RST, 0, 0)]);
    while let 1.. = read_all(&stuck).len() {}
    assert_closed(&stuck);
    fixture.send(Header { len: 5, ..packet(1001, HOST_PORT, op::RW) }, b"hello");
    assert_eq!(read_all(&other), b"hello");
}

#[test]
fn an_invalid_packet_resets_its_connection() {
    for header in [
        packet(1000, HOST_PORT, op::REQUEST),
        packet(1000, HOST_PORT, op::RESPONSE),
        packet(1000, HOST_PORT, 0),
        packet(1000, HOST_PORT, 8),
        Header { len: 1, ..packet(1000, HOST_PORT, op::RW) }, // without payload
        Header { len: u32::MAX, ..packet(1000, HOST_PORT, op::RW) },
    ] {
        let mut fixture = Fixture::new();
        let stream = fixture.connect_from_guest();
        fixture.send(header, &[]);
        fixture.expect(&[(op::RST, 0, 0)]);
        assert_closed(&stream);
        fixture.connect_from_guest();
    }
    let mut fixture = Fixture::new();
    let stream = fixture.connect_from_guest();
    fixture.send(Header { flags: SHUTDOWN_SEND, ..packet(1000, HOST_PORT, op::SHUTDOWN) }, &[]);
    fixture.send_op(HOST_PORT, op::RW, b"more");
    fixture.expect(&[(op::RST, 0, 0)]);
    assert_closed(&stream);
    // A packet without a complete header belongs to no connection.
    fixture.driver.request(TX, &[(TX_BUFFER, HEADER_LEN as u32 - 1)], &[]);
    fixture.driver.request(TX, &[], &[(TX_BUFFER, 100)]);
    fixture.expect(&[]);
    assert_eq!(fixture.driver.read(STATUS), RUNNING);
}

#[test]
fn pending_rst_packets_are_bounded() {
    let mut fixture = Fixture::without_driver();
    fixture.driver.start(VERSION_1); // without receive buffers
    fixture.driver.put(TX_BUFFER, &packet(1, 2, op::RW).to_bytes());
    fixture.driver.put_descriptor(rings(TX)[0], (TX_BUFFER, HEADER_LEN as u32, 0, 0));
    let taken = |fixture: &Fixture| fixture.driver.memory.read_obj::<u16>(GuestAddress(rings(TX)[2] + 2)).unwrap();
    for _ in 0..MAX_PENDING_RSTS / usize::from(SIZE) + 1 {
        (0..SIZE).for_each(|_| fixture.driver.offer(TX, 0));
        fixture.driver.notify(TX);
    }
    assert_eq!(usize::from(taken(&fixture)), MAX_PENDING_RSTS);
    (0..SIZE).for_each(|number| fixture.post(number));
    fixture.driver.notify(RX);
    assert_eq!(fixture.packets().len(), MAX_PENDING_RSTS + usize::from(SIZE));
    assert_eq!(usize::from(taken(&fixture)), MAX_PENDING_RSTS + usize::from(SIZE));
}

#[test]
fn beyond_the_maximum_host_programs_wait_and_the_guest_is_refused() {
    let mut fixture = Fixture::new();
    let mut streams: Vec<_> = (0..MAX_CONNECTIONS).map(|_| fixture.connect_from_host("CONNECT 7\n")).collect();
    assert_eq!(fixture.packets().len(), MAX_CONNECTIONS);
    let last = fixture.connect_from_host("CONNECT 8\n");
    fixture.expect(&[]); // and the loop becomes idle
    fixture.send_op(HOST_PORT, op::REQUEST, &[]);
    fixture.expect(&[(op::RST, 0, 0)]);
    streams.pop();
    fixture.driver.run();
    let packets = fixture.packets();
    let seen: Vec<_> = packets.iter().map(|(header, _)| (header.op, header.dst_port)).collect();
    assert_eq!(seen, [(op::RST, 7), (op::REQUEST, 8)]);
    assert_open(&last);
}

#[test]
fn a_new_connection_replaces_the_oldest_without_a_command() {
    let mut fixture = Fixture::new();
    let mut unidentified: Vec<_> = (0..MAX_CONNECTIONS).map(|_| fixture.connect_from_host("")).collect();
    let identified = fixture.connect_from_host("CONNECT 7\n");
    fixture.expect(&[(op::REQUEST, 0, 0)]);
    assert_closed(&unidentified.remove(0));
    unidentified.iter().for_each(assert_open);
    assert_open(&identified);
    fixture.connect_from_guest();
    assert_closed(&unidentified.remove(0));
    // The same after the guest has been active.
    fixture.send_op(HOST_PORT, op::CREDIT_REQUEST, &[]);
    fixture.packets();
    let identified = fixture.connect_from_host("CONNECT 8\n");
    fixture.expect(&[(op::REQUEST, 0, 0)]);
    assert_open(&identified);
    assert_closed(&unidentified.remove(0));
    unidentified.iter().for_each(assert_open);
}

#[test]
fn a_connection_whose_command_has_arrived_is_not_replaced() {
    let mut fixture = Fixture::new();
    let unidentified = fixture.connect_from_host("");
    let identified: Vec<_> = (0..MAX_CONNECTIONS + 1).map(|_| fixture.connect_from_host("CONNECT 7\n")).collect();
    assert_eq!(fixture.packets().len(), MAX_CONNECTIONS);
    assert_closed(&unidentified);
    identified.iter().for_each(assert_open);
}

#[test]
fn a_receive_buffer_without_space_for_payload_stops_only_its_queue() {
    let mut fixture = Fixture::without_driver();
    fixture.driver.start(VERSION_1);
    fixture.driver.request(RX, &[], &[(BUFFERS, HEADER_LEN as u32)]);
    fixture.send_op(HOST_PORT, op::REQUEST, &[]);
    assert_eq!(fixture.driver.read(STATUS), RUNNING | NEEDS_RESET);
    let mut stream = fixture.listener.accept().unwrap().0;
    stream.set_nonblocking(true).unwrap();
    stream.write_all(b"hello").unwrap();
    fixture.driver.run(); // the loop becomes idle
    fixture.send_op(HOST_PORT, op::RW, b"hello");
    assert_eq!(read_all(&stream), b"hello");
}

#[test]
fn a_device_reset_closes_all_connections() {
    let mut fixture = Fixture::new();
    let (established, requested, unidentified) =
        (fixture.connect_from_guest(), fixture.connect_from_host("CONNECT 7\n"), fixture.connect_from_host("CONN"));
    fixture.expect(&[(op::REQUEST, 0, 0)]);
    fixture.driver.write(STATUS, 0);
    [&established, &requested, &unidentified].into_iter().for_each(assert_closed);
    fixture.driver.run();
    fixture.start();
    fixture.expect(&[]);
    fixture.connect_from_guest();
}

#[test]
fn without_a_driver_host_programs_are_disconnected() {
    let mut fixture = Fixture::without_driver();
    let stream = fixture.connect_from_host("CONNECT 7\n");
    fixture.driver.run();
    assert!(matches!((&stream).read(&mut [0]), Ok(0) | Err(_)));
    fixture.start();
    fixture.connect_from_guest();
}

/// Packets most of which pass the first checks.
fn any_packet() -> impl Strategy<Value = (Header, usize)> {
    let header = (
        prop_oneof![9 => Just(CID), 1 => any::<u64>()],
        prop_oneof![9 => Just(HOST_CID), 1 => any::<u64>()],
        1000u32..1004,
        prop_oneof![Just(HOST_PORT), Just(HOST_PORT + 1), (1u32 << 30)..(1 << 30) + 4],
        prop_oneof![9 => Just(TYPE_STREAM), 1 => any::<u16>()],
        0u16..9,
        0u32..4,
        (prop_oneof![0u32..20_000, any::<u32>()], prop_oneof![0u32..20_000, any::<u32>()]),
    );
    (header, prop_oneof![9 => Just(None), 1 => any::<u32>().prop_map(Some)], 0usize..5000).prop_map(
        |((src_cid, dst_cid, src_port, dst_port, socket_type, op, flags, (buf_alloc, fwd_cnt)), len, content)| {
            let len = len.unwrap_or(content as u32);
            (Header { src_cid, dst_cid, src_port, dst_port, len, socket_type, op, flags, buf_alloc, fwd_cnt }, content)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// After arbitrary packets the loop becomes idle, and the device works after a reset.
    #[test]
    fn arbitrary_packets_do_not_break_the_device(
        steps in proptest::collection::vec((any_packet(), any::<[bool; 6]>()), 1..60),
    ) {
        let mut fixture = Fixture::new();
        let mut streams = Vec::new();
        for ((header, content), [greets, reads, writes, closes, takes, cuts]) in steps {
            if greets {
                streams.push(fixture.connect_from_host("CONNECT 1000\n"));
            }
            if cuts {
                fixture.driver.put(TX_BUFFER, &header.to_bytes());
                fixture.driver.request(TX, &[(TX_BUFFER, content as u32 % 50), (TX_BUFFER, 1)], &[]);
            } else {
                fixture.send(header, &vec![3; content]);
            }
            if let Ok((stream, _)) = fixture.listener.accept() {
                stream.set_nonblocking(true).unwrap();
                streams.push(stream);
            }
            if writes {
                streams.iter_mut().for_each(|stream| drop(stream.write(&[4; 3000])));
            }
            if reads {
                streams.iter().for_each(|stream| drop(read_all(stream)));
            }
            if closes {
                streams.pop();
            }
            fixture.driver.run();
            if takes {
                fixture.packets();
            }
        }
        fixture.driver.write(STATUS, 0);
        while fixture.listener.accept().is_ok() {}
        fixture.start();
        fixture.connect_from_guest();
    }

    /// After arbitrary descriptors the loop becomes idle, and the device works after a reset.
    #[test]
    fn arbitrary_descriptors_do_not_break_the_device(
        table in proptest::collection::vec((0u64..0x2000, 0u32..0x2000, 0u16..8, 0u16..SIZE + 1), SIZE as usize),
        heads in proptest::collection::vec((0u32..3, 0u16..SIZE + 1), 1..40),
        header in any_packet(),
    ) {
        let mut fixture = Fixture::without_driver();
        fixture.driver.start(VERSION_1);
        fixture.driver.put(BUFFERS, &header.0.to_bytes());
        for (n, (address, len, flags, next)) in (0..).zip(table) {
            let address = if address < 0x1000 { BUFFERS } else { BUFFERS + address };
            let descriptor = (address, len, flags, next);
            (0..3).for_each(|queue| fixture.driver.put_descriptor(rings(queue)[0] + n * 16, descriptor));
        }
        for (queue, head) in heads {
            fixture.driver.offer(queue, head);
            fixture.driver.notify(queue);
        }
        fixture.driver.write(STATUS, 0);
        fixture.start();
        fixture.connect_from_guest();
    }
}
