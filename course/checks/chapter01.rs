use super::check;
use super::machine::{Machine, guest};
use crate::work::{e01a, e01b};

guest!(
    prints_ok,
    "mov dx, 0x3f8",
    "mov al, 'o'",
    "out dx, al",
    "out 0x80, al",
    "mov al, 'k'",
    "out dx, al",
    "out 0x80, al",
    "mov al, 10",
    "out dx, al",
    "hlt",
);
check!(e01a needs kvm, {
    let (mut machine, mut output) = (Machine::new(&prints_ok).unwrap(), Vec::new());
    while e01a::handle(machine.vcpu.run().unwrap(), &mut output) {}
    assert_eq!(String::from_utf8_lossy(&output), "ok\n");
});

guest!(reads_two_ports, "mov dx, 0x3f8", "in al, 0x60", "out dx, al", "in ax, 0x99", "out dx, ax", "hlt",);
check!(e01b needs kvm, {
    for key in [0x1e, 0x9e] {
        let (mut machine, mut output) = (Machine::new(&reads_two_ports).unwrap(), Vec::new());
        while e01b::handle(machine.vcpu.run().unwrap(), key, &mut output) {}
        assert_eq!(output, [key, 0xff, 0xff]);
    }
});
