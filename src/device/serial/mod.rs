//! The serial console: a 16550 UART (`vm-superio`) between the guest and two buffers that the event loop empties and fills.
//!
//! ```text
//!  guest ── THR ──► UART ──► output ──► event loop ──► stdout
//!  guest ◄─ RBR ─── FIFO ◄── staging ◄── event loop ◄── stdin
//! ```
//!
//! vCPU threads never touch a host file: they fill `output` and ring `wake`. A full buffer holds back only the vCPU that
//! writes, and a full staging area makes the loop stop reading its source, so neither direction loses a byte.
//!
//! **Coalesced output.** A polling console costs two exits a byte: read LSR, write THR. Once the guest is seen polling,
//! the port's writes are handed to KVM's coalescing ring, where they wait without an exit until the next LSR read. While
//! that is on, the loop calls [`ConsolePort::on_timer`] every 5 ms, so a byte that no read follows is not late either; when the
//! guest falls silent it goes off again, and an idle machine costs nothing.

mod coalesce;

pub use coalesce::Coalescer;

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Uart};
use vmm_sys_util::eventfd::EventFd;

use super::console_port::{ConsolePort, Output, OutputTap, Pending, SILENT_TICKS};
use super::{Device, GuestRequest, Response};

/// First port of COM1.
pub const COM1_PORT: u16 = 0x3f8;
/// Ports of a UART.
pub const COM1_PORTS: u16 = 8;
/// Interrupt line of COM1.
pub const COM1_IRQ: u32 = 4;
/// First port of COM2.
pub const COM2_PORT: u16 = 0x2f8;
/// Interrupt line of COM2.
pub const COM2_IRQ: u32 = 3;

const STAGING_LIMIT: usize = 4 << 10;
/// Bytes the guest must have polled out in a row before coalescing goes on.
const POLLED_BYTES: u32 = 8;

/// Line status reads in a row by which a guest shows that it polls for input.
const POLLS: u32 = 16;
/// How often in a row input is taken back from a guest that reads none: a handler may mask the interrupt before it looks.
const TAKE_BACKS: u8 = 4;
/// Bytes taken from the coalescing ring at once: more than it holds, fewer than other vCPUs could feed it for ever.
const RING_BATCH: usize = 256;

// Register offsets and bits of the 16550 (PC16550D data sheet, table II).
const RBR: u64 = 0;
const THR: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const LCR: u64 = 3;
const LSR: u64 = 5;
const IER_RECEIVED: u8 = 1 << 0;
const IIR_RECEIVED: u8 = 1 << 2;
const LCR_DLAB: u8 = 1 << 7;
const LSR_DATA_READY: u8 = 1 << 0;

/// COM1. Shared between the vCPU threads (as a [`Device`]) and the event loop (all other methods).
#[derive(Debug)]
pub struct Serial {
    state: Mutex<State>,
    room: Condvar,
    wake: EventFd,
}

struct State {
    uart: Uart<Irq, NoEvents, Output>,
    fifo_size: usize,
    staging: VecDeque<u8>,
    starved: bool, // the loop was told that the staging area is full
    ring: Option<Box<dyn Coalescer>>,
    coalescing: bool,
    divisor_latch: bool,
    listening: bool, // the guest has its input interrupt enabled
    noticed: bool,   // and knows of what is in the FIFO
    taken_back: u8,
    polls: u32,
    lsr_read: bool,
    polled: u32,
    silent: u32,
    told: Told,
}

/// What the loop has been woken for and has not looked at yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Nothing,
    Some,
    Urgent,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("coalescing", &self.coalescing).field("told", &self.told).finish_non_exhaustive()
    }
}

struct Irq(EventFd);

impl Trigger for Irq {
    type E = io::Error;
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

impl Serial {
    /// A UART that raises `irq` and rings `wake` when the event loop has something to do.
    pub fn new(irq: EventFd, wake: EventFd) -> Self {
        let uart = Uart::new(Irq(irq), Output::default());
        let fifo_size = uart.fifo_capacity(); // it is empty
        let state = State {
            fifo_size,
            uart,
            staging: VecDeque::with_capacity(STAGING_LIMIT + fifo_size),
            starved: false,
            ring: None,
            coalescing: false,
            divisor_latch: false,
            listening: false,
            noticed: false,
            taken_back: 0,
            polls: 0,
            lsr_read: false,
            polled: 0,
            silent: 0,
            told: Told::Nothing,
        };
        Self { state: Mutex::new(state), room: Condvar::new(), wake }
    }

