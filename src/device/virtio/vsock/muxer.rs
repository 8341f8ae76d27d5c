//! The device: it multiplexes connections, that is, routes the guest's packets by port and schedules the packets to the
//! guest.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem::{replace, take};

use vm_memory::GuestMemoryMmap;

use super::connection::{Connection, PortPair, State};
use super::listener::{UdsListener, is_out_of_descriptors};
use super::packet::{HEADER_LEN, HOST_CID, Header, TYPE_STREAM, op};
use crate::device::virtio::{BACKEND, Buffers, Chain, DeviceContext, VirtioDevice, Virtqueue};
use crate::event::{EventOps, EventSet, Events};
use crate::sys::vectored_io::IoVecs;

pub const MAX_CONNECTIONS: usize = if cfg!(test) { 40 } else { 1024 };
/// Maximum number of RST packets that wait for receive buffers. While there are so many, the guest's packets stay in
/// the queue.
pub const MAX_PENDING_RSTS: usize = 256;
/// First host port of connections that host programs request, as in Firecracker.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// Event data of the listening socket.
const LISTENER: u32 = BACKEND;
/// First connection ID, which is the event data of the connection's socket.
const FIRST_ID: u32 = LISTENER + 1;

/// A socket device.
#[derive(Debug)]
pub struct Vsock {
    config: [u8; 8], // guest_cid
    listener: UdsListener,
    listening: bool,
    /// By ID. IDs ascend, so the oldest connection is the first (until 2^32 connections have been made).
    by_id: BTreeMap<u32, Connection>,
    by_ports: BTreeMap<PortPair, u32>,
    /// Connections that may have packets for the guest, in round-robin order.
    rx_queue: VecDeque<u32>,
    /// RST packets of closed and refused connections.
    pending_rsts: VecDeque<Header>,
    next_id: u32,
    next_port: u32,
    chain: Chain,
    iovecs: IoVecs,
}

impl Vsock {
    /// A device for the guest with context identifier `cid`. Host programs connect to `listener`.
    pub fn new(cid: u32, listener: UdsListener) -> Self {
        let (config, next_id, next_port) = (u64::from(cid).to_le_bytes(), FIRST_ID, FIRST_HOST_PORT);
        let (by_id, by_ports, rx_queue, pending_rsts, chain, iovecs) = Default::default();
        let listening = true;
        Self { config, listener, listening, by_id, by_ports, rx_queue, pending_rsts, next_id, next_port, chain, iovecs }
    }

    /// Sends packets to the guest and handles its packets until neither is possible. This ends, because each queue has
    /// a budget per turn.
    fn process_queues(&mut self, rx: &mut Virtqueue, tx: &mut Virtqueue, ops: &mut EventOps) {
        self.send_packets(rx, ops);
        // Each packet of the guest may cause an RST packet.
        while self.pending_rsts.len() < MAX_PENDING_RSTS && tx.pop(&mut self.chain) {
            let chain = take(&mut self.chain);
            self.on_packet(tx.memory(), &chain.readable, ops);
            tx.push(chain.head, 0);
            self.chain = chain;
            self.send_packets(rx, ops);
        }
    }

    // ---- Socket events ----

