//! Guests that need no file: machine code in the program itself. It is copied to 1 MiB and runs in 64-bit mode, with
//! the first 4 GiB mapped to themselves.
//!
//! Each guest has 1 KiB and begins with its first instruction. It ends with a write to the ACPI sleep control register
//! at port 0x600 (0x34 is "sleep, type 5") or to the exit port 0xf4.

use std::arch::global_asm;

/// Length of each guest in bytes.
const SIZE: usize = 1024;

// Defines the symbol of a guest: its code, padded to SIZE.
macro_rules! guest {
    ($guest:ident, $($code:literal,)*) => {
        global_asm!(
            ".pushsection .rodata",
            ".balign 64",
            concat!(".globl ", stringify!($guest)),
            concat!(stringify!($guest), ":"),
            $($code,)*
            concat!(".org ", stringify!($guest), " + 1024, 0"),
            ".popsection",
        );
        unsafe extern "C" {
            // SAFETY: the code above defines SIZE bytes at this symbol, in a section that is never written.
            pub safe static $guest: [u8; SIZE];
        }
    };
}

// Prints three lines and powers off.
guest!(
    kickvm_guest_demo,
    "lea rsi, [rip + 5f]",
    "2: mov dx, 0x3f8", // the data port of COM1
    "3: lodsb",
    "test al, al",
    "jz 4f",
    "out dx, al",
    "jmp 3b",
    "4: mov dx, 0x600", // power off
    "mov al, 0x34",
    "out dx, al",
    "ud2", // not reached: the vCPU executes nothing after a power-off
    "5: .ascii \"Hello from the guest: I run in 64-bit mode on a virtual CPU.\\r\\n\"",
    ".ascii \"Each byte you read is an OUT to port 0x3f8, which exits to the VMM.\\r\\n\"",
    ".asciz \"Now I power off: an OUT of 0x34 to port 0x600.\\r\\n\"",
);

// Each probe ends with status 0 if its instruction works.
guest!(
    kickvm_guest_cmpxchg16b,
    "mov edi, 0x110000",
    "xor eax, eax",
    "xor edx, edx",
    "mov ebx, 1",
    "mov ecx, 2",
    "lock cmpxchg16b [rdi]",
    "setnz al",
    "mov ecx, [rdi]",
    "dec ecx",
    "or al, cl",
    "out 0xf4, al",
);
guest!(
    kickvm_guest_xsave,
    "mov rax, cr4",
    "or eax, 0x600", // OSFXSR, OSXMMEXCPT
    "mov cr4, rax",
    "mov edi, 0x110000",
    "mov eax, 1",
    "cpuid",
    "bt ecx, 26", // XSAVE; on a processor without it, Linux uses fxsave
    "jc 2f",
    "fxsave64 [rdi]",
    "fxrstor64 [rdi]",
    "jmp 3f",
    "2: mov rax, cr4",
    "or eax, 0x40000", // OSXSAVE
    "mov cr4, rax",
    "xor ecx, ecx",
    "mov eax, 3", // x87 and SSE state
    "xor edx, edx",
    "xsetbv",
    "xsave64 [rdi]",
    "mov eax, 3",
    "xor edx, edx",
    "xrstor64 [rdi]",
    "3: xor eax, eax",
    "out 0xf4, al",
);
guest!(
    kickvm_guest_int3,
    "lea rax, [rip + 2f]",
    "mov edi, 0x110000 + 3 * 16", // gate of vector 3
    "mov [rdi], ax",
    "mov word ptr [rdi + 2], 0x10",
    "mov word ptr [rdi + 4], 0x8e00", // present interrupt gate
    "shr rax, 16",
    "mov [rdi + 6], ax",
    "mov word ptr [rsp - 16], 4 * 16 - 1",
    "mov qword ptr [rsp - 14], 0x110000",
    "lidt [rsp - 16]",
    "mov ebx, 1",
    "int3",
    "mov al, bl",
    "out 0xf4, al",
    "2: xor ebx, ebx",
    "iretq",
);

/// Instructions that Linux needs and that KVM may fail to emulate without virtualization hardware. Each has a guest
/// that executes it and ends with status 0 if it works.
pub static PROBES: [(&str, &[u8]); 3] = [
    ("cmpxchg16b", &kickvm_guest_cmpxchg16b),
    ("xsave and xrstor, or fxsave where there is none", &kickvm_guest_xsave),
    ("int3 through an IDT", &kickvm_guest_int3),
];
