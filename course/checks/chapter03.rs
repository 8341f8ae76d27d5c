use super::check;
use super::machine::{Machine, guest};
use crate::work::{e03a, e03b};

check!(e03a, {
    for (base, len, port, size, part) in [
        (0x3f8, 8, 0x3f8, 1, Some((0, 1))),
        (0x3f8, 8, 0x3fd, 2, Some((5, 2))),
        (0x3f8, 8, 0x3ff, 4, Some((7, 1))),
        (0x3f8, 8, 0x3f7, 4, None),
        (0x3f8, 8, 0x400, 1, None),
        (0xfffe, 2, 0xffff, 4, Some((1, 1))),
        (0xfffe, 2, 0, 1, None),
        (0x10, 0, 0x10, 1, None),
    ] {
        assert_eq!(e03a::part_of(base, len, port, size), part, "ports {base:#x}+{len}, access {port:#x}+{size}");
    }
});

guest!(
    uses_mmio,
    "mov edi, 0x1f0000",
    "mov rax, 0x6c6c6548", // \"Hell\"
    "mov [rdi], eax",
    "mov byte ptr [rdi], 'o'",
    "mov [rdi + 0x1000], eax", // no device
    "mov eax, [rdi]",
    "add al, '0'",
    "mov [rdi], al",
    "mov ax, [rdi + 0x1000]",
    "mov [rdi], ax",
    "hlt",
);
check!(e03b needs kvm, {
    let (mut machine, mut output) = (Machine::new(&uses_mmio).unwrap(), Vec::new());
    while e03b::handle(machine.vcpu.run().unwrap(), &mut output) {}
    assert_eq!(output, b"Hello5\xff\xff");
});
