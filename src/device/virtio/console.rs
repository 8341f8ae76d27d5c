//! Console (virtio 1.3, 5.3): the guest's `hvc0`. A buffer of any length is one request of the driver; a serial port
//! has an exit or two a byte.

use std::io;
use std::mem::take;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::{BACKEND, Chain, DeviceContext, VirtioDevice};
use crate::device::console_port::{ConsolePort, InputQueue, OutputBuffer, Pending};
use crate::event::{EventOps, EventSet, Events, Timer};
use crate::sys::winsize::WinSize;

// The queues of port 0 (virtio 1.3, 5.3.2).
const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;

/// `VIRTIO_CONSOLE_F_SIZE` (linux/virtio_console.h): the configuration space has the size of the terminal.
const F_SIZE: u64 = 1 << 0;
/// Bytes moved at once.
const BLOCK: usize = 4 << 10;
/// Blocks moved before the event loop serves other devices.
const BLOCKS_PER_TURN: usize = 16;
/// How long input waits for a driver that is ready but has not written anything.
const OPEN_TIMEOUT: Duration = Duration::from_secs(3);

const WORK_EVENT: u32 = BACKEND;
const TIMER_EVENT: u32 = BACKEND + 1;

/// The console's side towards the host.
#[derive(Debug)]
pub struct Port {
    state: Mutex<State>,
    wake: EventFd, // signals the event loop's console
    work: EventFd, // signals the device
}

#[derive(Debug, Default)]
struct State {
    output: OutputBuffer,
    output_blocked: bool, // the driver waits for room
    input: InputQueue,
    new_size: Option<WinSize>,
}

impl Port {
    /// A port that signals `wake` when the event loop has work. A terminal has a `size`.
    ///
    /// # Errors
    ///
    /// The host has no more descriptors.
    pub fn new(wake: EventFd, size: Option<WinSize>) -> io::Result<Self> {
        let state = State { new_size: size, ..State::default() };
        let work = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self { state: Mutex::new(state), wake, work })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the size of the guest's terminal.
    pub fn resize(&self, size: WinSize) {
        self.lock().new_size = Some(size);
        signal(&self.work);
    }
}

fn signal(event: &EventFd) {
    let _ = event.write(1); // a full counter is readable already
}

impl ConsolePort for Port {
    fn drain(&self, into: &mut Vec<u8>) {
        let mut state = self.lock();
        state.output.drain(into);
        if take(&mut state.output_blocked) {
            signal(&self.work);
        }
    }

    fn poll(&self) -> Pending {
        let output = &self.lock().output;
        Pending { needs_timer: false, flush_now: output.flush_now(), has_output: !output.is_empty() }
    }

    fn push_input(&self, bytes: &[u8]) {
        self.lock().input.push(bytes);
        signal(&self.work);
    }

    fn input_room(&self) -> usize {
        self.lock().input.room()
    }

    fn close(&self) {
        self.lock().output.close();
        signal(&self.work);
    }
}

/// A console with one port.
#[derive(Debug)]
pub struct Console {
    port: Arc<Port>,
    sending: Chain,
    unsent: bool, // `sending` holds a request that is not done
    receiving: Chain,
    /// Whether the driver has a reader for input. Linux discards input that arrives between its first buffer and its
    /// terminal (drivers/char/virtio_console.c, add_port), so input waits until the driver writes or [`OPEN_TIMEOUT`]
    /// has passed.
    open: bool,
    open_timer: Timer,
    has_size: bool,
    announce_size: bool,
    config: [u8; 12], // cols, rows, max_nr_ports, emerg_wr (5.3.4)
    block: Box<[u8; BLOCK]>,
}

impl Console {
    /// The device behind `port`.
    ///
    /// # Errors
    ///
    /// The host has no more descriptors.
    pub fn new(port: Arc<Port>) -> io::Result<Self> {
        let has_size = port.lock().new_size.is_some();
        let mut console = Self {
            port,
            sending: Chain::default(),
            unsent: false,
            receiving: Chain::default(),
            open: false,
            open_timer: Timer::new()?,
            has_size,
            announce_size: false,
            config: [0; 12],
            block: Box::new([0; BLOCK]),
        };
        console.update_size();
        Ok(console)
    }

    /// Copies a new size to the configuration space. Returns whether the driver must be notified.
    fn update_size(&mut self) -> bool {
        let Some(WinSize { rows, cols }) = self.port.lock().new_size.take() else { return false };
        self.config[..2].copy_from_slice(&cols.to_le_bytes());
        self.config[2..4].copy_from_slice(&rows.to_le_bytes());
        self.has_size
    }

