//! The real-time clock of a PC (CMOS), for kernels that read the time from it. It is read-only and has no interrupt.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Device, Response};

/// The index port; the data port follows it.
pub const INDEX_PORT: u16 = 0x70;
/// Number of ports.
pub const PORTS: u16 = 2;

// Registers of the Motorola MC146818, and the century byte of PCs.
const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_B: u8 = 0x0b;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

const STATUS_B_24_HOURS: u8 = 1 << 1;
const STATUS_D_VALID: u8 = 1 << 7;

/// The clock: the host's UTC time in BCD. All other registers read as 0. This includes the bit "update in progress":
/// Linux waits for seconds if it is 1.
#[derive(Debug, Default)]
pub struct Cmos {
    index: AtomicU8,
}

impl Device for Cmos {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset == 1 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            data[0] = register(self.index.load(Ordering::Relaxed), now);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Response {
        if offset == 0 {
            self.index.store(data[0] & 0x7f, Ordering::Relaxed); // bit 7 masks NMIs
        }
        ControlFlow::Continue(())
    }
}

/// The value of register `index`, `now` seconds after 1970-01-01 00:00 UTC.
fn register(index: u8, now: u64) -> u8 {
    let days = now / 86_400;
    let (year, month, day) = civil(days);
    let value = match index {
        SECONDS => now % 60,
        MINUTES => now / 60 % 60,
        HOURS => now / 3_600 % 24,
        WEEKDAY => (days + 4) % 7 + 1, // 1 is Sunday; 1 January 1970 was a Thursday
        DAY => day,
        MONTH => month,
        YEAR => year % 100,
        CENTURY => year / 100 % 100,
        STATUS_B => return STATUS_B_24_HOURS,
        STATUS_D => return STATUS_D_VALID,
        _ => return 0,
    };
    ((value / 10) << 4 | (value % 10)).to_le_bytes()[0]
}

/// Year, month and day, `days` after 1970-01-01. The calculation starts years in March, so that they end with the leap
/// day.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // since 0000-03-01
    let era = days / 146_097; // 400 years
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_binary_coded_decimal() {
        let now = 951_827_696; // 2000-02-29 12:34:56 UTC, a Tuesday
        let read = |index| register(index, now);
        assert_eq!([CENTURY, YEAR, MONTH, DAY].map(read), [0x20, 0x00, 0x02, 0x29]);
        assert_eq!([HOURS, MINUTES, SECONDS, WEEKDAY].map(read), [0x12, 0x34, 0x56, 0x03]);
    }

    #[test]
    fn an_update_is_never_in_progress() {
        let cmos = Cmos::default();
        assert!(cmos.write(0, &[0x8a]).is_continue());
        let mut status_a = [0xff];
        cmos.read(1, &mut status_a);
        assert_eq!(status_a, [0]);
    }

    #[test]
    fn leap_years_follow_the_gregorian_rule() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(47_540), (2100, 2, 28));
        assert_eq!(civil(47_541), (2100, 3, 1));
    }
}
