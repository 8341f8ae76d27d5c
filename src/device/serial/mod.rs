//! The serial port: a 16550 UART (`vm-superio`) between the guest and two buffers that the event loop empties and
//! fills.
//!
//! ```text
//!  guest ── THR ──► UART ──► OutputBuffer ──► event loop ──► stdout
//!  guest ◄─ RBR ─── FIFO ◄── InputQueue   ◄── event loop ◄── stdin
//! ```
//!
//! vCPU threads never access a host file: they fill the output buffer, refill the FIFO from the input queue, and signal
//! `wake`. A full output buffer blocks only the vCPU that writes. While the input queue is full, the loop does not read
//! its source. So neither direction loses a byte.
//!
//! **Coalesced output.** A polling console costs two exits a byte: read LSR, write THR. When the guest is seen polling,
//! the port's writes go to KVM's coalescing ring, where they wait without an exit until the next LSR read. While that
//! is on, the loop calls [`ConsolePort::on_timer`] every 5 ms, so a byte leaves within 5 ms even if no read follows. It
//! is switched off when the guest writes nothing for a while, so an idle guest needs no timer.

#![expect(clippy::cast_possible_truncation, reason = "the offsets of registers are below 8")]

mod coalesce;

pub use crate::sys::coalesced_port::Coalescer;

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Uart};
use vmm_sys_util::eventfd::EventFd;

use super::console_port::{ConsolePort, InputQueue, OutputBuffer, Pending};
use super::{Device, Response};
use coalesce::Coalescing;

/// First port of COM1.
pub const COM1_PORT: u16 = 0x3f8;
/// Number of ports of a UART.
pub const COM1_PORTS: u8 = 8;
/// Interrupt line of COM1.
pub const COM1_IRQ: u32 = 4;
/// First port of COM2.
pub const COM2_PORT: u16 = 0x2f8;
/// Interrupt line of COM2.
pub const COM2_IRQ: u32 = 3;

/// Line status reads in a row by which a guest shows that it polls for input.
const INPUT_POLLS: u32 = 16;
/// How often in a row unread input is withdrawn: a handler may mask the interrupt before it looks.
const MAX_WITHDRAWALS: u8 = 4;

// Register offsets and bits of the 16550 (PC16550D data sheet, table II).
const RBR: u64 = 0;
const THR: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const IER_RECEIVED: u8 = 1 << 0;
const IIR_RECEIVED: u8 = 1 << 2;
const LCR_DLAB: u8 = 1 << 7;
const MCR_LOOP: u8 = 1 << 4;
const LSR_DATA_READY: u8 = 1 << 0;

/// A serial port. Shared between the vCPU threads (as a [`Device`]) and the event loop (as a [`ConsolePort`]).
#[derive(Debug)]
pub struct Serial {
    state: Mutex<State>,
    room: Condvar,
    wake: EventFd,
}

#[derive(Debug)]
struct State {
    uart: Uart<Irq, NoEvents, OutputBuffer>,
    fifo_size: usize,
    input: InputQueue,
    coalescing: Coalescing,
    input_noticed: bool, // the guest has read a register that shows the input in the FIFO
    withdrawals: u8,
    lsr_reads: u32, // in a row
    notified: Notified,
}

/// What `wake` has been signalled for and the loop has not drained yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Notified {
    Nothing,
    Output,
    FlushNow,
}

#[derive(Debug)]
struct Irq(EventFd);

impl Trigger for Irq {
    type E = io::Error;
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

impl Write for OutputBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Serial {
    /// A UART that signals `irq` for its interrupt and `wake` when the event loop has work.
    pub fn new(irq: EventFd, wake: EventFd) -> Self {
        let uart = Uart::new(Irq(irq), OutputBuffer::default());
        let state = State {
            fifo_size: uart.fifo_capacity(), // it is empty
            uart,
            input: InputQueue::default(),
            coalescing: Coalescing::default(),
            input_noticed: false,
            withdrawals: 0,
            lsr_reads: 0,
            notified: Notified::Nothing,
        };
        Self { state: Mutex::new(state), room: Condvar::new(), wake }
    }

    /// Sets the ring in which the writes of a polling guest wait.
    pub fn set_coalescer(&self, ring: Box<dyn Coalescer>) {
        self.lock().coalescing.ring = Some(ring);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the loop has drained a full output buffer. Other vCPUs can use the port meanwhile.
    fn wait_for_room<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.room.wait_while(state, |state| state.output().room() == 0).unwrap_or_else(PoisonError::into_inner)
    }

    /// Signals `wake` if the loop has new work.
    fn notify(&self, state: &mut State, coalescing_began: bool) {
        let output = state.output();
        let now = match (output.is_empty(), output.flush_now()) {
            (_, true) => Notified::FlushNow,
            (false, _) => Notified::Output,
            _ => Notified::Nothing,
        };
        if state.input.take_unblocked() || now > state.notified || coalescing_began {
            state.notified = state.notified.max(now);
            let _ = self.wake.write(1); // a full counter is readable already
        }
    }
}

impl ConsolePort for Serial {
    fn drain(&self, into: &mut Vec<u8>) {
        let mut state = self.lock();
        state.notified = Notified::Nothing;
        state.output().drain(into);
        self.room.notify_all();
    }

