//! Console (virtio 1.3, 5.3): the guest's `hvc0`. What a driver writes at once is one request, however long; a serial port has
//! an exit or two a byte.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::mem::take;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::{BACKEND, Chain, DeviceContext, ResetState, VirtioDevice};
use crate::device::console_port::{ConsolePort, Output, OutputTap, Pending, SILENT_TICKS};
use crate::device::{GuestRequest, Response};
use crate::event::{EventOps, EventSet, Events, Timer};
use crate::sys::winsize::WinSize;

// The queues.
const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;

/// `VIRTIO_CONSOLE_F_SIZE` (linux/virtio_console.h): the configuration space tells the size of the terminal.
const SIZE: u64 = 1 << 0;
/// Bytes of input that wait for the guest.
const INPUT_LIMIT: usize = 64 << 10;
/// Bytes moved at once.
const BLOCK: usize = 4 << 10;
/// Blocks moved before other devices have their ctx.
const BLOCKS: usize = 16;

/// How long a driver that is ready may take until it has a terminal for the input.
const PATIENCE: Duration = Duration::from_secs(3);
const WORK_EVENT: u32 = BACKEND;
const TIMER_EVENT: u32 = BACKEND + 1;

/// The console's side towards the host.
#[derive(Debug)]
pub struct Port {
    state: Mutex<State>,
    /// Rung when the host has something to do.
    wake: EventFd,
    /// Rung when the device has something to do.
    work: EventFd,
}

#[derive(Debug)]
struct State {
    output: Output,
    blocked: bool, // the guest waits for room
    silent: u32,
    input: VecDeque<u8>,
    starved: bool, // the host waits for room
    size: Option<WinSize>,
}

impl Port {
    /// A port that rings `wake` when the event loop has something to do. A terminal has a `size`.
    pub fn new(wake: EventFd, size: Option<WinSize>) -> io::Result<Self> {
        let state = State {
            output: Output::default(),
            blocked: false,
            silent: 0,
            input: VecDeque::new(),
            starved: false,
            size,
        };
        let work = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self { state: Mutex::new(state), wake, work })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the guest that its terminal has another size.
    pub fn resize(&self, size: WinSize) {
        self.lock().size = Some(size);
        ring(&self.work);
    }
}

fn ring(event: &EventFd) {
    let _ = event.write(1); // an overflowing counter has rung already
}

impl ConsolePort for Port {
    fn set_tap(&self, tap: Box<dyn OutputTap>) {
        self.lock().output.tap = Some(tap);
    }

    fn drain(&self, into: &mut Vec<u8>) {
        let mut state = self.lock();
        state.output.drain(into);
        if take(&mut state.blocked) {
            ring(&self.work);
        }
    }

    fn poll(&self) -> Pending {
        let State { output, input, .. } = &*self.lock();
        Pending {
            needs_timer: output.watch.ended(),
            wants_input: input.len() < INPUT_LIMIT,
            flush_now: output.flush_now(),
            has_output: !output.bytes.is_empty(),
        }
    }

    fn push_input(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        let taken = bytes.len().min(INPUT_LIMIT.saturating_sub(state.input.len()));
        state.input.extend(&bytes[..taken]);
        state.starved = state.input.len() >= INPUT_LIMIT;
        if taken > 0 {
            ring(&self.work);
        }
        taken
    }

    fn on_timer(&self) -> Response {
        let mut state = self.lock();
        state.silent += 1;
        match state.silent > SILENT_TICKS && state.output.watch.ended() {
            true => ControlFlow::Break(GuestRequest::Panic),
            false => ControlFlow::Continue(()),
        }
    }

    fn close(&self) {
        self.lock().output.closed = true;
        ring(&self.work);
    }

    fn panicked(&self) -> bool {
        self.lock().output.watch.began()
    }
}

