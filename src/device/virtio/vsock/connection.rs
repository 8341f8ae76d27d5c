//! A stream between a program in the guest and a host program, which holds the other end of a Unix socket.
//!
//! ```text
//!    guest ── RW packets ──▶ backlog, up to BUF_ALLOC ──▶ socket    credit: the free part of BUF_ALLOC
//!    guest ◀── RW packets ─────────────────────────────── socket    credit: the guest's buf_alloc and fwd_cnt
//! ```
//!
//! Neither direction blocks: bytes that the socket does not accept stay in the backlog, and bytes for which the guest
//! has no buffer stay in the socket.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use vm_memory::GuestMemoryMmap;

use super::packet::{HEADER_LEN, HOST_CID, Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};
use crate::device::virtio::Buffers;
use crate::event::{self, EventOps, EventSet, Events};
use crate::sys::os_error::is_transient;
use crate::sys::vectored_io::{Direction, IoVecs};

/// Number of bytes from the guest that a connection can buffer for its host program.
pub const BUF_ALLOC: u32 = 256 << 10;
/// A CREDIT_UPDATE is sent when the guest underestimates its credit by this much (virtio 1.3, 5.10.6.3).
const CREDIT_UPDATE_THRESHOLD: u32 = BUF_ALLOC / 4;
/// Maximum payload of a packet to the guest.
const MAX_PAYLOAD: usize = 64 << 10;
/// Maximum length of a command: `CONNECT 4294967295` and a few spaces.
const MAX_COMMAND_LEN: usize = 32;

/// The port numbers that identify a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortPair {
    pub guest: u32,
    pub host: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The host program has not sent its `CONNECT` command completely, so the ports are unknown.
    Unidentified,
    /// A REQUEST is pending or sent, and the guest has not responded.
    Requested,
    /// Both sides have accepted.
    Established,
    /// The guest has reset the connection. It is closed when the backlog is written.
    Draining,
}

/// Flow control of both directions (virtio 1.3, 5.10.6.3).
#[derive(Debug, Default)]
pub struct Credit {
    fwd_cnt: Wrapping<u32>,
    last_fwd_cnt: Wrapping<u32>, // in the last packet to the guest
    tx_cnt: Wrapping<u32>,       // bytes sent to the guest
    peer_buf_alloc: u32,
    peer_fwd_cnt: Wrapping<u32>,
    requested: bool, // by a CREDIT_REQUEST since the guest's values changed
}

impl Credit {
    /// Stores the values that every packet of the guest carries.
    pub fn update(&mut self, header: &Header) {
        let values = (header.buf_alloc, Wrapping(header.fwd_cnt));
        self.requested &= values == (self.peer_buf_alloc, self.peer_fwd_cnt);
        (self.peer_buf_alloc, self.peer_fwd_cnt) = values;
    }

    /// Number of bytes that may be sent to the guest.
    fn peer_free(&self) -> usize {
        self.peer_buf_alloc.saturating_sub((self.tx_cnt - self.peer_fwd_cnt).0) as usize
    }

    /// Number of bytes forwarded to the host program that the guest still counts as buffered.
    fn unreported(&self) -> u32 {
        (self.fwd_cnt - self.last_fwd_cnt).0
    }
}

#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    /// The ports, valid unless [`State::Unidentified`].
    pub ports: PortPair,
    pub state: State,
    pub credit: Credit,
    /// Whether the connection is in the muxer's receive queue.
    pub queued: bool,
    /// The operation of a packet that is sent to the guest before all others.
    pub pending_op: Option<u16>,
    interest: Option<EventSet>, // `None` if the socket is not registered with the event loop
    command: Vec<u8>,
    backlog: VecDeque<u8>,
    peer_shutdown: u32, // SHUTDOWN_* flags received from the guest
    host_shutdown: u32, // SHUTDOWN_* flags of the host program
    shutdown_sent: u32, // the part of `host_shutdown` that was sent to the guest
}

