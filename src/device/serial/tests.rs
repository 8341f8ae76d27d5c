#![expect(clippy::cast_possible_truncation, reason = "numbers wrap to bytes")]

use std::sync::Arc;

use super::*;
use crate::device::console_port::{INPUT_LIMIT, OUTPUT_LIMIT};
use coalesce::{BATCH, POLLED_BYTES, SILENT_PERIODS};
use std::collections::VecDeque;

struct Machine {
    serial: Arc<Serial>,
    irq: EventFd,
    wake: EventFd,
}

fn machine() -> Machine {
    let eventfd = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let (irq, wake) = (eventfd(), eventfd());
    let serial = Serial::new(irq.try_clone().unwrap(), wake.try_clone().unwrap());
    Machine { serial: Arc::new(serial), irq, wake }
}

impl Machine {
    fn inb(&self, offset: u64) -> u8 {
        let mut data = [0xff];
        self.serial.read(offset, &mut data);
        data[0]
    }
    fn outb(&self, offset: u64, value: u8) -> Response {
        self.serial.write(offset, &[value])
    }
    fn output(&self) -> String {
        let mut bytes = Vec::new();
        self.serial.drain(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }
    fn rang(event: &EventFd) -> bool {
        event.read().is_ok()
    }
}

#[test]
fn output_arrives_in_order_and_a_line_wakes_the_loop() {
    let m = machine();
    for byte in b"ok" {
        assert!(m.outb(THR, *byte).is_continue());
    }
    assert!(Machine::rang(&m.wake));
    assert!(!m.serial.poll().flush_now);
    assert!(m.outb(THR, b'\n').is_continue());
    assert!(Machine::rang(&m.wake));
    assert!(m.serial.poll().flush_now);
    assert_eq!(m.output(), "ok\n");
    assert!(!Machine::rang(&m.wake));
}

#[test]
fn a_pasted_page_arrives_whole_even_if_the_guest_masks_its_interrupts_meanwhile() {
    let m = machine();
    let paste: Vec<u8> = (0..10_000u32).map(|n| b'a' + (n % 26) as u8).collect();
    m.serial.push_input(&paste);
    let mut got = Vec::new();
    let mut masked = true;
    while got.len() < paste.len() {
        masked = !masked;
        let _ = m.outb(IER, if masked { 0 } else { 1 });
        if !masked {
            assert!(Machine::rang(&m.irq), "unmasking with data pending must interrupt, after {} bytes", got.len());
            assert_eq!(m.inb(IIR) & 0xf, 0x4);
        }
        for _ in 0..100 {
            if m.inb(LSR) & 1 != 0 {
                got.push(m.inb(THR));
            }
        }
    }
    assert_eq!(got, paste);
}

#[test]
fn a_full_input_queue_wakes_the_loop_when_half_of_it_is_free() {
    let m = machine();
    let _ = m.outb(IER, 1);
    m.serial.push_input(&vec![b'x'; INPUT_LIMIT]);
    m.serial.push_input(&[b'x'; 1 << 10]);
    assert_eq!(m.serial.input_room(), 0);
    for _ in 0..INPUT_LIMIT / 2 {
        assert!(!Machine::rang(&m.wake));
        assert_eq!(m.inb(THR), b'x');
    }
    assert!(m.serial.input_room() > 0);
    let more = (0..INPUT_LIMIT).take_while(|_| m.inb(LSR) & 1 != 0 && m.inb(THR) == b'x').count();
    assert!(Machine::rang(&m.wake) && more > 0);
}

/// The FIFO holds the guest's own bytes in loopback mode. A guest that fills it and masks the interrupt again and again
/// must not make the input queue grow.
#[test]
fn loopback_bytes_never_enter_the_input_queue() {
    let m = machine();
    let _ = m.outb(MCR, MCR_LOOP);
    for _ in 0..1_000 {
        (0..64).for_each(|_| assert!(m.outb(THR, b'x').is_continue()));
        let _ = m.outb(IER, 0);
        m.inb(RBR);
    }
    assert!(m.serial.lock().input.front().is_empty());
}

#[test]
fn input_that_comes_in_loopback_mode_waits_for_its_end() {
    let m = machine();
    let _ = m.outb(IER, 1);
    let _ = m.outb(MCR, 1 << 4);
    m.serial.push_input(b"x");
    assert_eq!(m.inb(LSR) & 1, 0);
    let _ = m.outb(MCR, 0);
    assert_eq!((m.inb(LSR) & 1, m.inb(THR)), (1, b'x'));
}

#[test]
fn input_that_comes_while_linux_sets_the_port_up_is_not_cleared_away() {
    let m = machine();
    m.serial.push_input(b"early");
    for interrupts in [0x0f, 0] {
        let _ = m.outb(IER, interrupts); // which of them are there?
    }
    for offset in [THR, LSR, THR, IIR, LSR, THR, IIR] {
        assert!(offset == IIR || m.inb(offset) & !0x60 == 0, "nothing to see"); // the transmitter is empty
    }
    while Machine::rang(&m.irq) {}
    let _ = m.outb(IER, 1);
    assert!(Machine::rang(&m.irq));
    assert_eq!([0; 5].map(|_| m.inb(THR)), *b"early");
}

#[test]
fn a_handler_may_mask_the_interrupt_before_it_reads() {
    let m = machine();
    let _ = m.outb(IER, 1);
    m.serial.push_input(b"ab");
    assert_eq!(m.inb(IIR) & 0xf, 0x4);
    let _ = m.outb(IER, 0);
    assert_eq!([m.inb(THR), m.inb(THR)], *b"ab");
}

#[test]
fn a_handler_that_masks_before_it_looks_at_anything_gets_its_input_too() {
    let m = machine();
    let _ = m.outb(IER, 1);
    m.serial.push_input(b"a");
    let read = (0..10).find_map(|_| {
        let _ = m.outb(IER, 0);
        let byte = (m.inb(LSR) & 1 != 0).then(|| m.inb(THR));
        let _ = m.outb(IER, 1);
        byte
    });
    assert_eq!(read, Some(b'a'));
}

#[test]
fn a_guest_that_polls_needs_no_interrupt() {
    let m = machine();
    m.serial.push_input(b"poll");
    let got = [0; 4].map(|_| {
        while m.inb(LSR) & 1 == 0 {}
        m.inb(THR)
    });
    assert_eq!(got, *b"poll");
}

#[test]
fn an_empty_transmitter_interrupts_once_enabled() {
    let m = machine();
    let _ = m.outb(IER, 2);
    assert!(Machine::rang(&m.irq));
    assert_eq!(m.inb(IIR) & 0xf, 0x2);
    assert!(m.outb(THR, b'x').is_continue());
    assert!(Machine::rang(&m.irq));
}

#[test]
fn the_divisor_is_not_output() {
    let m = machine();
    let _ = m.outb(LCR, 0x80);
    let _ = m.outb(THR, 1);
    let _ = m.outb(LCR, 0x03);
    let _ = m.outb(THR, b'x');
    assert_eq!(m.output(), "x");
}

#[test]
fn a_writer_waits_for_room_and_loses_nothing() {
    let m = machine();
    let serial = m.serial.clone();
    let total = 3 * OUTPUT_LIMIT;
    let writer =
        std::thread::spawn(move || (0..total).for_each(|n| assert!(serial.write(THR, &[n as u8]).is_continue())));
    let mut got = Vec::new();
    while got.len() < total {
        let mut part = Vec::new();
        m.serial.drain(&mut part);
        assert!(part.len() <= OUTPUT_LIMIT);
        got.extend(part);
        std::thread::yield_now(); // the lock is not a fair one
    }
    writer.join().unwrap();
    assert!(got.iter().enumerate().all(|(n, byte)| *byte == n as u8));
}

#[test]
fn closing_releases_a_writer_that_waits() {
    let m = machine();
    let serial = m.serial.clone();
    let (full, filled) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || {
        for n in 0..2 * OUTPUT_LIMIT {
            if n == OUTPUT_LIMIT {
                full.send(()).unwrap();
            }
            assert!(serial.write(THR, b"x").is_continue());
        }
    });
    filled.recv().unwrap();
    m.serial.close();
    writer.join().unwrap();
}