    /// Accepts one host program. If more of them wait, the event is reported again. If no driver is running, it is
    /// disconnected at once.
    fn accept(&mut self, running: bool, ops: &mut EventOps) {
        if self.by_id.len() == MAX_CONNECTIONS && !self.close_oldest_unidentified(ops) {
            return self.listen(false, ops);
        }
        match self.listener.accept() {
            Ok(socket) if running => {
                let connection = Connection::new(socket, State::Unidentified, PortPair::default());
                if let Some(id) = self.insert(connection, ops) {
                    self.on_socket(id, EventSet::IN, ops); // the command may have arrived already
                }
            }
            Ok(_) => {}
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                _ if self.close_oldest_unidentified(ops) => {} // which frees a descriptor
                _ => self.listen(false, ops),
            },
        }
    }

    /// Starts or stops to watch the listening socket. It is not watched while no connection can be accepted, because
    /// the event is level-triggered, until the guest is active or a connection is closed.
    fn listen(&mut self, on: bool, ops: &EventOps) {
        if self.listening != on {
            self.listening = on;
            let interest = if on { EventSet::IN } else { EventSet::empty() };
            let _ = ops.modify(Events::with_data(&self.listener.socket, LISTENER, interest)); // registered by `init`
        }
    }

    /// Closes the oldest connection whose host program has not sent its command, for the benefit of another connection.
    /// Returns false if there is no such connection.
    fn close_oldest_unidentified(&mut self, ops: &mut EventOps) -> bool {
        let is_unidentified = |connection: &Connection| connection.state == State::Unidentified;
        while let Some((&id, _)) = self.by_id.iter().find(|(_, connection)| is_unidentified(connection)) {
            self.on_socket(id, EventSet::IN, ops); // the command may have arrived by now
            if self.by_id.get(&id).is_none_or(is_unidentified) {
                self.close(id, ops);
                return true;
            }
        }
        false
    }

    fn on_socket(&mut self, id: u32, events: EventSet, ops: &mut EventOps) {
        let Some(connection) = self.by_id.get_mut(&id) else { return };
        let hung_up = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        if hung_up {
            connection.deregister(ops); // epoll would report these events forever, whatever the interest is
        }
        match connection.state {
            State::Unidentified => match connection.read_connect_command() {
                Ok(port) if !hung_up => self.request(id, port),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !hung_up => {}
                _ => return self.close(id, ops),
            },
            State::Requested if hung_up && connection.pending_op == Some(op::REQUEST) => return self.close(id, ops),
            State::Requested if hung_up => return self.reset_connection(id, ops),
            State::Requested => {}
            State::Established | State::Draining if hung_up => connection.on_hang_up(),
            State::Established | State::Draining => connection.flush(),
        }
        self.settle(id, events.contains(EventSet::IN), ops);
    }

    /// Requests a connection to `port` of the guest.
    fn request(&mut self, id: u32, port: u32) {
        let in_use = |host| self.by_ports.contains_key(&PortPair { guest: port, host });
        let ports = PortPair { guest: port, host: allocate(&mut self.next_port, FIRST_HOST_PORT, in_use) };
        let Some(connection) = self.by_id.get_mut(&id) else { return };
        (connection.ports, connection.state) = (ports, State::Requested);
        connection.pending_op = Some(op::REQUEST);
        self.by_ports.insert(ports, id);
    }

    // ---- Packets from the guest ----

    fn on_packet(&mut self, memory: &GuestMemoryMmap, packet: &Buffers, ops: &mut EventOps) {
        let mut bytes = [0; HEADER_LEN];
        let complete = packet.read_at(memory, 0, &mut bytes) == HEADER_LEN;
        let header = Header::from_bytes(&bytes);
        if !complete || header.src_cid != u64::from_le_bytes(self.config) {
            return; // there is no valid sender to answer
        }
        let supported = header.dst_cid == HOST_CID && header.socket_type == TYPE_STREAM;
        let ports = PortPair { guest: header.src_port, host: header.dst_port };
        match self.by_ports.get(&ports) {
            Some(id) if supported => self.on_stream(*id, &header, memory, packet, ops),
            _ if header.op == op::RST => {}
            None if supported && header.op == op::REQUEST => self.connect(ports, &header, ops),
            _ => self.pending_rsts.push_back(header.rst()),
        }
    }

    /// Handles a REQUEST: connects to the host program that listens for `ports.host`.
    fn connect(&mut self, ports: PortPair, header: &Header, ops: &mut EventOps) {
        let mut socket = self.listener.connect(ports.host);
        if socket.as_ref().is_err_and(is_out_of_descriptors) && self.close_oldest_unidentified(ops) {
            socket = self.listener.connect(ports.host);
        }
        let full = socket.is_ok() && self.by_id.len() == MAX_CONNECTIONS && !self.close_oldest_unidentified(ops);
        // A host program whose command was read meanwhile may have been assigned the same ports.
        let socket = socket.ok().filter(|_| !full && !self.by_ports.contains_key(&ports));
        let id = socket.and_then(|socket| {
            let mut connection = Connection::new(socket, State::Established, ports);
            connection.pending_op = Some(op::RESPONSE);
            connection.credit.update(header);
            self.insert(connection, ops)
        });
        let Some(id) = id else {
            return self.pending_rsts.push_back(header.rst());
        };
        self.by_ports.insert(ports, id);
        self.settle(id, false, ops);
    }

    /// Handles a packet of a connection.
    fn on_stream(&mut self, id: u32, header: &Header, memory: &GuestMemoryMmap, packet: &Buffers, ops: &mut EventOps) {
        let Some(connection) = self.by_id.get_mut(&id) else { return };
        connection.credit.update(header);
        let len = header.len as usize;
        let valid = match header.op {
            op::RESPONSE => connection.state == State::Requested && connection.establish(),
            op::RW => {
                len <= packet.len() - HEADER_LEN
                    && connection.accepts_payload()
                    && connection.forward(memory, packet, len, &mut self.iovecs)
            }
            op::SHUTDOWN => {
                connection.on_shutdown(header.flags);
                connection.state == State::Established
            }
            op::CREDIT_UPDATE => true,
            op::CREDIT_REQUEST => {
                connection.pending_op.get_or_insert(op::CREDIT_UPDATE);
                true
            }
            op::RST => {
                // The backlog is still written, while the guest may use the ports again.
                connection.state = State::Draining;
                connection.pending_op = None;
                self.by_ports.remove(&connection.ports);
                true
            }
            _ => false,
        };
        if valid { self.settle(id, false, ops) } else { self.reset_connection(id, ops) }
    }

    // ---- Packets to the guest ----

    /// Sends packets to the guest, one per connection in turn, while there are packets and receive buffers.
    fn send_packets(&mut self, queue: &mut Virtqueue, ops: &mut EventOps) {
        while !(self.pending_rsts.is_empty() && self.rx_queue.is_empty()) && queue.pop(&mut self.chain) {
            let packet = &self.chain.writable;
            if packet.len() <= HEADER_LEN {
                return queue.fail("a receive buffer has no space after the packet header");
            }
            let id = if self.pending_rsts.is_empty() { self.rx_queue.pop_front() } else { None };
            let header = match id.and_then(|id| self.by_id.get_mut(&id)) {
                Some(connection) => connection.next_packet(queue.memory(), packet, &mut self.iovecs),
                None => self.pending_rsts.pop_front(),
            };
            if let Some(header) = header {
                let header = Header { dst_cid: u64::from_le_bytes(self.config), ..header };
                packet.write_at(queue.memory(), 0, &header.to_bytes());
                queue.push(self.chain.head, HEADER_LEN + header.len as usize);
                self.rx_queue.extend(id);
            } else {
                queue.undo_pop();
                if let Some((id, connection)) = id.and_then(|id| Some((id, self.by_id.get_mut(&id)?))) {
                    connection.queued = false;
                    connection.update_interest(id, ops);
                }
            }
        }
    }

    // ---- Housekeeping ----

    /// Adds a connection and registers its socket. Returns its ID, or `None` if the kernel is out of memory.
    fn insert(&mut self, mut connection: Connection, ops: &mut EventOps) -> Option<u32> {
        let id = allocate(&mut self.next_id, FIRST_ID, |id| self.by_id.contains_key(&id));
        connection.register(id, ops).ok()?;
        self.by_id.insert(id, connection);
        Some(id)
    }

    /// Follows up on a change of a connection. `readable` states that the socket was reported as readable.
    fn settle(&mut self, id: u32, readable: bool, ops: &mut EventOps) {
        let Some(connection) = self.by_id.get_mut(&id) else { return };
        if connection.is_finished() {
            let is_reset = connection.state == State::Draining;
            return if is_reset { self.close(id, ops) } else { self.reset_connection(id, ops) };
        }
        if connection.has_packet(readable) && !replace(&mut connection.queued, true) {
            self.rx_queue.push_back(id);
        }
        connection.update_interest(id, ops);
    }

    /// Closes a connection and sends an RST packet to the guest.
    fn reset_connection(&mut self, id: u32, ops: &mut EventOps) {
        let header = self.by_id.get_mut(&id).map(|connection| connection.header(op::RST, 0, 0));
        self.pending_rsts.extend(header);
        self.close(id, ops);
    }

    fn close(&mut self, id: u32, ops: &mut EventOps) {
        let Some(mut connection) = self.by_id.remove(&id) else { return };
        connection.deregister(ops);
        if self.by_ports.get(&connection.ports) == Some(&id) {
            self.by_ports.remove(&connection.ports);
        }
        if connection.queued {
            self.rx_queue.retain(|queued| *queued != id);
        }
        self.listen(true, ops);
    }
}

