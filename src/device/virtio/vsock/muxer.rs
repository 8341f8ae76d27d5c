//! All connections of a device: which packet is whose, and whose turn it is to send one to the guest.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::unix::net::UnixStream;

use vm_memory::GuestMemoryMmap;

use super::connection::{Connection, Greeting, Ports, Stage};
use super::listener::{UdsListener, is_out_of_descriptors};
use super::packet::{HEADER, HOST_CID, Header, STREAM, op};
use crate::device::virtio::{BACKEND, Buffers, Chain, Virtqueue};
use crate::event::{EventOps, EventSet, Events};
use crate::sys::vectored_io::IoVecs;

/// The most connections at once.
pub const MAX_CONNECTIONS: usize = if cfg!(test) { 40 } else { 1024 };
/// While so many refusals wait for the guest to make room, no packet of the guest is taken.
pub const MAX_REFUSALS: usize = 256;
/// Host programs accepted in one turn of the event loop before others have theirs.
const ACCEPTED: usize = 64;
/// The host's ports of connections that host programs have asked for begin here, as they do for Firecracker.
const FIRST_PORT: u32 = 1 << 30;
/// How much of a packet is copied at once.
const SCRATCH: usize = 64 << 10;

/// User data of the listening socket. Connection number n has n + 1 more.
const LISTENER: u32 = BACKEND;

/// The connections.
#[derive(Debug)]
pub struct Muxer {
    cid: u64,
    listener: UdsListener,
    listening: bool, // as the event loop has been told
    accepting: bool, // as it should be
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    by_ports: BTreeMap<Ports, usize>,
    /// Those that have something for the guest, perhaps, in the order of their turns.
    waiting: VecDeque<usize>,
    /// RST packets of no connection.
    refusals: VecDeque<Header>,
    next_port: u32,
    arrivals: u64,
    chain: Chain,
    vectors: IoVecs,
    scratch: Box<[u8]>,
}

impl Muxer {
    /// No connections yet, for the guest that is known by `cid`.
    pub fn new(cid: u32, listener: UdsListener) -> Self {
        Self {
            cid: cid.into(),
            listener,
            listening: true,
            accepting: true,
            connections: Vec::new(),
            free: Vec::new(),
            by_ports: BTreeMap::new(),
            waiting: VecDeque::new(),
            refusals: VecDeque::new(),
            next_port: FIRST_PORT,
            arrivals: 0,
            chain: Chain::default(),
            vectors: IoVecs::new(),
            scratch: vec![0; SCRATCH].into(),
        }
    }

    /// Registers the listening socket.
    pub fn init(&mut self, ops: &mut EventOps) {
        // A descriptor that was just made can be watched unless the kernel is out of memory; then no host program is heard.
        let _ = ops.add(Events::with_data(&self.listener, LISTENER, EventSet::IN));
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.connections.len() - self.free.len()
    }

    /// Whether a packet of the guest can be taken: it may cause a refusal, for which there must be room.
    pub fn has_room(&self) -> bool {
        self.refusals.len() < MAX_REFUSALS
    }

    // ---- Events of sockets ----

    /// Handles an event of a descriptor that this has registered.
    pub fn on_event(&mut self, events: Events, ops: &mut EventOps) {
        match events.data().checked_sub(LISTENER + 1) {
            None => self.accept(ops),
            Some(index) => self.on_socket(index as usize, events.event_set(), ops),
        }
    }

    /// The same while there is no driver: whoever connects is turned away.
    pub fn on_event_without_driver(&mut self, events: Events, ops: &mut EventOps) {
        match events.data().checked_sub(LISTENER + 1) {
            None => {
                let refused = (0..ACCEPTED).find_map(|_| self.listener.accept().map(drop).err());
                // Out of descriptors: until there is a driver.
                self.accepting = refused.is_none_or(|error| error.kind() == io::ErrorKind::WouldBlock);
            }
            Some(index) => self.close(index as usize, ops),
        }
    }