#[expect(clippy::cast_possible_truncation, reason = "lengths are at most BUF_ALLOC or MAX_PAYLOAD")]
impl Connection {
    /// A connection over `socket`, which must be non-blocking.
    pub fn new(socket: UnixStream, state: State, ports: PortPair) -> Self {
        Self {
            socket,
            ports,
            state,
            credit: Credit::default(),
            queued: false,
            pending_op: None,
            interest: None,
            command: Vec::new(),
            backlog: VecDeque::new(),
            peer_shutdown: 0,
            host_shutdown: 0,
            shutdown_sent: 0,
        }
    }

    // ---- Commands of host programs ----

    /// Reads the `CONNECT` command of the host program, and nothing after it. Returns the port in the guest.
    ///
    /// # Errors
    ///
    /// `WouldBlock` while the command is incomplete. Any other error is final: the command is invalid, or the host
    /// program has closed the socket.
    pub fn read_connect_command(&mut self) -> io::Result<u32> {
        let mut byte = [0];
        loop {
            self.socket.read_exact(&mut byte)?;
            match byte {
                [b'\n'] => return parse_connect_command(&self.command).ok_or(io::ErrorKind::InvalidData.into()),
                _ if self.command.len() == MAX_COMMAND_LEN => return Err(io::ErrorKind::InvalidData.into()),
                [byte] => self.command.push(byte),
            }
        }
    }

    /// Handles the guest's RESPONSE. Returns false if the host program has closed the socket.
    pub fn establish(&mut self) -> bool {
        self.state = State::Established;
        // This is the first write to the socket, so its buffer is empty.
        self.socket.write_all(format!("OK {}\n", self.ports.host).as_bytes()).is_ok()
    }

    // ---- Packets from the guest ----

    /// Forwards the `len` bytes of payload in `packet` to the host program. Returns false if the guest has exceeded its
    /// credit.
    pub fn forward(&mut self, memory: &GuestMemoryMmap, packet: &Buffers, len: usize, iovecs: &mut IoVecs) -> bool {
        if self.credit.unreported() as usize + self.backlog.len() + len > BUF_ALLOC as usize {
            return false;
        }
        let mut written = 0;
        if self.backlog.is_empty() && !self.host_rx_closed() {
            let payload = packet.range(HEADER_LEN, len);
            match iovecs.transfer(self.socket.as_fd(), Direction::Write, memory, payload, None, 0) {
                Ok(count) => written = count,
                Err(error) if is_transient(&error) => {}
                Err(_) => self.host_shutdown |= SHUTDOWN_RECEIVE,
            }
            self.credit.fwd_cnt += written as u32;
        }
        if written < len {
            let mut rest = vec![0; len - written];
            packet.read_at(memory, HEADER_LEN + written, &mut rest);
            self.backlog.extend(rest);
        }
        self.flush();
        true
    }

    /// Writes as much of the backlog as the socket accepts. Discards it if the host program has closed its end.
    pub fn flush(&mut self) {
        while !self.backlog.is_empty() && !self.host_rx_closed() {
            match self.socket.write(self.backlog.as_slices().0) {
                Ok(count) => self.consume_backlog(count),
                Err(error) if is_transient(&error) => break,
                Err(_) => self.host_shutdown |= SHUTDOWN_RECEIVE,
            }
        }
        if self.host_rx_closed() {
            self.consume_backlog(self.backlog.len());
        }
        if self.peer_shutdown & SHUTDOWN_SEND != 0 && self.backlog.is_empty() {
            let _ = self.socket.shutdown(Shutdown::Write); // fails if it is done, or the program has closed its end
        }
    }

    fn consume_backlog(&mut self, count: usize) {
        self.backlog.drain(..count);
        self.credit.fwd_cnt += count as u32;
    }

    /// Handles the flags of a SHUTDOWN packet.
    pub fn on_shutdown(&mut self, flags: u32) {
        self.peer_shutdown |= flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
        if self.peer_shutdown & SHUTDOWN_RECEIVE != 0 {
            let _ = self.socket.shutdown(Shutdown::Read); // fails if the host program has closed its end
        }
        self.flush();
    }

