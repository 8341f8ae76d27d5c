use super::check;
use crate::work::e10a::{Descriptor, chain};
use crate::work::{e10b, e10c};

check!(e10a, {
    let last = Descriptor { has_next: false, next: 0 };
    let next = |next| Descriptor { has_next: true, next };
    assert_eq!(chain(&[last, last], 1), Some(vec![1]));
    assert_eq!(chain(&[next(2), last, next(1)], 0), Some(vec![0, 2, 1]), "a chain of all descriptors");
    assert_eq!(chain(&[last], 1), None, "a head that is not in the table");
    assert_eq!(chain(&[next(7), last], 0), None, "a descriptor that is not in the table");
    assert_eq!(chain(&[next(0)], 0), None, "a descriptor that follows itself");
    assert_eq!(chain(&[next(1), next(2), next(1)], 0), None, "a loop");
});

check!(e10b, {
    for (driver, device, pending) in [
        (0, 0, Some(0)),
        (5, 3, Some(2)),
        (8, 0, Some(8)),
        (9, 0, None),
        (1, 65535, Some(2)),
        (65535, 65535, Some(0)),
        (3, 5, None),
    ] {
        assert_eq!(e10b::pending(driver, device, 8), pending, "driver {driver}, device {device}, 8 entries");
    }
});

check!(e10c, {
    let (mut first, mut second, mut third) = ([0; 10], [0; 10], [0; 100]);
    let mut buffers = [
        e10c::Buffer { bytes: &mut first, writable: true },
        e10c::Buffer { bytes: &mut second, writable: false },
        e10c::Buffer { bytes: &mut third, writable: true },
    ];
    let written = e10c::execute(&mut buffers, |bytes| bytes.fill(1));
    assert_eq!((first, second), ([1; 10], [0; 10]), "the second buffer is not writable");
    assert_eq!((&third[..54], &third[54..]), (&[1; 54][..], &[0; 46][..]), "64 bytes at most");
    assert_eq!(written, 64);
    assert_eq!(e10c::execute(&mut [], |_| {}), 0);
});
