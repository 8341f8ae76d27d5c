//! Counts of the exits of a vCPU, by kind. Its own thread counts them, so counting takes no lock.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

use super::vm_exit::VmExit;

/// Exits to user space of one vCPU, or the sum over several.
#[derive(Clone, Debug, Default)]
pub struct ExitStats {
    /// Port reads and writes. A string instruction counts once.
    pub port_io: u64,
    /// Accesses to guest-physical addresses outside RAM.
    pub mmio: u64,
    /// All others, among them the signals that interrupt `KVM_RUN`.
    pub other: u64,
    by_port: Option<BTreeMap<u16, u64>>,
}

impl ExitStats {
    /// No exits. With `by_port`, the exits of each port are counted, too.
    pub fn new(by_port: bool) -> Self {
        Self { by_port: by_port.then(BTreeMap::new), ..Self::default() }
    }

    /// Returns the number of all exits.
    pub fn total(&self) -> u64 {
        self.port_io + self.mmio + self.other
    }

    #[inline]
    pub(super) fn count(&mut self, exit: &VmExit<'_>) {
        match *exit {
            VmExit::PortRead { port, .. } | VmExit::PortWrite { port, .. } => {
                self.port_io += 1;
                if let Some(ports) = &mut self.by_port {
                    *ports.entry(port).or_default() += 1;
                }
            }
            VmExit::MmioRead { .. } | VmExit::MmioWrite { .. } => self.mmio += 1,
            _ => self.other += 1,
        }
    }

    /// Adds the exits of another vCPU.
    pub fn add(&mut self, other: &Self) {
        self.port_io += other.port_io;
        self.mmio += other.mmio;
        self.other += other.other;
        for (port, count) in other.by_port.iter().flatten() {
            *self.by_port.get_or_insert_default().entry(*port).or_default() += count;
        }
    }

    /// Returns the `n` ports with the most exits, in descending order, with their counts.
    pub fn busiest_ports(&self, n: usize) -> Vec<(u16, u64)> {
        let mut ports: Vec<_> = self.by_port.iter().flatten().map(|(port, count)| (*port, *count)).collect();
        ports.sort_by_key(|(_, count)| Reverse(*count));
        ports.truncate(n);
        ports
    }
}

impl fmt::Display for ExitStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port_io, mmio, other, .. } = self;
        write!(f, "{} exits: {port_io} port I/O, {mmio} MMIO, {other} other", self.total())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_ranked_over_all_vcpus() {
        let mut sum = ExitStats::new(true);
        for ports in [&[0x3f8, 0x3fd, 0x3f8][..], &[0x64, 0x3fd, 0x3f8]] {
            let mut stats = ExitStats::new(true);
            ports.iter().for_each(|&port| stats.count(&VmExit::PortWrite { port, size: 1, data: &[] }));
            sum.add(&stats);
        }
        assert_eq!(sum.busiest_ports(2), [(0x3f8, 3), (0x3fd, 2)]);
        assert_eq!(sum.to_string(), "6 exits: 6 port I/O, 0 MMIO, 0 other");
    }
}
