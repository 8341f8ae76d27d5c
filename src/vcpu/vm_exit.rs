//! Exits as values: why `KVM_RUN` returned, and what that means. This file makes no system call, so unit tests can feed
//! it every exit, however rare.

use std::fmt;
use std::ops::ControlFlow;

use kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;

use crate::device::{Bus, GuestRequest};

/// The machine's two address spaces.
#[derive(Debug, Default)]
pub struct Buses {
    /// Port I/O, 0 to 0xffff.
    pub ports: Bus,
    /// Guest-physical addresses outside RAM.
    pub mmio: Bus,
}

/// Why a vCPU left the guest.
#[derive(Debug, PartialEq, Eq)]
pub enum VmExit<'a> {
    /// `in`: `data` holds one or more items of `size` bytes, all from `port`.
    PortRead {
        /// The port.
        port: u16,
        /// Bytes per item: 1, 2 or 4.
        size: usize,
        /// The destination.
        data: &'a mut [u8],
    },
    /// `out`: `data` holds one or more items of `size` bytes, all for `port`.
    PortWrite {
        /// The port.
        port: u16,
        /// Bytes per item: 1, 2 or 4.
        size: usize,
        /// The bytes written.
        data: &'a [u8],
    },
    /// A read outside RAM.
    MmioRead {
        /// Guest-physical address.
        address: u64,
        /// The destination, 1 to 8 bytes.
        data: &'a mut [u8],
    },
    /// A write outside RAM.
    MmioWrite {
        /// Guest-physical address.
        address: u64,
        /// The bytes written, 1 to 8.
        data: &'a [u8],
    },
    /// `KVM_EXIT_SHUTDOWN`: a fault while a double fault was being delivered.
    TripleFault,
    /// `KVM_EXIT_FAIL_ENTRY`: the processor rejected the guest's state, with this reason code.
    FailedEntry(u64),
    /// `KVM_EXIT_INTERNAL_ERROR`: KVM could not continue.
    InternalError {
        /// `KVM_INTERNAL_ERROR_*`; 1 stands for an instruction that KVM cannot emulate.
        suberror: u32,
        /// The bytes of the instruction; empty if KVM does not provide them.
        code: &'a [u8],
    },
    /// An exit that this VMM has not enabled: `KVM_EXIT_*` (linux/kvm.h).
    Other(u32),
}

/// How a vCPU ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VcpuExit {
    /// The guest made a request that ends the machine.
    Guest(GuestRequest),
    /// The guest crashed.
    TripleFault {
        /// The instruction pointer, if KVM can read it.
        rip: Option<u64>,
    },
    /// An exit that this VMM cannot handle.
    Unhandled {
        /// The instruction pointer, if KVM can read it.
        rip: Option<u64>,
        /// The exit.
        exit: UnhandledExit,
    },
    /// `KVM_RUN` failed.
    Failed(String),
    /// The run state changed to [`VmRunState::Exiting`](super::VmRunState::Exiting).
    Cancelled,
}

/// An exit that this VMM cannot handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnhandledExit {
    /// The exit in words.
    pub exit: String,
    /// The bytes of the instruction, or those of them that could be read.
    pub code: Vec<u8>,
    /// Whether KVM could not emulate an instruction: rare with virtualization hardware, common without.
    pub emulation: bool,
}

impl fmt::Display for UnhandledExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.exit)?;
        if !self.code.is_empty() {
            f.write_str(", code")?;
            self.code.iter().try_for_each(|byte| write!(f, " {byte:02x}"))?;
        }
        Ok(())
    }
}

/// Performs `exit` on `buses`. Breaks if the guest cannot or must not continue. The result has no instruction pointer;
/// the caller adds it.
#[inline]
pub fn handle(exit: VmExit<'_>, buses: &Buses) -> ControlFlow<VcpuExit> {
    let response = match exit {
        VmExit::PortRead { port, size, data } => {
            data.chunks_exact_mut(size).for_each(|item| buses.ports.read(port.into(), item));
            ControlFlow::Continue(())
        }
        VmExit::PortWrite { port, size, data } => {
            data.chunks_exact(size).try_for_each(|item| buses.ports.write(port.into(), item))
        }
        VmExit::MmioRead { address, data } => {
            buses.mmio.read(address, data);
            ControlFlow::Continue(())
        }
        VmExit::MmioWrite { address, data } => buses.mmio.write(address, data),
        VmExit::TripleFault => return ControlFlow::Break(VcpuExit::TripleFault { rip: None }),
        exit => return ControlFlow::Break(VcpuExit::Unhandled { rip: None, exit: describe(&exit) }),
    };
    response.map_break(VcpuExit::Guest)
}