/// A console with one port.
#[derive(Debug)]
pub struct Console {
    port: Arc<Port>,
    sending: Chain,
    unsent: bool, // `sending` holds a request that is not done
    receiving: Chain,
    /// Whether input would have a reader. Linux throws away what comes between its first buffer and its terminal
    /// (drivers/char/virtio_console.c, add_port), so input waits until the driver has written something, or had time to.
    open: bool,
    patience: Timer,
    sized: bool,
    fresh: bool,      // the driver has only just come
    config: [u8; 12], // cols, rows, max_nr_ports, emerg_wr
    block: Box<[u8; BLOCK]>,
}

impl Console {
    /// The guest's end of `port`.
    ///
    /// Fails when the host has no more descriptors.
    pub fn new(port: Arc<Port>) -> io::Result<Self> {
        let sized = port.lock().size.is_some();
        let mut console = Self {
            port,
            sending: Chain::default(),
            unsent: false,
            receiving: Chain::default(),
            open: false,
            patience: Timer::new()?,
            sized,
            fresh: false,
            config: [0; 12],
            block: Box::new([0; BLOCK]),
        };
        console.resize();
        Ok(console)
    }

    /// Takes a new size over; returns whether there is one.
    fn resize(&mut self) -> bool {
        let Some(WinSize { rows, cols }) = self.port.lock().size.take() else { return false };
        self.config[..2].copy_from_slice(&cols.to_le_bytes());
        self.config[2..4].copy_from_slice(&rows.to_le_bytes());
        self.sized
    }

    /// Moves what the guest writes to the host, as far as there is room.
    fn transmit(&mut self, ctx: &mut DeviceContext<'_, '_>) {
        let Some(queue) = ctx.queues.get_mut(TRANSMIT as usize) else { return };
        let mut state = self.port.lock();
        for _ in 0..BLOCKS {
            if !self.unsent && !queue.pop(&mut self.sending) {
                break;
            }
            self.unsent = true;
            self.open = true;
            let room = state.output.room().min(BLOCK);
            let len = self.sending.readable.read(queue.memory(), &mut self.block[..room]);
            let _ = state.output.write(&self.block[..len]); // it takes every byte
            state.silent = 0;
            if self.sending.readable.is_empty() {
                queue.push(self.sending.head, 0);
                self.unsent = false;
            } else if room == 0 {
                state.blocked = true;
                break;
            }
        }
        if !state.output.bytes.is_empty() {
            ring(&self.port.wake);
        }
        if (self.unsent || queue.enable_notification()) && !state.blocked {
            ring(&self.port.work); // the rest is for the next turn
        }
    }

    /// Moves what the host has to the guest, as far as there are buffers.
    fn receive(&mut self, ctx: &mut DeviceContext<'_, '_>) {
        let Some(queue) = ctx.queues.get_mut(RECEIVE as usize) else { return };
        let mut state = self.port.lock();
        while self.open && !state.input.is_empty() && queue.pop(&mut self.receiving) {
            let (front, _) = state.input.as_slices();
            let len = self.receiving.writable.write(queue.memory(), front);
            state.input.drain(..len);
            queue.push(self.receiving.head, len);
        }
        if state.starved && state.input.len() <= INPUT_LIMIT / 2 {
            state.starved = false;
            ring(&self.port.wake);
        }
    }
}

impl VirtioDevice for Console {
    const TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
    const QUEUES: &'static [u16] = &[64, 64];

