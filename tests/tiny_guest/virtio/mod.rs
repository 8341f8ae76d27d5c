//! Drivers that violate the virtio specification, on a machine with one device: entropy, which fills one buffer a
//! request. The exit code is the result of the request: 1 it was completed, 2 the device needs a reset, 3 neither.

use crate::support::run::run;
use crate::{guest, need_kvm};

const DONE: i32 = 1;
const NEEDS_RESET: i32 = 2;
const NO_RESULT: i32 = 3;

/// Writes a register of the first device.
macro_rules! reg {
    ($offset:literal, $value:literal) => {
        concat!("mov eax, ", $value, "; mov [rbx + ", $offset, "], eax; ")
    };
}

/// Resets the device and negotiates VIRTIO_F_VERSION_1, up to FEATURES_OK.
macro_rules! negotiate {
    () => {
        concat!(
            "mov ebx, 0xc0000000; ",
            reg!("0x70", "0"),
            reg!("0x70", "1"),
            reg!("0x70", "3"),
            reg!("0x24", "1"),
            reg!("0x20", "1"),
            reg!("0x70", "0xb"),
        )
    };
}

/// Configures the size and the rings of queue 0, and sets QueueReady.
macro_rules! queue {
    ($size:literal, $descriptors:literal, $available:literal, $used:literal) => {
        concat!(
            reg!("0x30", "0"),
            reg!("0x38", $size),
            reg!("0x80", $descriptors),
            reg!("0x84", "0"),
            reg!("0x90", $available),
            reg!("0x94", "0"),
            reg!("0xa0", $used),
            reg!("0xa4", "0"),
            reg!("0x44", "1"),
        )
    };
}

/// Configures a valid queue: its rings are at the end of the image, which is loaded at 1 MiB.
macro_rules! good_queue {
    () => {
        queue!("4", "0x100600", "0x100680", "0x1006c0")
    };
}

macro_rules! driver_ok {
    () => {
        reg!("0x70", "0xf")
    };
}

/// Writes QueueNotify, waits for the result, and ends with it.
macro_rules! notify_and_end {
    () => {
        concat!(
            reg!("0x50", "0"),
            "mov ecx, 20000; ",
            "2: mov al, 1; cmp word ptr [0x1006c2], 0; jne 3f; ",
            "mov al, 2; test byte ptr [rbx + 0x70], 0x40; jnz 3f; ",
            "loop 2b; mov al, 3; ",
            "3: out 0xf4, al"
        )
    };
}

/// A guest that executes `steps`. Its queue has one available chain, which begins with the first of these descriptors:
/// address, length, flags (1 NEXT, 2 WRITE, 4 INDIRECT), next.
macro_rules! driver {
    ($name:ident, [$(($address:literal, $len:literal, $flags:literal, $next:literal)),*], $($step:expr),*) => {
        guest!(
            $name,
            "6:",
            $($step,)*
            ".org 6b + 0x600, 0;",
            $(concat!(".quad ", $address, "; .long ", $len, "; .short ", $flags, ", ", $next, ";"),)*
            ".org 6b + 0x680, 0; .short 0, 1, 0;", // available ring: flags, index, head of the chain
        );
    };
}

// The macros above are in scope from here on.
mod block;
mod console;
mod stuck_disk;
mod vsock;

