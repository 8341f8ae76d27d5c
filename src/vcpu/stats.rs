//! How often a vCPU left the guest, and why. Counted by its own thread, so counting takes no lock.

use std::fmt;

use super::exit::VmExit;

const PORTS: usize = 1 << 16;

/// Exits to user space of one vCPU, or the sum over several.
#[derive(Clone, Debug, Default)]
pub struct ExitStats {
    /// Port reads and writes; a string instruction counts as one.
    pub port_io: u64,
    /// Accesses to memory that is not there.
    pub mmio: u64,
    /// All others, among them the signals that interrupt `KVM_RUN`.
    pub other: u64,
    ports: Option<Box<[u32]>>,
}

impl ExitStats {
    /// Counts kinds, and each port too if `by_port`.
    pub fn new(by_port: bool) -> Self {
        Self { ports: by_port.then(|| vec![0; PORTS].into_boxed_slice()), ..Self::default() }
    }

    /// All exits.
    pub fn total(&self) -> u64 {
        self.port_io + self.mmio + self.other
    }

    #[inline]
    pub(super) fn count(&mut self, exit: &VmExit<'_>) {
        match *exit {
            VmExit::PortRead { port, .. } | VmExit::PortWrite { port, .. } => {
                self.port_io += 1;
                if let Some(ports) = &mut self.ports {
                    ports[usize::from(port)] = ports[usize::from(port)].wrapping_add(1);
                }
            }
            VmExit::MmioRead { .. } | VmExit::MmioWrite { .. } => self.mmio += 1,
            _ => self.other += 1,
        }
    }

    pub(super) fn count_interruption(&mut self) {
        self.other += 1;
    }

    /// Adds the exits of another vCPU.
    pub fn add(&mut self, other: &Self) {
        self.port_io += other.port_io;
        self.mmio += other.mmio;
        self.other += other.other;
        match (&mut self.ports, &other.ports) {
            (Some(sum), Some(ports)) => {
                sum.iter_mut().zip(ports).for_each(|(sum, count)| *sum = sum.wrapping_add(*count));
            }
            (None, Some(ports)) => self.ports = Some(ports.clone()),
            _ => {}
        }
    }

    /// The `n` ports with the most exits, most first, with their counts.
    pub fn busiest_ports(&self, n: usize) -> Vec<(u16, u32)> {
        let ports = self.ports.as_deref().unwrap_or_default();
        let mut used: Vec<(u16, u32)> =
            (0..=u16::MAX).zip(ports.iter().copied()).filter(|(_, count)| *count > 0).collect();
        used.sort_by_key(|(port, count)| (std::cmp::Reverse(*count), *port));
        used.truncate(n);
        used
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
