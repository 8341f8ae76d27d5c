use super::check;
use crate::work::{e09a, e09b};

check!(e09a, {
    for (len, fill) in [(36, 0u8), (36, 0xff), (44, 0x5a), (300, 7)] {
        let mut table = vec![fill; len];
        e09a::complete(&mut table);
        let length = u32::from_le_bytes(table[4..8].try_into().unwrap());
        assert_eq!(usize::try_from(length).unwrap(), len);
        let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "{len} bytes of {fill}");
        let others = table.iter().enumerate().filter(|(at, _)| !matches!(at, 4..=7 | 9));
        assert!(others.into_iter().all(|(_, byte)| *byte == fill), "the other bytes are unchanged");
    }
});

check!(e09b, {
    assert_eq!(e09b::processors(1), [0, 8, 0, 0, 1, 0, 0, 0]);
    assert_eq!(e09b::processors(3), [0, 8, 0, 0, 1, 0, 0, 0, 0, 8, 1, 1, 1, 0, 0, 0, 0, 8, 2, 2, 1, 0, 0, 0]);
    assert_eq!(e09b::processors(254).len(), 254 * 8);
});