    /// Moves the driver's output to the host, as far as there is room.
    fn transmit(&mut self, ctx: &mut DeviceContext<'_, '_>) {
        let Some(queue) = ctx.queues.get_mut(TRANSMIT as usize) else { return };
        let mut state = self.port.lock();
        let mut more = true;
        for _ in 0..BLOCKS_PER_TURN {
            if !self.unsent && !queue.pop(&mut self.sending) {
                more = false; // until the driver notifies the queue
                break;
            }
            self.unsent = true;
            self.open = true;
            let room = state.output.room().min(BLOCK);
            let len = self.sending.readable.read(queue.memory(), &mut self.block[..room]);
            state.output.push(&self.block[..len]);
            if self.sending.readable.is_empty() {
                queue.push(self.sending.head, 0);
                self.unsent = false;
            } else if room == 0 {
                state.output_blocked = true;
                break;
            }
        }
        if !state.output.is_empty() {
            signal(&self.port.wake);
        }
        if more && !state.output_blocked {
            signal(&self.port.work); // the rest is for the next turn
        }
    }

    /// Moves input to the driver, as far as there are buffers.
    fn receive(&mut self, ctx: &mut DeviceContext<'_, '_>) {
        let Some(queue) = ctx.queues.get_mut(RECEIVE as usize) else { return };
        let mut state = self.port.lock();
        while self.open && !state.input.front().is_empty() && queue.pop(&mut self.receiving) {
            let len = self.receiving.writable.write(queue.memory(), state.input.front());
            state.input.consume(len);
            queue.push(self.receiving.head, len);
        }
        if state.input.take_unblocked() {
            signal(&self.port.wake);
        }
    }
}

impl VirtioDevice for Console {
    const TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
    const QUEUES: &'static [u16] = &[64, 64];

    fn features(&self) -> u64 {
        if self.has_size { F_SIZE } else { 0 }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Both descriptors are new, so this fails only when the host is out of memory; then the console transfers
        // nothing.
        let _ = ops.add(Events::with_data(&self.port.work, WORK_EVENT, EventSet::IN | EventSet::EDGE_TRIGGERED));
        let _ = ops.add(Events::with_data(&self.open_timer, TIMER_EVENT, EventSet::IN));
    }

    /// Linux reads the size when it receives a configuration change, and not before (drivers/char/virtio_console.c,
    /// config_work_handler), so the size is announced once to a new driver.
    fn activate(&mut self, _features: u64) {
        self.announce_size = self.has_size;
        self.open = self.open_timer.arm(OPEN_TIMEOUT).is_err();
        signal(&self.port.work);
    }

    fn reset(&mut self) {
        self.unsent = false;
        self.open = false;
        let _ = self.open_timer.disarm(); // fails only for an invalid descriptor
    }

