//! One stream between a program in the guest and one on the host, which is at the other end of a Unix socket.
//!
//! ```text
//!    guest ── packets ──▶ backlog, up to BUFFER ──▶ socket        room: what BUFFER has left, told in every packet
//!    guest ◀── packets ───────────────────────────── socket        room: what the guest has said
//! ```
//!
//! Neither way does anybody wait: what the socket does not take stays in the backlog, and what the guest has no room for stays in
//! the socket.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use vm_memory::GuestMemoryMmap;

use super::packet::{HEADER, HOST_CID, Header, NO_RECEIVE, NO_SEND, STREAM, op};
use crate::device::virtio::Buffers;
use crate::event::EventSet;
use crate::sys::vectored_io::IoVecs;

/// Bytes from the guest that a connection holds for a host program, at most.
pub const BUFFER: usize = 256 << 10;
/// After so many bytes were passed on the guest is told, should no packet go its way anyhow.
const NEWS: u32 = BUFFER as u32 / 4;
/// Bytes read at once for the guest.
const MOST: usize = 64 << 10;
/// The longest first line of a host program, `CONNECT 4294967295`, and some room for spaces.
const MAX_LINE: usize = 32;

/// The ports at both ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// The guest's.
    pub guest: u32,
    /// The host's.
    pub host: u32,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The host program has to say which port it wants.
    Greeting,
    /// The guest was asked, or will be.
    Requested,
    /// Bytes flow.
    Open,
    /// The guest is done with it, but what it has sent is not all written yet.
    Draining,
}

/// What a host program's first line comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Greeting {
    /// It is not complete.
    Partial,
    /// It asks for this port of the guest.
    Port(u32),
    /// It makes no sense, or the program is gone.
    Bad,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    /// The ports, once they are known.
    pub ports: Ports,
    /// How far it is.
    pub stage: Stage,
    /// Whether it stands in the line of those that have something for the guest.
    pub queued: bool,
    /// What the event loop has been asked for; nothing if the socket is not registered.
    pub interest: Option<EventSet>,
    /// Its number among all that there have been.
    pub arrival: u64,
    line: Vec<u8>,
    /// A packet that the guest has to get first.
    pub owed: Option<u16>,

    // From the guest to the host.
    backlog: VecDeque<u8>,
    forwarded: Wrapping<u32>,
    announced: Wrapping<u32>, // what the guest knows of `forwarded`
    /// What the guest has said it will not do any more.
    done: u32,
    write_closed: bool, // the host program knows that there is no more
    deaf: bool,         // the host program takes no more

    // From the host to the guest.
    sent: Wrapping<u32>,
    room: u32,            // the guest's buffer
    taken: Wrapping<u32>, // how much of `sent` the guest's program has got
    asked: bool,          // for news of the two
    ended: bool,          // the host program sends no more
    told: u32,            // what the guest knows of `ended` and `deaf`
}

impl Connection {
    /// A connection by way of `socket`, which does not block.
    pub fn new(socket: UnixStream, stage: Stage, ports: Ports) -> Self {
        Self {
            socket,
            ports,
            stage,
            queued: false,
            interest: None,
            arrival: 0,
            line: Vec::new(),
            owed: None,
            backlog: VecDeque::new(),
            forwarded: Wrapping(0),
            announced: Wrapping(0),
            done: 0,
            write_closed: false,
            deaf: false,
            sent: Wrapping(0),
            room: 0,
            taken: Wrapping(0),
            asked: false,
            ended: false,
            told: 0,
        }
    }

    // ---- The greeting ----