    fn accept(&mut self, ops: &mut EventOps) {
        for _ in 0..ACCEPTED {
            let full = self.len() == MAX_CONNECTIONS;
            let silent = if full { self.silent(ops) } else { None };
            if silent.is_none() && self.len() == MAX_CONNECTIONS {
                self.accepting = false; // until one is closed, or the guest stirs
                return;
            }
            match self.listener.accept() {
                Ok(socket) => {
                    if let Some(silent) = silent {
                        self.close(silent, ops);
                    }
                    let connection = Connection::new(socket, Stage::Greeting, Ports::default());
                    if let Some(index) = self.insert(connection, ops) {
                        self.on_socket(index, EventSet::IN, ops); // it may have said already what it wants
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {
                }
                // Out of descriptors.
                Err(_) => {
                    let before = self.len();
                    self.close_silent(ops);
                    if self.len() == before {
                        self.accepting = false; // until one is closed, or the guest stirs
                        return;
                    }
                }
            }
        }
    }

    /// The host program that has waited longest without saying what it wants.
    fn silent(&mut self, ops: &mut EventOps) -> Option<usize> {
        loop {
            let places = self.connections.iter().enumerate();
            let connections = places.filter_map(|(index, place)| Some((place.as_ref()?, index)));
            let silent = connections.filter(|(connection, _)| connection.stage == Stage::Greeting);
            let (_, index) = silent.min_by_key(|(connection, _)| connection.arrival)?;
            self.on_socket(index, EventSet::IN, ops); // it may have said it just now, or be gone
            if connection(&mut self.connections, index).is_some_and(|it| it.stage == Stage::Greeting) {
                return Some(index);
            }
        }
    }

    /// Closes the connection of that program, if there is one.
    fn close_silent(&mut self, ops: &mut EventOps) {
        if let Some(silent) = self.silent(ops) {
            self.close(silent, ops);
        }
    }

    fn on_socket(&mut self, index: usize, happened: EventSet, ops: &mut EventOps) {
        let Some(connection) = connection(&mut self.connections, index) else { return };
        let hung_up = happened.intersects(EventSet::HANG_UP | EventSet::ERROR);
        if hung_up && connection.interest.take().is_some() {
            // These are told of whether they are asked for or not, again and again.
            let _ = ops.remove(Events::empty(connection)); // it is registered
        }
        match connection.stage {
            Stage::Greeting => match connection.read_greeting() {
                Greeting::Port(port) if !hung_up => self.request(index, port),
                Greeting::Partial if !hung_up => {}
                _ => return self.close(index, ops),
            },
            Stage::Requested if hung_up => {
                let guest_knows = connection.owed != Some(op::REQUEST);
                return if guest_knows { self.reset(index, ops) } else { self.close(index, ops) };
            }
            Stage::Requested => {}
            Stage::Open | Stage::Draining if hung_up => {
                connection.hang_up();
                self.enqueue(index);
            }
            Stage::Open | Stage::Draining => {
                connection.flush();
                if happened.contains(EventSet::IN) {
                    self.enqueue(index);
                }
            }
        }
        self.settle(index, ops);
    }

    /// Asks the guest for a connection to `port`.
    fn request(&mut self, index: usize, port: u32) {
        let host = loop {
            let host = self.next_port;
            self.next_port = host.wrapping_add(1).max(FIRST_PORT);
            if !self.by_ports.contains_key(&Ports { guest: port, host }) {
                break host;
            }
        };
        let Some(connection) = connection(&mut self.connections, index) else { return };
        connection.ports = Ports { guest: port, host };
        connection.stage = Stage::Requested;
        connection.owed = Some(op::REQUEST);
        self.by_ports.insert(connection.ports, index);
    }

    // ---- Packets from the guest ----

    /// Handles a packet.
    pub fn on_packet(&mut self, memory: &GuestMemoryMmap, packet: &Buffers, ops: &mut EventOps) {
        self.accepting = true; // or else `accept` takes that back
        let mut bytes = [0; HEADER];
        if packet.read_at(memory, 0, &mut bytes) < HEADER {
            return; // nobody to answer
        }
        let header = Header::from_bytes(&bytes);
        if header.src_cid != self.cid {
            return; // it claims to be somebody else
        }
        let ours = header.dst_cid == HOST_CID && header.kind == STREAM;
        let ports = Ports { guest: header.src_port, host: header.dst_port };
        match self.by_ports.get(&ports) {
            Some(index) if ours => self.on_packet_of(*index, &header, memory, packet, ops),
            _ if header.op == op::RST => {}
            None if ours && header.op == op::REQUEST => self.connect(ports, &header, ops),
            _ => self.refusals.push_back(header.refusal()),
        }
    }

    fn connect(&mut self, ports: Ports, header: &Header, ops: &mut EventOps) {
        let mut socket = self.listener.connect(ports.host);
        if socket.as_ref().is_err_and(is_out_of_descriptors) {
            self.close_silent(ops);
            socket = self.listener.connect(ports.host);
        }
        if socket.is_ok() && self.len() == MAX_CONNECTIONS {
            self.close_silent(ops);
        }
        // A program that was heard just now may have been given the same ports.
        let fits = self.len() < MAX_CONNECTIONS && !self.by_ports.contains_key(&ports);
        let socket = socket.ok().filter(|_| fits);
        let index = socket.and_then(|socket: UnixStream| {
            let mut connection = Connection::new(socket, Stage::Open, ports);
            connection.owed = Some(op::RESPONSE);
            connection.note_room(header);
            self.insert(connection, ops)
        });
        let Some(index) = index else {
            return self.refusals.push_back(header.refusal());
        };
        self.by_ports.insert(ports, index);
        self.settle(index, ops);
    }

    fn on_packet_of(
        &mut self,
        index: usize,
        header: &Header,
        memory: &GuestMemoryMmap,
        packet: &Buffers,
        ops: &mut EventOps,
    ) {
        let Some(connection) = connection(&mut self.connections, index) else { return };
        connection.note_room(header);
        let len = header.len as usize;
        let in_order = match header.op {
            op::RESPONSE => connection.stage == Stage::Requested && connection.greet(),
            op::RW => {
                len <= packet.len() - HEADER
                    && connection.expects_bytes()
                    && connection.take(memory, packet, len, &mut self.vectors, &mut self.scratch)
            }
            op::SHUTDOWN => {
                connection.shut(header.flags);
                connection.stage == Stage::Open
            }
            op::CREDIT_UPDATE => true,
            op::CREDIT_REQUEST => {
                connection.owed.get_or_insert(op::CREDIT_UPDATE);
                true
            }
            op::RST => {
                // What the guest has sent before is still written.
                connection.stage = Stage::Draining;
                connection.owed = None;
                self.by_ports.remove(&connection.ports);
                true
            }
            _ => false,
        };
        if in_order { self.settle(index, ops) } else { self.reset(index, ops) }
    }

    // ---- Packets to the guest ----

    /// Sends what there is for the guest, a packet a connection and again, while the guest has buffers.
    pub fn serve(&mut self, queue: &mut Virtqueue, ops: &mut EventOps) {
        while !(self.refusals.is_empty() && self.waiting.is_empty()) && queue.pop(&mut self.chain) {
            let packet = &self.chain.writable;
            if packet.len() <= HEADER {
                return queue.fail("a receive buffer has no room behind a packet's header");
            }
            if let Some(header) = self.refusals.pop_front() {
                send(queue, &self.chain, header);
                continue;
            }
            let index = self.waiting.pop_front().unwrap_or(usize::MAX); // there is one, see above
            let connection = connection(&mut self.connections, index);
            let next = connection.and_then(|connection| {
                let (op, len, flags) = connection.next(queue.memory(), packet, &mut self.vectors)?;
                Some(connection.header(self.cid, op, len, flags))
            });
            match next {
                Some(header) => {
                    send(queue, &self.chain, header);
                    self.waiting.push_back(index);
                }
                None => {
                    queue.undo_pop();
                    self.dequeue(index, ops);
                }
            }
        }
    }

    // ---- Housekeeping ----

    /// Lets the event loop know whether host programs can be accepted. To be called at the end of a ctx.
    pub fn listen(&mut self, ops: &mut EventOps) {
        if self.listening != self.accepting {
            self.listening = self.accepting;
            let interest = if self.listening { EventSet::IN } else { EventSet::empty() };
            let _ = ops.modify(Events::with_data(&self.listener, LISTENER, interest)); // it is registered
        }
    }

    /// The guest stirs, so it is worth another look whether there are descriptors.
    pub fn look_again(&mut self) {
        self.accepting = true; // or else `accept` takes that back
    }

    /// Ends all connections for the programs of the host.
    pub fn cut(&self) {
        self.connections.iter().flatten().for_each(Connection::cut);
    }

    /// Closes all connections.
    pub fn clear(&mut self, ops: &mut EventOps) {
        (0..self.connections.len()).for_each(|index| self.close(index, ops));
        self.refusals.clear();
    }

    fn insert(&mut self, mut connection: Connection, ops: &mut EventOps) -> Option<usize> {
        let index = self.free.last().copied().unwrap_or(self.connections.len());
        let interest = connection.wants();
        connection.interest = Some(interest);
        self.arrivals += 1;
        connection.arrival = self.arrivals;
        ops.add(Events::with_data(&connection, LISTENER + 1 + index as u32, interest)).ok()?;
        match self.free.pop() {
            Some(index) => self.connections[index] = Some(connection),
            None => self.connections.push(Some(connection)),
        }
        Some(index)
    }

    /// To be called when something has changed about a connection.
    fn settle(&mut self, index: usize, ops: &mut EventOps) {
        let Some(connection) = connection(&mut self.connections, index) else { return };
        match connection.stage {
            Stage::Draining if connection.is_over() => return self.close(index, ops),
            _ if connection.is_over() => return self.reset(index, ops),
            _ if connection.has_news() => self.enqueue(index),
            _ => {}
        }
        self.watch(index, ops);
    }

    fn enqueue(&mut self, index: usize) {
        let Some(connection) = connection(&mut self.connections, index) else { return };
        if !std::mem::replace(&mut connection.queued, true) {
            self.waiting.push_back(index);
        }
    }

    fn dequeue(&mut self, index: usize, ops: &mut EventOps) {
        if let Some(connection) = connection(&mut self.connections, index) {
            connection.queued = false;
            self.watch(index, ops);
        }
    }

    fn watch(&mut self, index: usize, ops: &mut EventOps) {
        let Some(connection) = connection(&mut self.connections, index) else { return };
        let wanted = connection.wants();
        if connection.interest.is_some_and(|interest| interest != wanted) {
            connection.interest = Some(wanted);
            let events = Events::with_data(connection, LISTENER + 1 + index as u32, wanted);
            let _ = ops.modify(events); // it is registered
        }
    }

    /// Closes a connection and tells the guest.
    fn reset(&mut self, index: usize, ops: &mut EventOps) {
        if let Some(connection) = connection(&mut self.connections, index) {
            let header = connection.header(self.cid, op::RST, 0, 0);
            self.refusals.push_back(header);
        }
        self.close(index, ops);
    }

    fn close(&mut self, index: usize, ops: &mut EventOps) {
        let Some(connection) = self.connections.get_mut(index).and_then(Option::take) else { return };
        if connection.interest.is_some() {
            let _ = ops.remove(Events::empty(&connection)); // it is registered
        }
        if self.by_ports.get(&connection.ports) == Some(&index) {
            self.by_ports.remove(&connection.ports);
        }
        if connection.queued {
            self.waiting.retain(|waiting| *waiting != index);
        }
        self.free.push(index);
        self.accepting = true;
    }
}

fn connection(connections: &mut [Option<Connection>], index: usize) -> Option<&mut Connection> {
    connections.get_mut(index)?.as_mut()
}

fn send(queue: &mut Virtqueue, chain: &Chain, header: Header) {
    chain.writable.write_at(queue.memory(), 0, &header.to_bytes());
    queue.push(chain.head, HEADER + header.len as usize);
}
