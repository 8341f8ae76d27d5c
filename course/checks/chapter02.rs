use kvm_bindings::kvm_sregs;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::check;
use crate::work::{e02a, e02b};

check!(e02a, {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap();
    for (address, entry) in [
        (0x1008, 0x2003u64),
        (0x2000 + 8 * 2, 0x3003),
        (0x2000 + 8 * 3, 0x4000_0083), // 1 GiB
        (0x3000 + 8 * 4, 0x0060_0083), // 2 MiB
        (0x3000 + 8 * 5, 0x4003),
        (0x4000 + 8 * 6, 0x7003), // 4 KiB
        (0x4000 + 8 * 7, 0x7002), // not present
    ] {
        memory.write_obj(entry, GuestAddress(address)).unwrap();
    }
    let base = 1 << 39 | 2 << 30;
    let translate = |address| e02a::translate(&memory, 0x1000, address);
    assert_eq!(translate(base | 5 << 21 | 6 << 12 | 0x123), Some(0x7123), "a page of 4 KiB");
    assert_eq!(translate(base | 4 << 21 | 0x12_3456), Some(0x72_3456), "a page of 2 MiB");
    assert_eq!(translate(1 << 39 | 3 << 30 | 0x1234_5678), Some(0x5234_5678), "a page of 1 GiB");
    assert_eq!(translate(base | 5 << 21 | 7 << 12), None, "an entry of the last level without PRESENT");
    assert_eq!(translate(2 << 39), None, "an entry of the first level without PRESENT");
});

check!(e02b, {
    for (cr0, cr4, efer, long, field) in [
        (0x8000_0001, 0x20, 0x500, 1, None),
        (0x8000_0001, 0x20, 0x500, 0, None), // compatibility mode
        (0x8000_0001, 0, 0x500, 1, Some("CR4.PAE")),
        (0x8000_0001, 0x20, 0x100, 1, Some("EFER.LMA")),
        (1, 0x20, 0x500, 0, Some("EFER.LMA")), // no paging
        (1, 0, 0x100, 1, Some("CS.L")),
        (0x8000_0001, 0x20, 0, 1, Some("CS.L")),
        (0, 0, 0, 0, None), // real mode
    ] {
        let mut sregs = kvm_sregs { cr0, cr4, efer, ..Default::default() };
        sregs.cs.l = long;
        assert_eq!(e02b::contradiction(&sregs), field, "CR0 {cr0:#x}, CR4 {cr4:#x}, EFER {efer:#x}, CS.L {long}");
    }
});