    fn poll(&self) -> Pending {
        let mut state = self.lock();
        let (needs_timer, output) = (state.coalescing.on, state.output());
        Pending { needs_timer, flush_now: output.flush_now(), has_output: !output.is_empty() }
    }

    fn push_input(&self, bytes: &[u8]) {
        let mut state = self.lock();
        state.input.push(bytes);
        state.refill();
    }

    fn input_room(&self) -> usize {
        self.lock().input.room()
    }

    fn on_timer(&self) {
        let mut state = self.lock();
        let off = state.coalescing.on_timer();
        if off || state.output().room() > 0 {
            state.drain_ring();
        }
    }

    fn close(&self) {
        let mut state = self.lock();
        state.drain_ring();
        state.output().close();
        self.room.notify_all();
    }
}

impl State {
    fn output(&mut self) -> &mut OutputBuffer {
        self.uart.writer_mut()
    }

    /// Whether registers 0 and 1 are those of the divisor.
    fn divisor_latch(&mut self) -> bool {
        self.uart.read(LCR as u8) & LCR_DLAB != 0
    }

    /// Fills the FIFO from the input queue once the guest has emptied it: one interrupt a FIFO, not one a byte. Input
    /// stays in the queue until the guest has enabled the interrupt or polls: drivers empty the FIFO while they set the
    /// port up.
    fn refill(&mut self) {
        let interrupt_enabled = !self.divisor_latch() && self.uart.read(IER as u8) & IER_RECEIVED != 0;
        let reads_input = interrupt_enabled || self.lsr_reads >= INPUT_POLLS;
        let front = self.input.front();
        if front.is_empty() || !reads_input || self.uart.fifo_capacity() < self.fifo_size {
            return;
        }
        // An error means that the interrupt could not be raised: the eventfd's counter is full, so it is raised
        // already.
        let taken = self.uart.enqueue_raw_bytes(front).unwrap_or(front.len().min(self.fifo_size));
        self.input.consume(taken);
        self.input_noticed = false;
    }

    /// Moves input that the guest has not noticed back from the FIFO to the queue. A driver that sets the port up
    /// enables the interrupt for a moment, to see whether it can, and then empties the FIFO. In loopback mode the FIFO
    /// holds the guest's own bytes, which are not input.
    fn withdraw(&mut self) {
        let unread = self.fifo_size - self.uart.fifo_capacity();
        let loopback = self.uart.read(MCR as u8) & MCR_LOOP != 0;
        if self.input_noticed || loopback || unread == 0 || self.withdrawals >= MAX_WITHDRAWALS {
            return;
        }
        self.withdrawals += 1;
        self.input.unread((0..unread).map(|_| self.uart.read(RBR as u8)));
    }

    fn transmit(&mut self, byte: u8) {
        self.lsr_reads = 0;
        self.coalescing.silent = 0;
        let _ = self.uart.write(THR as u8, byte); // the buffer takes every byte; for the interrupt see `refill`
    }

    fn drain_ring(&mut self) {
        for _ in 0..coalesce::BATCH {
            match self.coalescing.pop() {
                Some(byte) => self.transmit(byte),
                None => return,
            }
        }
    }
}

impl Device for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.lock();
        state.drain_ring();
        // A polling guest whose bytes all go through the ring waits here.
        state = self.wait_for_room(state);
        state.lsr_reads = if offset == LSR { state.lsr_reads.saturating_add(1) } else { 0 };
        if offset == LSR {
            state.refill(); // a guest that polls sees its input at this read
        }
        data[0] = state.uart.read(offset as u8);
        state.input_noticed |= match offset {
            IIR => data[0] & IIR_RECEIVED != 0,
            LSR => data[0] & LSR_DATA_READY != 0,
            _ => false,
        };
        if offset == RBR && !state.divisor_latch() {
            state.withdrawals = 0;
            state.refill();
        }
        self.notify(&mut state, false);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Response {
        let mut state = self.lock();
        let after_lsr_read = state.lsr_reads > 0;
        state.drain_ring();
        state.lsr_reads = 0;
        let mut coalescing_began = false;
        if offset == THR && !state.divisor_latch() {
            state = self.wait_for_room(state);
            state.transmit(data[0]);
            coalescing_began = state.coalescing.on_write(after_lsr_read);
        } else {
            if offset == IER && data[0] & IER_RECEIVED == 0 && !state.divisor_latch() {
                state.withdraw();
            }
            let _ = state.uart.write(offset as u8, data[0]); // see `transmit`
            // The guest may read input again, or have left loopback mode, in which the FIFO receives no input.
            state.refill();
        }
        self.notify(&mut state, coalescing_began);
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests;