#[test]
fn a_guest_that_floods_the_ring_is_held_back_and_does_not_stop_the_loop() {
    let m = machine();
    #[derive(Debug)]
    struct Endless;
    impl Coalescer for Endless {
        fn set(&mut self, _on: bool) -> io::Result<()> {
            Ok(())
        }
        fn pop(&mut self) -> Option<u8> {
            Some(b'x')
        }
    }
    m.serial.set_coalescer(Box::new(Endless));
    let serial = m.serial.clone();
    let reader = std::thread::spawn(move || (0..OUTPUT_LIMIT).for_each(|_| serial.read(LSR, &mut [0])));
    let mut most = 0;
    for _ in 0..50 {
        while !m.serial.poll().flush_now {
            std::thread::yield_now();
        }
        most = most.max(m.output().len());
    }
    m.serial.close();
    reader.join().unwrap();
    assert!((OUTPUT_LIMIT / 8..=OUTPUT_LIMIT + BATCH).contains(&most), "{most}");
}

/// A ring as KVM's: while it is on, the guest's bytes go here without the device seeing them.
#[derive(Clone, Debug, Default)]
struct FakeRing(Arc<Mutex<(bool, VecDeque<u8>)>>);

impl Coalescer for FakeRing {
    fn set(&mut self, on: bool) -> io::Result<()> {
        self.0.lock().unwrap().0 = on;
        Ok(())
    }
    fn pop(&mut self) -> Option<u8> {
        self.0.lock().unwrap().1.pop_front()
    }
}

#[test]
fn a_polling_guest_is_coalesced_in_order_until_it_falls_silent() {
    let m = machine();
    let ring = FakeRing::default();
    m.serial.set_coalescer(Box::new(ring.clone()));
    let text = "x".repeat(2 * POLLED_BYTES as usize) + "the end";
    let mut exits = 0;
    for byte in text.bytes() {
        assert_eq!(m.inb(LSR) & 0x20, 0x20);
        let mut held = ring.0.lock().unwrap();
        if held.0 {
            held.1.push_back(byte);
        } else {
            drop(held);
            let _ = m.outb(THR, byte);
            exits += 1;
        }
    }
    assert_eq!(exits, POLLED_BYTES);
    assert!(Machine::rang(&m.wake) && m.serial.poll().needs_timer);
    m.serial.on_timer();
    assert_eq!(m.output(), text);
    for _ in 0..=SILENT_PERIODS {
        assert!(m.serial.poll().needs_timer);
        m.serial.on_timer();
    }
    assert!(!m.serial.poll().needs_timer && !ring.0.lock().unwrap().0);
}

#[test]
fn a_guest_that_does_not_poll_is_not_coalesced() {
    let m = machine();
    m.serial.set_coalescer(Box::new(FakeRing::default()));
    for _ in 0..10 * POLLED_BYTES {
        let _ = m.inb(LSR);
        for _ in 0..16 {
            let _ = m.outb(THR, b'x');
        }
    }
    assert!(!m.serial.poll().needs_timer);
}