    /// Whether the guest may send payload.
    pub fn accepts_payload(&self) -> bool {
        self.state == State::Established && self.peer_shutdown & SHUTDOWN_SEND == 0
    }

    /// Whether the guest has ended the connection and the backlog is written.
    pub fn is_finished(&self) -> bool {
        let ended = self.state == State::Draining || self.peer_shutdown == SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
        ended && self.backlog.is_empty()
    }

    // ---- Packets to the guest ----

    /// Makes the next packet for the guest, if there is one: writes its payload to `packet` and returns its header.
    pub fn next_packet(&mut self, memory: &GuestMemoryMmap, packet: &Buffers, iovecs: &mut IoVecs) -> Option<Header> {
        if let Some(op) = self.pending_op.take() {
            return Some(self.header(op, 0, 0));
        }
        if self.state != State::Established {
            return None;
        }
        if self.can_read() {
            let max = self.credit.peer_free().min(MAX_PAYLOAD).min(packet.len().saturating_sub(HEADER_LEN));
            match iovecs.read(self.socket.as_fd(), memory, packet.range(HEADER_LEN, max), &mut []) {
                Ok(0) => self.host_shutdown |= SHUTDOWN_SEND,
                Ok(len) => {
                    self.credit.tx_cnt += len as u32;
                    return Some(self.header(op::RW, len as u32, 0));
                }
                Err(error) if is_transient(&error) => {}
                Err(_) => self.host_shutdown = SHUTDOWN_RECEIVE | SHUTDOWN_SEND,
            }
        }
        if self.shutdown_sent != self.host_shutdown {
            self.shutdown_sent = self.host_shutdown;
            return Some(self.header(op::SHUTDOWN, 0, self.shutdown_sent));
        }
        if self.credit.unreported() >= CREDIT_UPDATE_THRESHOLD {
            return Some(self.header(op::CREDIT_UPDATE, 0, 0));
        }
        let needs_credit = self.credit.peer_free() == 0 && self.host_shutdown & SHUTDOWN_SEND == 0;
        if needs_credit && !self.credit.requested {
            self.credit.requested = true;
            return Some(self.header(op::CREDIT_REQUEST, 0, 0));
        }
        None
    }

    /// The header of a packet to the guest. The muxer fills in `dst_cid`.
    pub fn header(&mut self, op: u16, len: u32, flags: u32) -> Header {
        self.credit.last_fwd_cnt = self.credit.fwd_cnt;
        let (src_port, dst_port) = (self.ports.host, self.ports.guest);
        let (socket_type, buf_alloc, fwd_cnt) = (TYPE_STREAM, BUF_ALLOC, self.credit.fwd_cnt.0);
        Header { src_cid: HOST_CID, dst_cid: 0, src_port, dst_port, len, socket_type, op, flags, buf_alloc, fwd_cnt }
    }

    /// Whether there may be a packet for the guest. `readable` states that the socket was reported as readable.
    pub fn has_packet(&self, readable: bool) -> bool {
        let update = self.shutdown_sent != self.host_shutdown || self.credit.unreported() >= CREDIT_UPDATE_THRESHOLD;
        self.pending_op.is_some()
            || self.state == State::Established && update
            || (readable || self.interest.is_none()) && self.can_read() // no events without a registration
    }

    /// The host program has closed its end. The bytes that it sent before can still be read.
    pub fn on_hang_up(&mut self) {
        self.host_shutdown |= SHUTDOWN_RECEIVE;
        self.flush();
    }

    // ---- Event interest ----

    /// Registers the socket with the event loop. Its events carry `data`.
    ///
    /// # Errors
    ///
    /// The kernel is out of memory or of epoll watches.
    pub fn register(&mut self, data: u32, ops: &mut EventOps) -> event::Result<()> {
        let interest = self.wanted_interest();
        ops.add(Events::with_data(&self.socket, data, interest))?;
        self.interest = Some(interest);
        Ok(())
    }