    /// Reads on in the host program's first line, and nothing behind it.
    pub fn read_greeting(&mut self) -> Greeting {
        let mut byte = [0];
        loop {
            match self.socket.read(&mut byte) {
                Ok(1) if byte[0] == b'\n' => return parse_greeting(&self.line),
                Ok(1) if self.line.len() < MAX_LINE => self.line.push(byte[0]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Greeting::Partial,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return Greeting::Bad,
            }
        }
    }

    /// Tells the host program that the guest has accepted. False if it is gone.
    pub fn greet(&mut self) -> bool {
        self.stage = Stage::Open;
        // It is the first thing ever written, so the socket has room for it.
        self.socket.write_all(format!("OK {}\n", self.ports.host).as_bytes()).is_ok()
    }

    // ---- From the guest ----

    /// Notes what every packet of the guest says of its room.
    pub fn note_room(&mut self, header: &Header) {
        if (self.room, self.taken.0) != (header.buf_alloc, header.fwd_cnt) {
            self.asked = false;
        }
        (self.room, self.taken) = (header.buf_alloc, Wrapping(header.fwd_cnt));
    }

    /// Takes the bytes of a packet: writes what the socket takes, and keeps the rest by way of `scratch`. False if the guest has
    /// sent more than there is room for.
    pub fn take(
        &mut self,
        memory: &GuestMemoryMmap,
        packet: &Buffers,
        len: usize,
        vectors: &mut IoVecs,
        scratch: &mut [u8],
    ) -> bool {
        if self.pending_used() as usize + self.backlog.len() + len > BUFFER {
            return false;
        }
        let mut done = 0;
        if self.backlog.is_empty() && !self.deaf && len > 0 {
            match vectors.write(self.socket.as_fd(), memory, packet.range(HEADER, len)) {
                Ok(written) => done = written,
                Err(error) if is_transient(&error) => {}
                Err(_) => self.deaf = true,
            }
            self.forwarded += done as u32; // not more than BUFFER
        }
        while done < len {
            let part = scratch.len().min(len - done);
            let part = packet.read_at(memory, HEADER + done, &mut scratch[..part]);
            self.backlog.extend(&scratch[..part]);
            done += part.max(1); // all is in RAM, so there is something
        }
        self.flush();
        true
    }

    /// Writes what the socket takes of the backlog. What a host program does not want any more is thrown away.
    pub fn flush(&mut self) {
        while !self.backlog.is_empty() && !self.deaf {
            let (front, back) = self.backlog.as_slices();
            match self.socket.write_vectored(&[IoSlice::new(front), IoSlice::new(back)]) {
                Ok(written) => self.forward(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.deaf = true,
            }
        }
        if self.deaf {
            self.forward(self.backlog.len());
        }
        if self.done & NO_SEND != 0 && self.backlog.is_empty() && !self.write_closed {
            self.write_closed = true;
            let _ = self.socket.shutdown(Shutdown::Write); // the program may be gone
        }
    }

    fn forward(&mut self, count: usize) {
        self.backlog.drain(..count);
        self.forwarded += count as u32; // not more than BUFFER
    }

    /// The guest will not receive or send any more.
    pub fn shut(&mut self, flags: u32) {
        self.done |= flags & (NO_RECEIVE | NO_SEND);
        if self.done & NO_RECEIVE != 0 {
            let _ = self.socket.shutdown(Shutdown::Read); // the program may be gone
        }
        self.flush();
    }

    /// Whether the guest may send bytes.
    pub fn expects_bytes(&self) -> bool {
        self.stage == Stage::Open && self.done & NO_SEND == 0
    }

    /// Whether everything is written, and nobody will send any more.
    pub fn is_over(&self) -> bool {
        let done = self.stage == Stage::Draining || self.done == NO_RECEIVE | NO_SEND;
        done && self.backlog.is_empty()
    }

    // ---- To the guest ----

    /// The next packet for the guest, if there is any. Its bytes are in `packet` behind where the header goes.
    pub fn next(
        &mut self,
        memory: &GuestMemoryMmap,
        packet: &Buffers,
        vectors: &mut IoVecs,
    ) -> Option<(u16, u32, u32)> {
        if let Some(op) = self.owed.take() {
            return Some((op, 0, 0));
        }
        if self.stage != Stage::Open {
            return None;
        }
        if self.may_read() {
            let most = self.credit().min(MOST).min(packet.len().saturating_sub(HEADER));
            match vectors.read(self.socket.as_fd(), memory, packet.range(HEADER, most), &mut []) {
                Ok(0) => self.ended = true,
                Ok(len) => {
                    self.sent += len as u32; // not more than MOST
                    return Some((op::RW, len as u32, 0));
                }
                Err(error) if is_transient(&error) => {}
                Err(_) => (self.ended, self.deaf) = (true, true),
            }
        }
        if self.untold() != 0 {
            self.told |= self.untold();
            return Some((op::SHUTDOWN, 0, self.told));
        }
        if self.pending_used() >= NEWS {
            return Some((op::CREDIT_UPDATE, 0, 0));
        }
        if self.credit() == 0 && !self.asked && !self.ended {
            self.asked = true;
            return Some((op::CREDIT_REQUEST, 0, 0));
        }
        None
    }

    /// The header of a packet with `len` bytes to the guest whose identifier is `cid`.
    pub fn header(&mut self, cid: u64, op: u16, len: u32, flags: u32) -> Header {
        self.announced = self.forwarded;
        Header {
            src_cid: HOST_CID,
            dst_cid: cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len,
            kind: STREAM,
            op,
            flags,
            buf_alloc: BUFFER as u32,
            fwd_cnt: self.forwarded.0,
        }
    }

    /// Whether there is a packet for the guest, as far as can be said without reading.
    pub fn has_news(&self) -> bool {
        let open = self.stage == Stage::Open;
        self.owed.is_some()
            || open && (self.untold() != 0 || self.pending_used() >= NEWS)
            || self.interest.is_none() && self.may_read() // else the event loop tells
    }

    /// The host program has closed its end, or both ways have ended. What it had sent can still be read.
    pub fn hang_up(&mut self) {
        self.deaf = true;
        self.flush();
    }

    /// What the event loop shall tell of.
    pub fn wants(&self) -> EventSet {
        let mut wanted = EventSet::empty();
        wanted.set(EventSet::IN, !self.queued && (self.stage == Stage::Greeting || self.may_read()));
        wanted.set(EventSet::OUT, !self.backlog.is_empty());
        wanted
    }

    /// Ends the connection for the host program, without closing the descriptor.
    pub fn cut(&self) {
        let _ = self.socket.shutdown(Shutdown::Both); // the program may be gone
    }

    fn may_read(&self) -> bool {
        self.stage == Stage::Open && !self.ended && self.done & NO_RECEIVE == 0 && self.credit() > 0
    }

    /// Bytes that the guest has room for.
    fn credit(&self) -> usize {
        self.room.saturating_sub((self.sent - self.taken).0) as usize
    }

    /// Bytes that were passed on without the guest's knowing.
    fn pending_used(&self) -> u32 {
        (self.forwarded - self.announced).0
    }

    /// What the guest does not know yet of the end.
    fn untold(&self) -> u32 {
        let flags = if self.ended { NO_SEND } else { 0 } | if self.deaf { NO_RECEIVE } else { 0 };
        flags & !self.told
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The port in `CONNECT port`.
fn parse_greeting(line: &[u8]) -> Greeting {
    let line = std::str::from_utf8(line).unwrap_or_default().trim_end_matches('\r');
    let port =
        line.strip_prefix("CONNECT ").map(str::trim).filter(|port| port.starts_with(|c: char| c.is_ascii_digit()));
    port.and_then(|port| port.parse().ok()).map_or(Greeting::Bad, Greeting::Port)
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_names_a_port_and_nothing_else() {
        for (line, port) in [("CONNECT 0", 0), ("CONNECT 52\r", 52), ("CONNECT  4294967295 ", u32::MAX)] {
            assert_eq!(parse_greeting(line.as_bytes()), Greeting::Port(port), "{line}");
        }
        for line in ["", "CONNECT", "CONNECT ", "connect 1", "CONNECT -1", "CONNECT +1", "CONNECT 4294967296", "OK 1"] {
            assert_eq!(parse_greeting(line.as_bytes()), Greeting::Bad, "{line}");
        }
        assert_eq!(parse_greeting(b"CONNECT \xff"), Greeting::Bad);
    }

    #[test]
    fn a_greeting_is_read_to_its_end_and_no_further() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut connection = Connection::new(ours, Stage::Greeting, Ports::default());
        theirs.write_all(b"CONN").unwrap();
        assert_eq!(connection.read_greeting(), Greeting::Partial);
        theirs.write_all(b"ECT 7\nhello").unwrap();
        assert_eq!(connection.read_greeting(), Greeting::Port(7));
        let mut rest = [0; 8];
        assert_eq!(connection.socket.read(&mut rest).unwrap(), 5);

        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(ours, Stage::Greeting, Ports::default());
        theirs.write_all(&[b' '; 100]).unwrap();
        assert_eq!(connection.read_greeting(), Greeting::Bad);
    }

    #[test]
    fn credit_never_exceeds_the_guests_room_whatever_it_claims() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(ours, Stage::Open, Ports::default());
        let mut claim = |sent, buf_alloc, fwd_cnt| {
            connection.sent = Wrapping(sent);
            connection.note_room(&Header { buf_alloc, fwd_cnt, ..Header::default() });
            connection.credit()
        };
        assert_eq!(claim(0, 100, 0), 100);
        assert_eq!(claim(60, 100, 20), 60);
        assert_eq!(claim(5, 100, u32::MAX - 4), 90); // the counters have gone round
        assert_eq!(claim(60, 50, 0), 0); // the room has shrunk
        assert_eq!(claim(0, 100, 1), 0); // it took what was never sent
    }
}
