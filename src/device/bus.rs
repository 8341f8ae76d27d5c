//! An address space: maps address ranges to devices. It is immutable once built, so an access takes no lock of the bus.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::{Device, Response};

/// Why an address range cannot be assigned to a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BusError(String);

struct Range {
    base: u64,
    last: u64,
    device: Arc<dyn Device>,
}

/// The devices of the port space or of the guest-physical address space.
#[derive(Default)]
pub struct Bus {
    ranges: Vec<Range>, // sorted and disjoint
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges.iter().map(|range| range.base..=range.last)).finish()
    }
}

impl Bus {
    /// Assigns `len` addresses from `base` to `device`.
    ///
    /// # Errors
    ///
    /// The range is empty, exceeds the address space, or overlaps that of another device.
    pub fn insert(&mut self, base: u64, len: u64, device: Arc<dyn Device>) -> Result<(), BusError> {
        let error = |why| BusError(format!("address range {base:#x}+{len:#x} {why}"));
        let last = len.checked_sub(1).and_then(|n| base.checked_add(n));
        let last = last.ok_or_else(|| error("is empty or exceeds the address space"))?;
        let index = self.ranges.partition_point(|range| range.last < base);
        if self.ranges.get(index).is_some_and(|range| range.base <= last) {
            return Err(error("overlaps another device"));
        }
        self.ranges.insert(index, Range { base, last, device });
        Ok(())
    }

    /// Returns the device at `addr`, the offset in its range, and how many of `len` bytes are in this range.
    fn find(&self, addr: u64, len: usize) -> Option<(&dyn Device, u64, usize)> {
        let range = self.ranges.iter().find(|range| range.last >= addr).filter(|range| range.base <= addr)?;
        let rest = usize::try_from(range.last - addr).unwrap_or(usize::MAX).saturating_add(1);
        Some((&*range.device, addr - range.base, len.min(rest)))
    }

    /// Reads `data.len()` bytes at `addr`. Bytes outside of the range of the device at `addr` read as 0xff.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset, len)) = self.find(addr, data.len()) {
            device.read(offset, &mut data[..len]);
        }
    }

    /// Writes `data` at `addr`. Bytes outside of the range of the device at `addr` are ignored.
    pub fn write(&self, addr: u64, data: &[u8]) -> Response {
        match self.find(addr, data.len()) {
            Some((device, offset, len)) => device.write(offset, &data[..len]),
            None => ControlFlow::Continue(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::GuestRequest;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Log(Mutex<Vec<(u64, Vec<u8>)>>);

    impl Device for Log {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data[0] = offset.to_le_bytes()[0];
        }
        fn write(&self, offset: u64, data: &[u8]) -> Response {
            self.0.lock().unwrap().push((offset, data.to_vec()));
            ControlFlow::Break(GuestRequest::Reset)
        }
    }

    #[test]
    fn addresses_without_a_device_read_as_all_ones_and_ignore_writes() {
        let mut bus = Bus::default();
        bus.insert(0x10, 2, Arc::new(Log::default())).unwrap();
        for addr in [0, 0xf, 0x12, u64::MAX] {
            let mut data = [0; 4];
            bus.read(addr, &mut data);
            assert_eq!(data, [0xff; 4]);
            assert_eq!(bus.write(addr, &data), ControlFlow::Continue(()));
        }
    }

    #[test]
    fn an_access_is_truncated_at_the_end_of_its_range() {
        let log = Arc::new(Log::default());
        let mut bus = Bus::default();
        bus.insert(0x10, 2, log.clone()).unwrap();
        bus.insert(u64::MAX, 1, log.clone()).unwrap();
        let mut data = [0; 4];
        bus.read(0x11, &mut data);
        assert_eq!(data, [1, 0xff, 0xff, 0xff]);
        assert_eq!(bus.write(0x11, &[7; 4]), ControlFlow::Break(GuestRequest::Reset));
        assert!(bus.write(u64::MAX, &[8; 8]).is_break());
        assert_eq!(*log.0.lock().unwrap(), [(1, vec![7]), (0, vec![8])]);
    }

    #[test]
    fn overlapping_empty_and_too_long_ranges_are_rejected() {
        let mut bus = Bus::default();
        let mut add = |base, len| bus.insert(base, len, Arc::new(Log::default()));
        add(0x10, 4).unwrap();
        add(0x14, 1).unwrap();
        add(0xf, 1).unwrap();
        let mut refusal = |base, len| add(base, len).unwrap_err().to_string();
        assert_eq!(refusal(0x13, 1), "address range 0x13+0x1 overlaps another device");
        assert_eq!(refusal(0, 0x100), "address range 0x0+0x100 overlaps another device");
        assert_eq!(refusal(0x20, 0), "address range 0x20+0x0 is empty or exceeds the address space");
        assert_eq!(refusal(u64::MAX, 2), "address range 0xffffffffffffffff+0x2 is empty or exceeds the address space");
    }
}