driver!(GOOD, [("0x101000", "64", "2", "0")], negotiate!(), good_queue!(), driver_ok!(), notify_and_end!());
driver!(EARLY, [("0x101000", "64", "2", "0")], negotiate!(), good_queue!(), notify_and_end!());
driver!(
    NO_FEATURES,
    [("0x101000", "64", "2", "0")],
    "mov ebx, 0xc0000000;",
    reg!("0x70", "0xf"),
    good_queue!(),
    notify_and_end!()
);
driver!(
    ODD_SIZE,
    [("0x101000", "64", "2", "0")],
    negotiate!(),
    queue!("3", "0x100600", "0x100680", "0x1006c0"),
    driver_ok!(),
    notify_and_end!()
);
driver!(
    NO_SIZE,
    [("0x101000", "64", "2", "0")],
    negotiate!(),
    queue!("0", "0x100600", "0x100680", "0x1006c0"),
    driver_ok!(),
    notify_and_end!()
);
driver!(
    LARGE,
    [("0x101000", "64", "2", "0")],
    negotiate!(),
    queue!("0x10000", "0x100600", "0x100680", "0x1006c0"),
    driver_ok!(),
    notify_and_end!()
);
driver!(
    OVERLAP,
    [("0x101000", "64", "2", "0")],
    negotiate!(),
    queue!("4", "0x100600", "0x100610", "0x1006c0"),
    driver_ok!(),
    notify_and_end!()
);
driver!(
    AWAY,
    [("0x101000", "64", "2", "0")],
    negotiate!(),
    queue!("4", "0x100600", "0x100680", "0x80000000"),
    driver_ok!(),
    notify_and_end!()
);
driver!(
    MOVED,
    [("0x101000", "64", "2", "0")],
    negotiate!(),
    good_queue!(),
    driver_ok!(),
    queue!("4", "0x0", "0x0", "0x0"),
    notify_and_end!()
);
driver!(
    NO_SUCH_QUEUE,
    [("0x101000", "64", "2", "0")],
    negotiate!(),
    good_queue!(),
    driver_ok!(),
    reg!("0x50", "1"),
    reg!("0x50", "0xffffffff"),
    notify_and_end!()
);
driver!(
    AGAIN,
    [("0x101000", "64", "2", "0")],
    negotiate!(),
    queue!("3", "0x0", "0x0", "0x0"),
    negotiate!(),
    good_queue!(),
    driver_ok!(),
    reg!("0x50", "0"),
    negotiate!(),
    good_queue!(),
    "mov dword ptr [0x1006c0], 0;",
    driver_ok!(),
    notify_and_end!()
);
driver!(
    JUMP,
    [("0x101000", "64", "2", "0")],
    negotiate!(),
    good_queue!(),
    "mov word ptr [0x100682], 0x8000;",
    driver_ok!(),
    notify_and_end!()
);
driver!(LOOP, [("0x101000", "1", "3", "0")], negotiate!(), good_queue!(), driver_ok!(), notify_and_end!());
driver!(OUTSIDE, [("0x80000000", "64", "2", "0")], negotiate!(), good_queue!(), driver_ok!(), notify_and_end!());
driver!(ACROSS, [("0x1fffff", "2", "2", "0")], negotiate!(), good_queue!(), driver_ok!(), notify_and_end!());
driver!(
    WRAPPING,
    [("0xffffffffffffffff", "2", "2", "0")],
    negotiate!(),
    good_queue!(),
    driver_ok!(),
    notify_and_end!()
);
driver!(HUGE, [("0x100000", "0xffffffff", "2", "0")], negotiate!(), good_queue!(), driver_ok!(), notify_and_end!());
driver!(
    DIRECTION,
    [("0x101000", "1", "3", "1"), ("0x101000", "1", "0", "0")],
    negotiate!(),
    good_queue!(),
    driver_ok!(),
    notify_and_end!()
);
driver!(LEAVES, [("0x101000", "1", "3", "4")], negotiate!(), good_queue!(), driver_ok!(), notify_and_end!());
driver!(INDIRECT, [("0x100600", "16", "4", "0")], negotiate!(), good_queue!(), driver_ok!(), notify_and_end!());
driver!(READABLE, [("0x101000", "64", "0", "0")], negotiate!(), good_queue!(), driver_ok!(), notify_and_end!());
driver!(EMPTY, [("0x101000", "0", "2", "0")], negotiate!(), good_queue!(), driver_ok!(), notify_and_end!());

/// One test for each driver.
macro_rules! drivers {
    ($($name:ident: $guest:ident is $end:ident,)*) => {$(
        #[test]
        fn $name() {
            need_kvm!();
            run(&$guest, &[]).end().assert($end, "", &[]);
        }
    )*};
}

drivers! {
    a_request: GOOD is DONE,
    a_request_before_driver_ok: EARLY is NO_RESULT,
    a_driver_that_has_not_negotiated_features: NO_FEATURES is NO_RESULT,
    a_queue_of_three_entries: ODD_SIZE is NEEDS_RESET,
    a_queue_of_no_entries: NO_SIZE is NEEDS_RESET,
    a_queue_of_too_many_entries: LARGE is NEEDS_RESET,
    rings_that_overlap: OVERLAP is NEEDS_RESET,
    a_ring_outside_ram: AWAY is NEEDS_RESET,
    rings_moved_after_driver_ok: MOVED is DONE,
    notifications_of_queues_that_do_not_exist: NO_SUCH_QUEUE is DONE,
    a_reset_between_two_requests: AGAIN is DONE,
    an_available_index_that_jumps: JUMP is NEEDS_RESET,
    a_chain_that_loops: LOOP is NEEDS_RESET,
    a_buffer_outside_ram: OUTSIDE is NEEDS_RESET,
    a_buffer_across_the_end_of_ram: ACROSS is NEEDS_RESET,
    a_buffer_across_the_end_of_the_address_space: WRAPPING is NEEDS_RESET,
    a_buffer_of_4_gib: HUGE is NEEDS_RESET,
    a_readable_buffer_after_a_writable_one: DIRECTION is NEEDS_RESET,
    a_chain_that_leaves_the_descriptor_table: LEAVES is NEEDS_RESET,
    a_nested_indirect_table: INDIRECT is NEEDS_RESET,
    a_device_readable_buffer: READABLE is DONE,
    a_zero_length_buffer: EMPTY is DONE,
}