    /// Changes the registered interest to what the connection waits for now.
    pub fn update_interest(&mut self, data: u32, ops: &EventOps) {
        let wanted = self.wanted_interest();
        if self.interest.is_some_and(|interest| interest != wanted) {
            self.interest = Some(wanted);
            // It cannot fail for a registered descriptor.
            let _ = ops.modify(Events::with_data(&self.socket, data, wanted));
        }
    }

    /// Removes the socket from the event loop.
    pub fn deregister(&mut self, ops: &mut EventOps) {
        if self.interest.take().is_some() {
            let _ = ops.remove(Events::empty(&self.socket)); // cannot fail for a registered descriptor
        }
    }

    fn wanted_interest(&self) -> EventSet {
        let mut interest = EventSet::empty();
        interest.set(EventSet::IN, !self.queued && (self.state == State::Unidentified || self.can_read()));
        interest.set(EventSet::OUT, !self.backlog.is_empty());
        interest
    }

    fn can_read(&self) -> bool {
        let open = (self.host_shutdown & SHUTDOWN_SEND | self.peer_shutdown & SHUTDOWN_RECEIVE) == 0;
        self.state == State::Established && open && self.credit.peer_free() > 0
    }

    fn host_rx_closed(&self) -> bool {
        self.host_shutdown & SHUTDOWN_RECEIVE != 0
    }
}

/// Returns the port of a `CONNECT PORT` command.
fn parse_connect_command(command: &[u8]) -> Option<u32> {
    let command = std::str::from_utf8(command).ok()?.trim_end_matches('\r');
    let port = command.strip_prefix("CONNECT ")?.trim();
    port.parse().ok().filter(|_| !port.starts_with('+')) // which `parse` accepts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_command_has_one_decimal_port() {
        for (line, port) in [("CONNECT 0", 0), ("CONNECT 52\r", 52), ("CONNECT  4294967295 ", u32::MAX)] {
            assert_eq!(parse_connect_command(line.as_bytes()), Some(port), "{line}");
        }
        for line in ["", "CONNECT", "CONNECT ", "connect 1", "CONNECT -1", "CONNECT +1", "CONNECT 4294967296", "OK 1"] {
            assert_eq!(parse_connect_command(line.as_bytes()), None, "{line}");
        }
        assert_eq!(parse_connect_command(b"CONNECT \xff"), None);
    }

    #[test]
    fn a_connect_command_is_read_to_its_newline_and_no_further() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut connection = Connection::new(ours, State::Unidentified, PortPair::default());
        theirs.write_all(b"CONN").unwrap();
        assert_eq!(connection.read_connect_command().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        theirs.write_all(b"ECT 7\nhello").unwrap();
        assert_eq!(connection.read_connect_command().unwrap(), 7);
        let mut rest = [0; 8];
        assert_eq!(connection.socket.read(&mut rest).unwrap(), 5);

        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(ours, State::Unidentified, PortPair::default());
        theirs.write_all(&[b' '; 100]).unwrap();
        assert_eq!(connection.read_connect_command().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn credit_never_exceeds_the_buffer_of_the_guest() {
        let mut credit = Credit::default();
        let mut peer_free = |tx_cnt, buf_alloc, fwd_cnt| {
            credit.tx_cnt = Wrapping(tx_cnt);
            credit.update(&Header { buf_alloc, fwd_cnt, ..Header::default() });
            credit.peer_free()
        };
        assert_eq!(peer_free(0, 100, 0), 100);
        assert_eq!(peer_free(60, 100, 20), 60);
        assert_eq!(peer_free(5, 100, u32::MAX - 4), 90); // the counters have wrapped
        assert_eq!(peer_free(60, 50, 0), 0); // the guest has shrunk its buffer
        assert_eq!(peer_free(0, 100, 1), 0); // the guest claims to have consumed a byte that was never sent
    }
}