    fn process(&mut self, events: Events, ctx: &mut DeviceContext<'_, '_>) {
        match events.data() {
            RECEIVE => {}
            TRANSMIT => self.transmit(ctx),
            TIMER_EVENT => self.open |= matches!(self.open_timer.read(), Ok(Some(_))),
            _ => {
                ctx.config_changed = self.update_size() | take(&mut self.announce_size);
                self.transmit(ctx);
            }
        }
        self.receive(ctx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::INPUT_LIMIT;
    use crate::device::virtio::testing::*;
    use std::time::Instant;

    fn console(size: Option<WinSize>) -> (Driver<Console>, Arc<Port>, EventFd) {
        let wake = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let port = Arc::new(Port::new(wake.try_clone().unwrap(), size).unwrap());
        let features = VERSION_1 | size.map_or(0, |_| SIZE_FEATURE);
        (Driver::running(Console::new(port.clone()).unwrap(), features), port, wake)
    }

    const SIZE_FEATURE: u64 = super::F_SIZE;

    fn drained(port: &Port) -> Vec<u8> {
        let mut bytes = Vec::new();
        port.drain(&mut bytes);
        bytes
    }

    #[test]
    fn output_arrives_and_wakes_the_loop() {
        let (mut driver, port, wake) = console(None);
        driver.put(BUFFERS, b"hello\nworld");
        driver.request(TRANSMIT, &[(BUFFERS, 6), (BUFFERS + 6, 5)], &[]);
        assert_eq!(driver.used(TRANSMIT), [(0, 0)]);
        assert!(wake.read().is_ok());
        assert!(port.poll().flush_now);
        assert_eq!(drained(&port), b"hello\nworld");
        assert!(!port.poll().has_output);
    }

    #[test]
    fn a_full_output_buffer_blocks_the_guest_and_loses_nothing() {
        const OUTPUT_LIMIT: usize = crate::device::console_port::OUTPUT_LIMIT;
        let (mut driver, port, _wake) = console(None);
        let len = 0x4_0000u32;
        let text: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
        driver.put(BUFFERS, &text);
        driver.request(TRANSMIT, &[(BUFFERS, len)], &[]);
        let mut all = Vec::new();
        while driver.used(TRANSMIT).is_empty() {
            let bytes = drained(&port);
            assert!((1..=OUTPUT_LIMIT).contains(&bytes.len()), "{}", bytes.len());
            all.extend(bytes);
            driver.run();
        }
        all.extend(drained(&port));
        assert!(all == text);
    }

    #[test]
    fn a_turn_that_ends_at_its_limit_enables_the_notification_again() {
        let (mut driver, port, _wake) = console(None);
        driver.request(TRANSMIT, &[(BUFFERS, u32::try_from(BLOCKS_PER_TURN * BLOCK).unwrap())], &[]);
        while driver.used(TRANSMIT).is_empty() {
            drained(&port);
            driver.run();
        }
        let flags = driver.get(rings(TRANSMIT)[2], 2);
        assert_eq!(flags, [0, 0], "notifications are off");
    }

    #[test]
    fn a_closed_console_discards_output() {
        let (mut driver, port, _wake) = console(None);
        port.close();
        driver.request(TRANSMIT, &[(BUFFERS, 0x2_0000)], &[]);
        assert_eq!(driver.used(TRANSMIT), [(0, 0)]);
        assert_eq!(drained(&port), b"");
    }

    #[test]
    fn input_waits_for_buffers_and_a_full_queue_wakes_the_loop_when_there_is_room() {
        let (mut driver, port, wake) = console(None);
        driver.request(TRANSMIT, &[(BUFFERS, 1)], &[]);
        drained(&port);
        wake.read().unwrap();
        port.push_input(&vec![7; INPUT_LIMIT + 1]);
        assert_eq!(port.input_room(), 0);
        driver.run();
        driver.request(RECEIVE, &[], &[(BUFFERS, 100), (BUFFERS + 0x1000, 100)]);
        assert_eq!(driver.used(RECEIVE), [(0, 200)]);
        assert_eq!((driver.get(BUFFERS + 99, 2), driver.get(BUFFERS + 0x1099, 2)), (vec![7, 0], vec![0, 0]));
        assert!(wake.read().is_err());
        let mut received = 200;
        while received < INPUT_LIMIT {
            driver.request(RECEIVE, &[], &[(BUFFERS, 0x1_0000)]);
            received += driver.used(RECEIVE).last().unwrap().1 as usize;
        }
        assert_eq!(received, INPUT_LIMIT);
        assert!(wake.read().is_ok());
        assert!(port.input_room() > 0);
    }

    #[test]
    fn input_waits_for_a_driver_that_has_written_or_had_time_to() {
        let begun = Instant::now();
        let (mut driver, port, _wake) = console(None);
        port.push_input(b"early");
        driver.request(RECEIVE, &[], &[(BUFFERS, 100)]);
        assert!(driver.used(RECEIVE).is_empty() || begun.elapsed() > OPEN_TIMEOUT);
        driver.request(TRANSMIT, &[(BUFFERS, 1)], &[]);
        assert_eq!(driver.used(RECEIVE), [(0, 5)]);

        driver.write(STATUS, 0);
        let begun = Instant::now();
        driver.start(VERSION_1);
        port.push_input(b"late");
        driver.request(RECEIVE, &[], &[(BUFFERS, 100)]);
        assert!(driver.used(RECEIVE).is_empty() || begun.elapsed() > OPEN_TIMEOUT);
        while driver.used(RECEIVE).is_empty() {
            assert!(begun.elapsed() < 60 * OPEN_TIMEOUT);
            driver.run();
        }
        assert_eq!(driver.used(RECEIVE), [(0, 4)]);
    }

    #[test]
    fn the_size_is_announced_to_a_new_driver_and_when_it_changes() {
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
        drained(&port);
        driver.run();
        assert_eq!(drained(&port), b"");
        driver.put(BUFFERS, b"new");
        driver.request(TRANSMIT, &[(BUFFERS, 3)], &[]);
        assert_eq!((driver.used(TRANSMIT), drained(&port)), (vec![(0, 0)], b"new".to_vec()));
    }
}
