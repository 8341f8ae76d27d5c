use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::connection::BUFFER;
use super::muxer::{MAX_CONNECTIONS, MAX_REFUSALS};
use super::packet::{HEADER, HOST_CID, Header, NO_RECEIVE, NO_SEND, STREAM, op};
use super::*;
use crate::device::virtio::testing::*;

const RX: u32 = RECEIVE;
const TX: u32 = TRANSMIT;
const CID: u64 = 3;
/// A port of the host that somebody listens at.
const SERVED: u32 = 52;
/// Bytes of each of the guest's receive buffers.
const ROOM: u32 = 1024;
/// Where the guest puts the packet it sends.
const SENT: u64 = BUFFERS + 0x8000;
/// What the guest says it can hold.
const GUEST_BUFFER: u32 = 10_000;

/// A guest, and programs on the host.
struct Bench {
    driver: Driver<Vsock>,
    dir: PathBuf,
    served: UnixListener,
    received: u16, // packets
}

impl Drop for Bench {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self::without_driver();
        bench.start();
        bench
    }

    /// The driver starts, and gives the device buffers.
    fn start(&mut self) {
        self.driver.start(VERSION_1);
        self.received = 0;
        (0..SIZE).for_each(|number| self.give(number));
        self.driver.notify(RX);
    }

    fn without_driver() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("kickvm-vsock-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).unwrap();
        let served = UnixListener::bind(dir.join(format!("s_{SERVED}"))).unwrap();
        served.set_nonblocking(true).unwrap();
        let device = Vsock::new(CID as u32, UdsListener::bind(&dir.join("s")).unwrap());
        Self { driver: Driver::new(device), dir, served, received: 0 }
    }

    fn give(&mut self, number: u16) {
        let address = BUFFERS + u64::from(number) * u64::from(ROOM);
        self.driver.put_descriptor(rings(RX)[0] + u64::from(number) * 16, (address, ROOM, WRITE, 0));
        self.driver.offer(RX, number);
    }

    /// Takes the packets that have come, without giving their buffers back.
    fn take(&mut self) -> Vec<(Header, Vec<u8>)> {
        let used = rings(RX)[2];
        let index: u16 = self.driver.memory.read_obj(GuestAddress(used + 2)).unwrap();
        let packets = (self.received..index).map(|index| {
            let at = used + 4 + u64::from(index % SIZE) * 8;
            let [head, len] = [at, at + 4].map(|at| self.driver.memory.read_obj::<u32>(GuestAddress(at)).unwrap());
            let bytes = self.driver.get(BUFFERS + u64::from(head) * u64::from(ROOM), len as usize);
            let header = Header::from_bytes(bytes[..HEADER].try_into().unwrap());
            assert_eq!(header.len as usize, bytes.len() - HEADER);
            assert_eq!(header.dst_cid, CID);
            (head as u16, (header, bytes[HEADER..].to_vec()))
        });
        let (heads, packets): (Vec<_>, Vec<_>) = packets.unzip();
        self.received = index;
        heads.into_iter().for_each(|head| self.give(head));
        packets
    }

    /// Takes all packets that come, giving the device buffers again and again.
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

    /// Takes what has come: operation, length and flags of each packet.
    #[track_caller]
    fn expect(&mut self, expected: &[(u16, u32, u32)]) -> Vec<(Header, Vec<u8>)> {
        let packets = self.packets();
        let seen: Vec<_> = packets.iter().map(|(header, _)| (header.op, header.len, header.flags)).collect();
        assert_eq!(seen, expected);
        packets
    }

    fn send(&mut self, header: Header, content: &[u8]) {
        self.driver.put(SENT, &[&header.to_bytes(), content].concat());
        self.driver.request(TX, &[(SENT, HEADER as u32), (SENT + HEADER as u64, content.len() as u32)], &[]);
    }

    /// The guest's packet of a connection from its port 1000 to `port`.
    fn say(&mut self, port: u32, op: u16, content: &[u8]) {
        self.send(Header { len: content.len() as u32, ..packet(1000, port, op) }, content);
    }

    /// The guest connects to the host.
    fn connect(&mut self) -> UnixStream {
        self.say(SERVED, op::REQUEST, &[]);
        self.expect(&[(op::RESPONSE, 0, 0)]);
        let stream = self.served.accept().unwrap().0;
        stream.set_nonblocking(true).unwrap();
        stream
    }

    /// A host program says its first line.
    fn greet(&mut self, line: &str) -> UnixStream {
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
        kind: STREAM,
        op,
        buf_alloc: GUEST_BUFFER,
        ..Header::default()
    }
}

