//! Guests: machine code that the assembler puts into the test binary. It is entered at 1 MiB in 64-bit mode, with
//! interrupts disabled, 4 GiB identity-mapped, RSI pointing to the zero page, and a small stack.
//!
//! Numeric labels 2 to 5 are reserved for the macros below, 6 to 9 are for the guests that use them.

/// Size of each guest in bytes, including padding.
pub const SIZE: usize = 2048;

/// Assembles a guest into a static array of this name.
#[macro_export]
macro_rules! guest {
    ($name:ident, $($code:tt)*) => {
        std::arch::global_asm!(
            ".pushsection .rodata",
            concat!(".globl ", stringify!($name)),
            concat!(stringify!($name), ":"),
            $($code)*
            concat!(".org ", stringify!($name), " + 2048, 0"),
            ".popsection",
        );
        unsafe extern "C" {
            // SAFETY: the assembler has put SIZE bytes there, in a read-only section.
            pub safe static $name: [u8; $crate::support::asm::SIZE];
        }
    };
}

/// Prints a text to COM1. The text is a raw string, because the assembler resolves its escapes.
#[macro_export]
macro_rules! print_serial {
    ($text:literal) => {
        concat!(
            "lea rsi, [rip + 4f]; mov dx, 0x3f8; ",
            "2: lodsb; test al, al; jz 5f; out dx, al; jmp 2b; ",
            "4: .asciz \"",
            $text,
            "\"; 5:"
        )
    };
}

/// Writes a byte to a port.
#[macro_export]
macro_rules! outb {
    ($port:literal, $value:literal) => {
        concat!("mov dx, ", $port, "; mov al, ", $value, "; out dx, al")
    };
}

/// Powers the machine off.
#[macro_export]
macro_rules! power_off {
    () => {
        $crate::outb!("0x600", "0x34")
    };
}

/// Code that must not be executed: it would be visible on the console and in the exit code.
#[macro_export]
macro_rules! never {
    () => {
        concat!($crate::print_serial!("the guest ran on"), "; mov al, 99; out 0xf4, al")
    };
}

/// Halts for ever.
#[macro_export]
macro_rules! halt {
    () => {
        "3: hlt; jmp 3b"
    };
}

/// Routes interrupts 4 (serial port) and 9 (power button) to label 8, which must use `end_of_interrupt!`. It cannot
/// return from the interrupt, because a software KVM does not emulate IRET.
#[macro_export]
macro_rules! take_interrupts {
    () => {
        concat!(
            "mov al, 0x11; out 0x20, al; out 0xa0, al; ", // both controllers: initialise,
            "mov al, 0x20; out 0x21, al; mov al, 0x28; out 0xa1, al; ", // vectors from 0x20 and 0x28,
            "mov al, 4; out 0x21, al; mov al, 2; out 0xa1, al; ", // cascaded,
            "mov al, 1; out 0x21, al; out 0xa1, al; ",
            "mov al, 0xeb; out 0x21, al; mov al, 0xfd; out 0xa1, al; ", // all others masked
            "lea rax, [rip + 8f]; mov edx, eax; shr edx, 16; mov edi, 0x110200; mov ecx, 16; ",
            "2: mov [rdi], ax; mov [rdi + 6], dx; mov dword ptr [rdi + 2], 0x8e000010; ", // gates, code segment 0x10
            "add edi, 16; dec ecx; jnz 2b; ",
            "mov word ptr [rsp - 16], 0x2ff; mov qword ptr [rsp - 14], 0x110000; lidt [rsp - 16]"
        )
    };
}

/// Signals end of interrupt to both controllers, and resets the stack pointer.
#[macro_export]
macro_rules! end_of_interrupt {
    () => {
        "mov esp, 0x6000; mov al, 0x20; out 0xa0, al; out 0x20, al"
    };
}

/// Writes the page frame number of the header, which is at 0x110000, to the exec port.
#[macro_export]
macro_rules! set_frame {
    () => {
        "mov dx, 0x520; mov eax, 0x110; out dx, eax"
    };
}

/// Writes the doorbell.
#[macro_export]
macro_rules! ring_doorbell {
    () => {
        "mov dx, 0x524; out dx, al"
    };
}

/// Publishes a channel in the 67 pages from 0x110000 on, and leaves the address of its header in rbx. The ring for
/// standard output is at rbx + 0x1000 and its words are at rbx + 0x40; the ring for events is at rbx + 0x31000 and its
/// words are at rbx + 0x60; the words of the ring for standard input are at rbx + 0x70.
#[macro_export]
macro_rules! publish_channel {
    () => {
        concat!(
            "mov edi, 0x110400; mov eax, 0x110; mov ecx, 67; ",
            "2: mov [rdi], rax; add edi, 8; inc eax; dec ecx; jnz 2b; ",
            "mov ebx, 0x110000; mov dword ptr [rbx], 0x3143584b; ", // "KXC1"
            $crate::set_frame!()
        )
    };
}