    fn features(&self) -> u64 {
        if self.sized { SIZE } else { 0 }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn init(&mut self, ops: &mut EventOps) {
        // They were just made and nobody else has them; if the host is out of memory the console is mute.
        let _ = ops.add(Events::with_data(&self.port.work, WORK_EVENT, EventSet::IN | EventSet::EDGE_TRIGGERED));
        let _ = ops.add(Events::with_data(&self.patience, TIMER_EVENT, EventSet::IN));
    }

    /// Linux looks at the size when it is told of a change, and not before (drivers/char/virtio_console.c, config_work_handler).
    fn activate(&mut self, _features: u64) {
        self.fresh = self.sized;
        self.open = self.patience.arm(PATIENCE).is_err();
        ring(&self.port.work);
    }

    fn reset(&mut self) -> ResetState {
        self.unsent = false;
        self.open = false;
        let _ = self.patience.disarm(); // it can be
        ResetState::Done
    }

    fn process(&mut self, events: Events, ctx: &mut DeviceContext<'_, '_>) {
        match events.data() {
            RECEIVE => {}
            TRANSMIT => self.transmit(ctx),
            TIMER_EVENT => self.open |= matches!(self.patience.read(), Ok(Some(_))),
            _ => {
                ctx.config_changed = self.resize() | take(&mut self.fresh);
                self.transmit(ctx);
            }
        }
        self.receive(ctx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::virtio::testing::*;
    use std::time::Instant;

    fn console(size: Option<WinSize>) -> (Driver<Console>, Arc<Port>, EventFd) {
        let wake = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let port = Arc::new(Port::new(wake.try_clone().unwrap(), size).unwrap());
        let features = VERSION_1 | size.map_or(0, |_| SIZE_FEATURE);
        (Driver::running(Console::new(port.clone()).unwrap(), features), port, wake)
    }

    const SIZE_FEATURE: u64 = super::SIZE;

    fn pulled(port: &Port) -> Vec<u8> {
        let mut bytes = Vec::new();
        port.drain(&mut bytes);
        bytes
    }

    #[test]
    fn what_the_guest_writes_comes_out_and_wakes_the_loop() {
        let (mut driver, port, wake) = console(None);
        driver.put(BUFFERS, b"hello\nworld");
        driver.request(TRANSMIT, &[(BUFFERS, 6), (BUFFERS + 6, 5)], &[]);
        assert_eq!(driver.used(TRANSMIT), [(0, 0)]);
        assert!(wake.read().is_ok());
        assert!(port.poll().flush_now);
        assert_eq!(pulled(&port), b"hello\nworld");
        assert!(!port.poll().has_output);
    }

    #[test]
    fn a_full_buffer_holds_the_guest_back_and_loses_nothing() {
        const OUTPUT_LIMIT: usize = crate::device::console_port::OUTPUT_LIMIT;
        let (mut driver, port, _wake) = console(None);
        let piece = 0x4_0000;
        let text: Vec<u8> = (0..piece).map(|n| (n % 251) as u8).collect();
        driver.put(BUFFERS, &text);
        driver.request(TRANSMIT, &[(BUFFERS, piece as u32)], &[]);
        let mut all = Vec::new();
        while driver.used(TRANSMIT).is_empty() {
            let bytes = pulled(&port);
            assert!((1..=OUTPUT_LIMIT).contains(&bytes.len()), "{}", bytes.len());
            all.extend(bytes);
            driver.run();
        }
        all.extend(pulled(&port));
        assert!(all == text);
    }

    #[test]
    fn after_a_turn_as_long_as_may_be_the_next_request_is_heard() {
        let (mut driver, port, _wake) = console(None);
        driver.request(TRANSMIT, &[(BUFFERS, (BLOCKS * BLOCK) as u32)], &[]);
        while driver.used(TRANSMIT).is_empty() {
            pulled(&port);
            driver.run();
        }
        let flags = driver.get(rings(TRANSMIT)[2], 2);
        assert_eq!(flags, [0, 0], "the driver is told not to ring");
    }

    #[test]
    fn a_closed_console_swallows_everything_but_still_sees_a_panic() {
        let (mut driver, port, _wake) = console(None);
        port.close();
        let text = b"\nKernel panic - not syncing: test\n---[ end Kernel panic\n";
        driver.put(BUFFERS + 0x2_0000, text);
        driver.request(TRANSMIT, &[(BUFFERS, 0x2_0000 + text.len() as u32)], &[]);
        assert_eq!(driver.used(TRANSMIT), [(0, 0)]);
        assert_eq!(pulled(&port), b"");
        assert!(port.panicked() && port.poll().needs_timer);
        let silent = (0..SILENT_TICKS).all(|_| port.on_timer().is_continue());
        assert!(silent && port.on_timer() == ControlFlow::Break(GuestRequest::Panic));
    }

    #[test]
    fn input_waits_for_buffers_and_a_full_queue_wakes_the_loop_when_there_is_room() {
        let (mut driver, port, wake) = console(None);
        driver.request(TRANSMIT, &[(BUFFERS, 1)], &[]);
        pulled(&port);
        wake.read().unwrap();
        assert_eq!(port.push_input(&[7; INPUT_LIMIT + 1]), INPUT_LIMIT);
        assert!(!port.poll().wants_input);
        driver.run();
        driver.request(RECEIVE, &[], &[(BUFFERS, 100), (BUFFERS + 0x1000, 100)]);
        assert_eq!(driver.used(RECEIVE), [(0, 200)]);
        assert_eq!((driver.get(BUFFERS + 99, 2), driver.get(BUFFERS + 0x1099, 2)), (vec![7, 0], vec![0, 0]));
        assert!(wake.read().is_err());
        driver.request(RECEIVE, &[], &[(BUFFERS, INPUT_LIMIT as u32)]);
        assert_eq!(driver.used(RECEIVE)[1], (0, INPUT_LIMIT as u32 - 200));
        assert!(wake.read().is_ok());
        assert!(port.poll().wants_input);
    }

    #[test]
    fn input_waits_for_a_driver_that_has_written_or_had_time_to() {
        let begun = Instant::now();
        let (mut driver, port, _wake) = console(None);
        port.push_input(b"early");
        driver.request(RECEIVE, &[], &[(BUFFERS, 100)]);
        assert!(driver.used(RECEIVE).is_empty() || begun.elapsed() > PATIENCE);
        driver.request(TRANSMIT, &[(BUFFERS, 1)], &[]);
        assert_eq!(driver.used(RECEIVE), [(0, 5)]);

        driver.write(STATUS, 0);
        let begun = Instant::now();
        driver.start(VERSION_1);
        port.push_input(b"late");
        driver.request(RECEIVE, &[], &[(BUFFERS, 100)]);
        assert!(driver.used(RECEIVE).is_empty() || begun.elapsed() > PATIENCE);
        while driver.used(RECEIVE).is_empty() {
            assert!(begun.elapsed() < 60 * PATIENCE);
            driver.run();
        }
        assert_eq!(driver.used(RECEIVE), [(0, 4)]);
    }

    #[test]
    fn a_driver_hears_of_the_terminal_s_size_when_it_is_ready_and_when_that_changes() {
        let (mut driver, port, _wake) = console(Some(WinSize { rows: 25, cols: 80 }));
        assert_eq!((driver.read(CONFIG), driver.read(INTERRUPT_STATUS), driver.interrupts()), (25 << 16 | 80, 3, 1));
        port.resize(WinSize { rows: 50, cols: 132 });
        driver.run();
        assert_eq!((driver.read(CONFIG), driver.read(INTERRUPT_STATUS), driver.interrupts()), (50 << 16 | 132, 3, 1));
    }

    #[test]
    fn a_reset_in_the_middle_of_a_request_forgets_it() {
        let (mut driver, port, _wake) = console(None);
        driver.request(TRANSMIT, &[(BUFFERS, 0x4_0000)], &[]);
        assert_eq!(driver.used(TRANSMIT), []);
        driver.write(STATUS, 0);
        driver.start(VERSION_1);
        pulled(&port);
        driver.run();
        assert_eq!(pulled(&port), b"");
        driver.put(BUFFERS, b"new");
        driver.request(TRANSMIT, &[(BUFFERS, 3)], &[]);
        assert_eq!((driver.used(TRANSMIT), pulled(&port)), (vec![(0, 0)], b"new".to_vec()));
    }
}