    /// Lets bytes of a polling guest wait in `ring`.
    pub fn set_coalescer(&self, ring: Box<dyn Coalescer>) {
        self.lock().ring = Some(ring);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConsolePort for Serial {
    fn set_tap(&self, tap: Box<dyn OutputTap>) {
        self.lock().uart.writer_mut().tap = Some(tap);
    }

    fn drain(&self, into: &mut Vec<u8>) {
        let mut state = self.lock();
        state.told = Told::Nothing;
        state.uart.writer_mut().drain(into);
        self.room.notify_all();
    }

    fn poll(&self) -> Pending {
        let state = self.lock();
        let output = state.uart.writer();
        Pending {
            needs_timer: state.coalescing || output.watch.ended(),
            wants_input: state.staging.len() < STAGING_LIMIT,
            flush_now: output.flush_now(),
            has_output: !output.bytes.is_empty(),
        }
    }

    fn push_input(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        let taken = bytes.len().min(STAGING_LIMIT.saturating_sub(state.staging.len()));
        state.staging.extend(&bytes[..taken]);
        state.starved = state.staging.len() >= STAGING_LIMIT;
        state.refill();
        taken
    }

    fn on_timer(&self) -> Response {
        let mut state = self.lock();
        state.silent += 1;
        if state.uart.writer().room() > 0 {
            state.drain_ring();
        }
        if state.silent <= SILENT_TICKS {
            return ControlFlow::Continue(());
        }
        if state.coalescing {
            state.coalesce(false);
            state.drain_ring(); // what came in before the call took effect
        }
        match state.uart.writer().watch.ended() {
            true => ControlFlow::Break(GuestRequest::Panic),
            false => ControlFlow::Continue(()),
        }
    }

    fn close(&self) {
        let mut state = self.lock();
        state.drain_ring();
        state.uart.writer_mut().closed = true;
        self.room.notify_all();
    }

    fn panicked(&self) -> bool {
        self.lock().uart.writer().watch.began()
    }
}

impl State {
    /// Fills the FIFO from the staging area once the guest has emptied it. Until it has its interrupt enabled or polls,
    /// input stays out of its reach: drivers empty the FIFO while they set the port up.
    fn refill(&mut self) {
        let (front, _) = self.staging.as_slices();
        let heard = self.listening || self.polls >= POLLS;
        if front.is_empty() || !heard || self.uart.fifo_capacity() < self.fifo_size {
            return; // one interrupt a FIFO, not one a byte
        }
        // An error means that the interrupt could not be raised (the eventfd's counter is full, so it is raised already).
        let taken = self.uart.enqueue_raw_bytes(front).unwrap_or(front.len().min(self.fifo_size));
        self.staging.drain(..taken);
        self.noticed = false;
    }

    /// Takes back input that the guest has not been told of, as it listens no longer: a driver that sets the port up enables
    /// the interrupt for a moment, to see whether it can, and then empties the FIFO.
    fn take_back(&mut self) {
        let unread = self.fifo_size - self.uart.fifo_capacity();
        self.taken_back += u8::from(unread > 0);
        for _ in 0..unread {
            let byte = self.uart.read(THR as u8);
            self.staging.push_back(byte);
        }
        self.staging.rotate_right(unread);
    }

    fn transmit(&mut self, byte: u8) {
        self.polls = 0;
        self.silent = 0;
        let _ = self.uart.write(THR as u8, byte); // the buffer takes every byte; for the interrupt see `refill`
    }

    fn drain_ring(&mut self) {
        for _ in 0..RING_BATCH {
            match self.ring.as_mut().and_then(|ring| ring.pop()) {
                Some(byte) => self.transmit(byte),
                None => return,
            }
        }
    }

    fn coalesce(&mut self, on: bool) {
        if let Some(ring) = &mut self.ring {
            let done = ring.set(on).is_ok();
            self.coalescing = on && done;
            self.polled = 0;
            self.silent = 0;
        }
    }
}

impl Serial {
    /// Waits until the loop has emptied a full buffer. Other vCPUs can use the port meanwhile.
    fn wait_for_room<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        while state.uart.writer().room() == 0 {
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    /// Rings `wake` if the loop does not know yet what it should know.
    fn tell(&self, state: &mut State, coalescing_began: bool) {
        let output = state.uart.writer();
        let now = match (output.bytes.is_empty(), output.flush_now()) {
            (_, true) => Told::Urgent,
            (false, _) => Told::Some,
            _ => Told::Nothing,
        };
        let hungry_again = state.starved && state.staging.len() <= STAGING_LIMIT / 2;
        if now > state.told || coalescing_began || hungry_again {
            state.starved &= !hungry_again;
            state.told = state.told.max(now);
            let _ = self.wake.write(1); // an overflowing counter has rung already
        }
    }
}

impl Device for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.lock();
        state.drain_ring();
        // A polling guest whose bytes all go through the ring is held back here.
        state = self.wait_for_room(state);
        state.lsr_read = offset == LSR;
        state.polls = if offset == LSR { state.polls.saturating_add(1) } else { 0 };
        state.refill();
        data[0] = state.uart.read(offset as u8);
        state.noticed |= match offset {
            IIR => data[0] & IIR_RECEIVED != 0,
            LSR => data[0] & LSR_DATA_READY != 0,
            _ => false,
        };
        if offset == RBR && !state.divisor_latch {
            state.taken_back = 0;
        }
        state.refill();
        self.tell(&mut state, false);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Response {
        let mut state = self.lock();
        state.drain_ring();
        state.polls = 0;
        let mut coalescing_began = false;
        if offset == THR && !state.divisor_latch {
            state = self.wait_for_room(state);
            state.transmit(data[0]);
            state.polled = if std::mem::take(&mut state.lsr_read) { state.polled.saturating_add(1) } else { 0 };
            if state.polled >= POLLED_BYTES && state.ring.is_some() && !state.coalescing {
                state.coalesce(true);
                coalescing_began = state.coalescing;
            }
        } else {
            match offset {
                IER if !state.divisor_latch => {
                    state.listening = data[0] & IER_RECEIVED != 0;
                    if !state.listening && !state.noticed && state.taken_back < TAKE_BACKS {
                        state.take_back();
                    }
                }
                LCR => state.divisor_latch = data[0] & LCR_DLAB != 0,
                _ => {}
            }
            let _ = state.uart.write(offset as u8, data[0]); // see `transmit`
            state.refill(); // the guest listens again, or has left loopback mode, in which nothing comes in
        }
        self.tell(&mut state, coalescing_began);
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests;