impl VirtioDevice for Vsock {
    const TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
    const QUEUES: &'static [u16] = &[256, 256, 16]; // rx, tx, and event, which has no events to report

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn init(&mut self, ops: &mut EventOps) {
        // A new descriptor can be registered unless the kernel is out of memory. Then host programs cannot connect.
        let _ = ops.add(Events::with_data(&self.listener.socket, LISTENER, EventSet::IN));
    }

    fn reset(&mut self) {
        self.by_id.clear(); // closes the sockets, which ends their registrations
        self.by_ports.clear();
        self.rx_queue.clear();
        self.pending_rsts.clear();
    }

    fn process(&mut self, events: Events, ctx: &mut DeviceContext<'_, '_>) {
        match events.data() {
            LISTENER => self.accept(!ctx.queues.is_empty(), ctx.ops),
            id if self.by_id.contains_key(&id) => self.on_socket(id, events.event_set(), ctx.ops),
            // A reset has closed the connection. If another process has a copy of the socket, its events go on.
            FIRST_ID.. => drop(ctx.ops.remove(events)),
            _ => self.listen(true, ctx.ops), // the guest is active and may have closed connections
        }
        if let [rx, tx, _] = &mut *ctx.queues {
            self.process_queues(rx, tx, ctx.ops);
        }
    }
}

/// Returns the next number that is not in use, counting from `first` and starting again after `u32::MAX`.
fn allocate(next: &mut u32, first: u32, in_use: impl Fn(u32) -> bool) -> u32 {
    loop {
        let number = *next;
        *next = number.wrapping_add(1).max(first);
        if !in_use(number) {
            return number;
        }
    }
}
