//! The time that the rules for the console take does not delay the end of a run, whatever the guest prints.

use crate::support::run::run;
use crate::{guest, need_kvm};
use std::process::Stdio;
use std::time::{Duration, Instant};

// Prints lines of 4,096 blanks without end: by the serial port, and by requests of 16 lines in queue 1 of a virtio
// console.
guest!(
    SERIAL_BLANKS,
    "mov dx, 0x3f8",
    "2: mov esi, 0x110000; mov edi, esi; mov ecx, 4096; mov al, 0x20; rep stosb; mov ecx, 4096; rep outsb",
    "mov al, 10; out dx, al; jmp 2b",
);
driver!(
    VIRTIO_BLANKS,
    [("0x110000", "65552", "0", "0")],
    negotiate!(),
    reg!("0x30", "1"),
    reg!("0x38", "4"),
    reg!("0x80", "0x100600"),
    reg!("0x90", "0x100680"),
    reg!("0xa0", "0x1006c0"),
    reg!("0x44", "1"),
    driver_ok!(),
    "mov edi, 0x110000; mov edx, 16",
    "2: mov ecx, 4096; mov al, 0x20; rep stosb; mov al, 10; stosb; dec edx; jnz 2b",
    "3: inc word ptr [0x100682]; mov eax, 1; mov [rbx + 0x50], eax",
    "4: mov ax, [0x1006c2]; cmp ax, [0x100682]; jne 4b",
    "jmp 3b"
);

#[test]
fn long_lines_and_many_expressions_do_not_delay_the_timeout() {
    need_kvm!();
    for (guest, console) in [(&SERIAL_BLANKS, "stdio"), (&VIRTIO_BLANKS, "virtio")] {
        for expressions in [3, 30] {
            let mut options = vec!["--console", console, "--no-rng", "--timeout", "3s"];
            options.extend(["--expect", "zzz"].repeat(expressions));
            let mut run = run(guest, &options);
            run.command.stdout(Stdio::null());
            let began = Instant::now();
            let ended = run.end();
            let took = began.elapsed();
            assert_eq!(ended.code, Some(124), "{ended:?}");
            let limits = Duration::from_millis(2500)..Duration::from_millis(3500);
            assert!(limits.contains(&took), "{took:?} with {expressions} expressions on {console}");
        }
    }
}