/// Pairs of the constants of kvm-bindings and their names.
macro_rules! named {
    ($($name:ident)*) => { [$((kvm_bindings::$name, stringify!($name))),*] };
}

/// Exits that KVM on x86 defines and that this VMM does not enable (linux/kvm.h).
const NAMES: [(u32, &str); 13] = named! {
    KVM_EXIT_UNKNOWN KVM_EXIT_EXCEPTION KVM_EXIT_HYPERCALL KVM_EXIT_DEBUG KVM_EXIT_HLT KVM_EXIT_INTR
    KVM_EXIT_SYSTEM_EVENT KVM_EXIT_IOAPIC_EOI KVM_EXIT_X86_RDMSR KVM_EXIT_X86_WRMSR KVM_EXIT_X86_BUS_LOCK
    KVM_EXIT_NOTIFY KVM_EXIT_MEMORY_FAULT
};

#[cold]
fn describe(exit: &VmExit<'_>) -> UnhandledExit {
    let plain = |exit| UnhandledExit { exit, code: Vec::new(), emulation: false };
    match *exit {
        VmExit::FailedEntry(reason) => plain(format!("KVM_EXIT_FAIL_ENTRY, hardware reason {reason:#x}")),
        VmExit::InternalError { suberror, code } => {
            let emulation = suberror == KVM_INTERNAL_ERROR_EMULATION;
            let what = if emulation { ", emulation failure" } else { "" };
            let exit = format!("KVM_EXIT_INTERNAL_ERROR, suberror {suberror}{what}");
            UnhandledExit { exit, code: code.to_vec(), emulation }
        }
        VmExit::Other(reason) => match NAMES.iter().find(|(number, _)| *number == reason) {
            Some((_, name)) => plain(format!("{name}, which is not handled")),
            None => plain(format!("KVM exit {reason}, which is not handled")),
        },
        _ => plain(format!("{exit:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::exit_port::{EXIT_PORT, ExitPort};
    use std::sync::Arc;

    fn buses() -> Buses {
        let mut buses = Buses::default();
        buses.ports.insert(EXIT_PORT.into(), 1, Arc::new(ExitPort)).unwrap();
        buses
    }

    #[test]
    fn reads_of_nothing_are_all_ones_on_both_buses() {
        let mut data = [0; 8];
        assert_eq!(
            handle(VmExit::PortRead { port: 0x1234, size: 4, data: &mut data }, &buses()),
            ControlFlow::Continue(())
        );
        assert_eq!(data, [0xff; 8]);
        let mut data = [0; 8];
        assert_eq!(handle(VmExit::MmioRead { address: 3 << 30, data: &mut data }, &buses()), ControlFlow::Continue(()));
        assert_eq!(data, [0xff; 8]);
    }

    #[test]
    fn a_string_write_stops_at_the_item_that_ends_the_machine() {
        let exit = VmExit::PortWrite { port: EXIT_PORT, size: 1, data: &[7, 8] };
        assert_eq!(handle(exit, &buses()), ControlFlow::Break(VcpuExit::Guest(GuestRequest::Exit(7))));
    }

    #[test]
    fn an_emulation_failure_names_the_instruction() {
        let exit = VmExit::InternalError { suberror: 1, code: &[0x0f, 0xc7, 0x0f] };
        let ControlFlow::Break(VcpuExit::Unhandled { exit: fault, .. }) = handle(exit, &buses()) else {
            panic!("not a fault");
        };
        assert_eq!(fault.to_string(), "KVM_EXIT_INTERNAL_ERROR, suberror 1, emulation failure, code 0f c7 0f");
    }

    #[test]
    fn every_other_exit_ends_the_machine_and_is_named() {
        for (exit, text) in [
            (VmExit::FailedEntry(0x80000021), "KVM_EXIT_FAIL_ENTRY, hardware reason 0x80000021"),
            (VmExit::InternalError { suberror: 3, code: &[] }, "KVM_EXIT_INTERNAL_ERROR, suberror 3"),
            (VmExit::Other(5), "KVM_EXIT_HLT, which is not handled"),
            (VmExit::Other(99), "KVM exit 99, which is not handled"),
        ] {
            let ControlFlow::Break(VcpuExit::Unhandled { exit: fault, .. }) = handle(exit, &buses()) else {
                panic!("{text} is handled");
            };
            assert_eq!(fault.to_string(), text);
        }
        assert_eq!(handle(VmExit::TripleFault, &buses()), ControlFlow::Break(VcpuExit::TripleFault { rip: None }));
    }
}
