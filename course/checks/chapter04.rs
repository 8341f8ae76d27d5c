use super::check;
use crate::work::{e04a, e04b};

check!(e04a, {
    let mut serial = e04a::Serial::default();
    serial.write(3, 0x80);
    serial.write(0, 0x0c);
    serial.write(1, 0x01);
    assert_eq!((serial.read(0), serial.read(1), serial.read(3)), (0x0c, 0x01, 0x80), "the divisor can be read");
    serial.write(3, 0x03);
    serial.write(0, b'x');
    assert_eq!((serial.read(0), serial.read(5)), (0, 0x60));
    assert_eq!(serial.output, b"x");
});

check!(e04b, {
    let mut serial = e04b::Serial::default();
    serial.write(0, b'a');
    serial.write(4, 0x10);
    assert_eq!(serial.read(5), 0x60);
    serial.write(0, b'b');
    serial.write(0, b'c');
    assert_eq!((serial.read(4), serial.read(5)), (0x10, 0x61));
    assert_eq!((serial.read(0), serial.read(5), serial.read(0), serial.read(5)), (b'b', 0x61, b'c', 0x60));
    serial.write(4, 0);
    serial.write(0, b'd');
    assert_eq!(serial.output, b"ad");
});