/// What there is to read.
fn read(mut stream: &UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    let mut len = 0;
    while let Ok(more @ 1..) = stream.read(&mut bytes[len..]) {
        len += more;
    }
    bytes.truncate(len);
    bytes
}

#[track_caller]
fn has_ended(mut stream: &UnixStream) {
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[track_caller]
fn is_open(mut stream: &UnixStream) {
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn the_guest_finds_its_context_identifier() {
    let bench = Bench::new();
    assert_eq!([CONFIG, CONFIG + 4].map(|at| bench.driver.read(at)), [3, 0]);
}

#[test]
fn a_guest_program_reaches_the_host() {
    let mut bench = Bench::new();
    let mut stream = bench.connect();
    bench.say(SERVED, op::RW, b"question");
    assert_eq!(read(&stream), b"question");
    stream.write_all(b"answer").unwrap();
    let packets = bench.expect(&[(op::RW, 6, 0)]);
    let (header, content) = &packets[0];
    assert_eq!((header.src_port, header.dst_port, header.kind), (SERVED, 1000, STREAM));
    assert_eq!((header.fwd_cnt, header.buf_alloc, &content[..]), (8, BUFFER as u32, &b"answer"[..]));
}

#[test]
fn a_host_program_reaches_the_guest() {
    let mut bench = Bench::new();
    let mut stream = bench.greet("CONNECT 1000\nearly");
    let packets = bench.expect(&[(op::REQUEST, 0, 0)]);
    let port = packets[0].0.src_port;
    assert!(port >= 1 << 30);
    is_open(&stream);
    bench.say(port, op::RESPONSE, &[]);
    assert_eq!(read(&stream), format!("OK {port}\n").as_bytes());
    assert_eq!(bench.expect(&[(op::RW, 5, 0)])[0].1, b"early");
    stream.write_all(b"late").unwrap();
    bench.say(port, op::RW, b"reply");
    assert_eq!(read(&stream), b"reply");
    assert_eq!(bench.expect(&[(op::RW, 4, 0)])[0].1, b"late");

    let other = bench.greet("CONNECT 1000\n");
    assert_ne!(bench.expect(&[(op::REQUEST, 0, 0)])[0].0.src_port, port);
    is_open(&other);
}

#[test]
fn who_cannot_be_reached_is_refused() {
    let mut bench = Bench::new();
    bench.say(SERVED + 1, op::REQUEST, &[]);
    let packets = bench.expect(&[(op::RST, 0, 0)]);
    assert_eq!((packets[0].0.src_port, packets[0].0.dst_port), (SERVED + 1, 1000));
    // Nothing that needs a connection is taken without one; a RST is not answered.
    for op in [0, op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 8, 0xffff] {
        bench.say(SERVED, op, &[]);
        bench.expect(&[(op::RST, 0, 0)]);
    }
    bench.say(SERVED, op::RST, &[]);
    bench.expect(&[]);
    bench.send(Header { dst_cid: 4, ..packet(1000, SERVED, op::REQUEST) }, &[]);
    assert_eq!(bench.expect(&[(op::RST, 0, 0)])[0].0.src_cid, 4);
    bench.send(Header { kind: 2, ..packet(1000, SERVED, op::REQUEST) }, &[]);
    bench.expect(&[(op::RST, 0, 0)]);
    bench.send(Header { src_cid: 4, ..packet(1000, SERVED, op::REQUEST) }, &[]);
    bench.expect(&[]);
    assert_eq!(bench.served.accept().unwrap_err().kind(), ErrorKind::WouldBlock);

    let stream = bench.greet("CONNECT 1000\n");
    let port = bench.expect(&[(op::REQUEST, 0, 0)])[0].0.src_port;
    bench.say(port, op::RST, &[]);
    bench.expect(&[]);
    has_ended(&stream);
    for line in ["CONNECT\n", "\n", "CONNECT 1 2\n", "GET / HTTP/1.1\r\n", "CONNECT 99999999999999999999999999"] {
        let stream = bench.greet(line);
        bench.expect(&[]);
        assert!(matches!((&stream).read(&mut [0]), Ok(0) | Err(_)), "{line}");
    }
}

#[test]
fn each_side_may_stop_sending_and_go_on_listening() {
    let mut bench = Bench::new();
    let mut stream = bench.connect();
    bench.say(SERVED, op::RW, b"question");
    bench.send(Header { flags: NO_SEND, ..packet(1000, SERVED, op::SHUTDOWN) }, &[]);
    assert_eq!(read(&stream), b"question");
    has_ended(&stream);
    stream.write_all(b"answer").unwrap();
    bench.expect(&[(op::RW, 6, 0)]);
    drop(stream);
    bench.expect(&[(op::SHUTDOWN, 0, NO_SEND | NO_RECEIVE)]);
    bench.say(SERVED, op::RST, &[]);
    bench.expect(&[]);

    let mut stream = bench.connect();
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    bench.expect(&[(op::RW, 8, 0), (op::SHUTDOWN, 0, NO_SEND)]);
    bench.say(SERVED, op::RW, b"answer");
    bench.send(Header { flags: NO_SEND | NO_RECEIVE, ..packet(1000, SERVED, op::SHUTDOWN) }, &[]);
    assert_eq!(read(&stream), b"answer");
    has_ended(&stream);
    bench.expect(&[(op::RST, 0, 0)]);
}

#[test]
fn what_a_host_program_sends_before_it_closes_arrives() {
    let mut bench = Bench::new();
    let mut stream = bench.connect();
    stream.write_all(&[7; 3000]).unwrap();
    drop(stream);
    // The guest writes on, to nobody.
    bench.say(SERVED, op::RW, b"unheard");
    let room = ROOM - HEADER as u32;
    let packets = bench.packets();
    let sum: u32 = packets.iter().map(|(header, _)| header.len).sum();
    assert_eq!((packets[0].0.len, sum), (room, 3000));
    assert_eq!(packets.last().map(|(header, _)| (header.op, header.flags)), Some((op::SHUTDOWN, NO_SEND | NO_RECEIVE)));
    assert!(packets.iter().all(|(header, _)| header.op != op::RST));
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let mut bench = Bench::new();
    let mut stream = bench.connect();
    stream.write_all(&[1; 30_000]).unwrap();
    let receive = |bench: &mut Bench| -> (u32, bool) {
        let packets = bench.packets();
        let asked = packets.iter().any(|(header, _)| header.op == op::CREDIT_REQUEST);
        (packets.iter().map(|(header, _)| header.len).sum(), asked)
    };
    assert_eq!(receive(&mut bench), (GUEST_BUFFER, true));
    bench.driver.run();
    bench.send(Header { fwd_cnt: 4000, ..packet(1000, SERVED, op::CREDIT_UPDATE) }, &[]);
    assert_eq!(receive(&mut bench), (4000, true));
    bench.send(Header { fwd_cnt: 4000, ..packet(1000, SERVED, op::CREDIT_UPDATE) }, &[]);
    assert_eq!(receive(&mut bench), (0, false), "no news, no question");
    // More taken than was ever sent is no room at all.
    bench.send(Header { fwd_cnt: 20_000, ..packet(1000, SERVED, op::CREDIT_UPDATE) }, &[]);
    assert_eq!(receive(&mut bench).0, 0);
    bench.send(Header { fwd_cnt: 14_000, ..packet(1000, SERVED, op::CREDIT_UPDATE) }, &[]);
    assert_eq!(receive(&mut bench).0, GUEST_BUFFER);
    // The rest, and the end, although the host program has closed meanwhile.
    drop(stream);
    bench.driver.run();
    bench.send(Header { fwd_cnt: 24_000, ..packet(1000, SERVED, op::CREDIT_UPDATE) }, &[]);
    let packets = bench.packets();
    assert_eq!(packets.iter().map(|(header, _)| header.len).sum::<u32>(), 6000);
    assert_eq!(packets.last().map(|(header, _)| header.flags), Some(NO_SEND | NO_RECEIVE));
}

/// Fills the way to a host program that does not read. Returns how much that was.
fn fill(bench: &mut Bench, port: u32) -> usize {
    let block = [5; 8000];
    let mut total = 0;
    let mut known = 0;
    while total + block.len() <= known + BUFFER {
        bench.say(port, op::RW, &block);
        total += block.len();
        let news = bench.packets();
        assert!(news.iter().all(|(header, _)| header.op == op::CREDIT_UPDATE));
        known = news.last().map_or(known, |(header, _)| header.fwd_cnt as usize);
    }
    total
}

#[test]
fn a_host_program_that_never_reads_holds_up_nobody_else() {
    let mut bench = Bench::new();
    let stuck = bench.connect();
    let sent = fill(&mut bench, SERVED);
    bench.driver.run(); // comes to rest

    bench.send(packet(1001, SERVED, op::REQUEST), &[]);
    bench.expect(&[(op::RESPONSE, 0, 0)]);
    let other = bench.served.accept().unwrap().0;
    other.set_nonblocking(true).unwrap();
    bench.send(Header { len: 5, ..packet(1001, SERVED, op::RW) }, b"hello");
    assert_eq!(read(&other), b"hello");

    // At last it does, and the guest is told of the room, and by the end has lost nothing.
    bench.send(Header { flags: NO_SEND, ..packet(1000, SERVED, op::SHUTDOWN) }, &[]);
    let mut got = 0;
    loop {
        match read(&stuck).len() {
            0 => break,
            len => got += len,
        }
        assert!(bench.packets().iter().all(|(header, _)| header.op == op::CREDIT_UPDATE));
    }
    has_ended(&stuck);
    assert_eq!(got, sent);
}

#[test]
fn what_a_guest_has_sent_before_it_leaves_arrives() {
    for op in [op::RST, op::SHUTDOWN] {
        let mut bench = Bench::new();
        let slow = bench.connect();
        let sent = fill(&mut bench, SERVED);
        bench.send(Header { flags: NO_SEND | NO_RECEIVE, ..packet(1000, SERVED, op) }, &[]);
        bench.expect(&[]);
        // A guest that is done with the connection may use its ports again.
        let again = (op == op::RST).then(|| bench.connect());
        let mut got = 0;
        while let len @ 1.. = read(&slow).len() {
            got += len;
            bench.driver.run();
        }
        assert_eq!(got, sent);
        has_ended(&slow);
        match again {
            Some(again) => is_open(&again),
            None => assert_eq!(bench.packets().last().map(|(header, _)| header.op), Some(op::RST)),
        }
    }
}

#[test]
fn a_guest_that_ignores_what_room_there_is_is_reset_on_that_connection() {
    let mut bench = Bench::new();
    let stuck = bench.connect();
    fill(&mut bench, SERVED);
    bench.send(packet(1001, SERVED, op::REQUEST), &[]);
    bench.expect(&[(op::RESPONSE, 0, 0)]);
    let other = bench.served.accept().unwrap().0;
    other.set_nonblocking(true).unwrap();
    bench.say(SERVED, op::RW, &[5; 8000]);
    bench.expect(&[(op::RST, 0, 0)]);
    while let 1.. = read(&stuck).len() {}
    has_ended(&stuck);
    bench.send(Header { len: 5, ..packet(1001, SERVED, op::RW) }, b"hello");
    assert_eq!(read(&other), b"hello");
}

#[test]
fn a_packet_out_of_order_resets_its_connection() {
    for header in [
        packet(1000, SERVED, op::REQUEST),
        packet(1000, SERVED, op::RESPONSE),
        packet(1000, SERVED, 0),
        packet(1000, SERVED, 8),
        Header { len: 1, ..packet(1000, SERVED, op::RW) }, // has no byte
        Header { len: u32::MAX, ..packet(1000, SERVED, op::RW) },
    ] {
        let mut bench = Bench::new();
        let stream = bench.connect();
        bench.send(header, &[]);
        bench.expect(&[(op::RST, 0, 0)]);
        has_ended(&stream);
        bench.connect();
    }
    let mut bench = Bench::new();
    let stream = bench.connect();
    bench.send(Header { flags: NO_SEND, ..packet(1000, SERVED, op::SHUTDOWN) }, &[]);
    bench.say(SERVED, op::RW, b"more");
    bench.expect(&[(op::RST, 0, 0)]);
    has_ended(&stream);
    // A packet without a whole header is nobody's.
    bench.driver.request(TX, &[(SENT, HEADER as u32 - 1)], &[]);
    bench.driver.request(TX, &[], &[(SENT, 100)]);
    bench.expect(&[]);
    assert_eq!(bench.driver.read(STATUS), RUNNING);
}

#[test]
fn refusals_that_the_guest_does_not_take_are_bounded() {
    let mut bench = Bench::without_driver();
    bench.driver.start(VERSION_1); // without receive buffers
    bench.driver.put(SENT, &packet(1, 2, op::RW).to_bytes());
    bench.driver.put_descriptor(rings(TX)[0], (SENT, HEADER as u32, 0, 0));
    let taken = |bench: &Bench| bench.driver.memory.read_obj::<u16>(GuestAddress(rings(TX)[2] + 2)).unwrap();
    for _ in 0..MAX_REFUSALS / usize::from(SIZE) + 1 {
        (0..SIZE).for_each(|_| bench.driver.offer(TX, 0));
        bench.driver.notify(TX);
    }
    assert_eq!(usize::from(taken(&bench)), MAX_REFUSALS);
    (0..SIZE).for_each(|number| bench.give(number));
    bench.driver.notify(RX);
    assert_eq!(bench.packets().len(), MAX_REFUSALS + usize::from(SIZE));
    assert_eq!(usize::from(taken(&bench)), MAX_REFUSALS + usize::from(SIZE));
}

#[test]
fn connections_are_bounded_and_whoever_is_too_many_waits_or_is_refused() {
    let mut bench = Bench::new();
    let mut streams: Vec<_> = (0..MAX_CONNECTIONS).map(|_| bench.greet("CONNECT 7\n")).collect();
    assert_eq!(bench.packets().len(), MAX_CONNECTIONS);
    let last = bench.greet("CONNECT 8\n");
    bench.expect(&[]); // and the loop comes to rest
    bench.say(SERVED, op::REQUEST, &[]);
    bench.expect(&[(op::RST, 0, 0)]);
    streams.pop();
    bench.driver.run();
    let packets = bench.packets();
    let seen: Vec<_> = packets.iter().map(|(header, _)| (header.op, header.dst_port)).collect();
    assert_eq!(seen, [(op::RST, 7), (op::REQUEST, 8)]);
    is_open(&last);
}

#[test]
fn whoever_says_nothing_makes_room_for_those_who_do() {
    let mut bench = Bench::new();
    let mut silent: Vec<_> = (0..MAX_CONNECTIONS).map(|_| bench.greet("")).collect();
    let asking = bench.greet("CONNECT 7\n");
    bench.expect(&[(op::REQUEST, 0, 0)]);
    has_ended(&silent.remove(0));
    silent.iter().for_each(is_open);
    is_open(&asking);
    bench.connect();
    has_ended(&silent.remove(0));
    // Whatever the guest does meanwhile.
    bench.say(SERVED, op::CREDIT_REQUEST, &[]);
    bench.packets();
    let asking = bench.greet("CONNECT 8\n");
    bench.expect(&[(op::REQUEST, 0, 0)]);
    is_open(&asking);
    has_ended(&silent.remove(0));
    silent.iter().for_each(is_open);
}

#[test]
fn whoever_has_said_what_it_wants_is_not_silent() {
    let mut bench = Bench::new();
    let silent = bench.greet("");
    let asking: Vec<_> = (0..MAX_CONNECTIONS + 1).map(|_| bench.greet("CONNECT 7\n")).collect();
    assert_eq!(bench.packets().len(), MAX_CONNECTIONS);
    has_ended(&silent);
    asking.iter().for_each(is_open);
}

#[test]
fn a_receive_buffer_without_room_for_a_byte_stops_its_queue_only() {
    let mut bench = Bench::without_driver();
    bench.driver.start(VERSION_1);
    bench.driver.request(RX, &[], &[(BUFFERS, HEADER as u32)]);
    bench.say(SERVED, op::REQUEST, &[]);
    assert_eq!(bench.driver.read(STATUS), RUNNING | NEEDS_RESET);
    let mut stream = bench.served.accept().unwrap().0;
    stream.set_nonblocking(true).unwrap();
    stream.write_all(b"hello").unwrap();
    bench.driver.run(); // comes to rest
    bench.say(SERVED, op::RW, b"hello");
    assert_eq!(read(&stream), b"hello");
}

#[test]
fn a_reset_ends_all_connections() {
    let mut bench = Bench::new();
    let (guests, hosts, greeting) = (bench.connect(), bench.greet("CONNECT 7\n"), bench.greet("CONN"));
    bench.expect(&[(op::REQUEST, 0, 0)]);
    bench.driver.write(STATUS, 0);
    [&guests, &hosts, &greeting].into_iter().for_each(has_ended);
    bench.driver.run();
    bench.start();
    bench.expect(&[]);
    bench.connect();
}

#[test]
fn without_a_driver_host_programs_are_turned_away() {
    let mut bench = Bench::without_driver();
    let stream = bench.greet("CONNECT 7\n");
    bench.driver.run();
    assert!(matches!((&stream).read(&mut [0]), Ok(0) | Err(_)));
    bench.start();
    bench.connect();
}

/// Packets that are almost right, so that more of them gets past the first check.
fn any_packet() -> impl Strategy<Value = (Header, usize)> {
    let header = (
        prop_oneof![9 => Just(CID), 1 => any::<u64>()],
        prop_oneof![9 => Just(HOST_CID), 1 => any::<u64>()],
        1000u32..1004,
        prop_oneof![Just(SERVED), Just(SERVED + 1), (1u32 << 30)..(1 << 30) + 4],
        prop_oneof![9 => Just(STREAM), 1 => any::<u16>()],
        0u16..9,
        0u32..4,
        (prop_oneof![0u32..20_000, any::<u32>()], prop_oneof![0u32..20_000, any::<u32>()]),
    );
    (header, prop_oneof![9 => Just(None), 1 => any::<u32>().prop_map(Some)], 0usize..5000).prop_map(
        |((src_cid, dst_cid, src_port, dst_port, kind, op, flags, (buf_alloc, fwd_cnt)), len, content)| {
            let len = len.unwrap_or(content as u32);
            (Header { src_cid, dst_cid, src_port, dst_port, len, kind, op, flags, buf_alloc, fwd_cnt }, content)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever a guest sends, the device survives, the loop comes to rest, and a reset mends it.
    #[test]
    fn no_guest_breaks_a_socket_device(
        steps in proptest::collection::vec((any_packet(), any::<[bool; 6]>()), 1..60),
    ) {
        let mut bench = Bench::new();
        let mut streams = Vec::new();
        for ((header, content), [greets, reads, writes, closes, takes, cuts]) in steps {
            if greets {
                streams.push(bench.greet("CONNECT 1000\n"));
            }
            if cuts {
                bench.driver.put(SENT, &header.to_bytes());
                bench.driver.request(TX, &[(SENT, content as u32 % 50), (SENT, 1)], &[]);
            } else {
                bench.send(header, &vec![3; content]);
            }
            if let Ok((stream, _)) = bench.served.accept() {
                stream.set_nonblocking(true).unwrap();
                streams.push(stream);
            }
            if writes {
                streams.iter_mut().for_each(|stream| drop(stream.write(&[4; 3000])));
            }
            if reads {
                streams.iter().for_each(|stream| drop(read(stream)));
            }
            if closes {
                streams.pop();
            }
            bench.driver.run();
            if takes {
                bench.packets();
            }
        }
        bench.driver.write(STATUS, 0);
        while bench.served.accept().is_ok() {}
        bench.start();
        bench.connect();
    }

    /// The same with rings of garbage.
    #[test]
    fn no_ring_breaks_a_socket_device(
        table in proptest::collection::vec((0u64..0x2000, 0u32..0x2000, 0u16..8, 0u16..SIZE + 1), SIZE as usize),
        heads in proptest::collection::vec((0u32..3, 0u16..SIZE + 1), 1..40),
        header in any_packet(),
    ) {
        let mut bench = Bench::without_driver();
        bench.driver.start(VERSION_1);
        bench.driver.put(BUFFERS, &header.0.to_bytes());
        for (n, (address, len, flags, next)) in (0..).zip(table) {
            let address = if address < 0x1000 { BUFFERS } else { BUFFERS + address };
            (0..3).for_each(|queue| bench.driver.put_descriptor(rings(queue)[0] + n * 16, (address, len, flags, next)));
        }
        for (queue, head) in heads {
            bench.driver.offer(queue, head);
            bench.driver.notify(queue);
        }
        bench.driver.write(STATUS, 0);
        bench.start();
        bench.connect();
    }
}
