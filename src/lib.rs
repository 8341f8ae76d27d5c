//! kickvm, a minimal VMM for Linux/KVM on x86-64: one event loop, vCPU threads that *kick* it when they are done, and one
//! clean way out.
//!
//! # A tour, in reading order
//!
//! 1. [`vmm::Vmm::run`] is the whole program on a page: load, start the vCPUs, take turns of the event loop until the exit
//!    handler says stop, shut down.
//! 2. [`vmm::VmmExitHandler`] is the pattern the program is named after. Whoever knows that the run is over calls
//!    [`exit`](vmm::ExitHandler::exit) with a reason; the first one counts.
//! 3. [`vmm::KvmVm`] starts a thread a vCPU, each with a guard that kicks when it is dropped, and shuts them down within a
//!    second.
//! 4. [`vcpu::Vcpu::run`] enters the guest again and again; [`vcpu::handle`] decides what an exit means, without any KVM
//!    in it.
//! 5. [`device`] is what the guest can touch. [`device::serial::Serial`] is the one that does much; [`device::virtio`] is a
//!    transport with a file for each kind of device.
//! 6. [`boot`] turns files into guest memory; [`boot::layout`] is the memory map on one screen.
//! 7. [`exec`] runs one command in a guest: [`exec::run`] on the host, [`exec::run_if_init`] as the guest's first
//!    process.
//! 8. [`event`] is the ground floor: epoll, and an event manager over it. It knows nothing of KVM and can be used without:
//!    `default-features = false` gives it alone.
//!
//! # Floors
//!
//! ```text
//!   main      parse, run, report, exit code
//!   cli       the command line, turned into configurations; the logger
//!   report    a run as JSON and JUnit
//!   exec      one command in a guest: the channel, its host, its init
//!   vmm       configuration, KvmVm, exit handler, console, outcome
//!   vcpu      one virtual CPU: CPUID, registers, run loop, kick
//!   boot      kernel, initramfs, command line, ACPI, page tables
//!   device    serial port, i8042, ACPI registers, exit port, bus
//!   event     epoll, Poll, EventManager, timers, signals
//! ```
//!
//! A floor uses those below it and never one above. All `unsafe` code is in `event/epoll.rs`, `event/sys.rs`,
//! `vcpu/rim.rs` and `device/virtio/rim.rs`; `vmm/guests.rs` declares the symbols of the embedded guests.
//!
//! # A machine from a program
//!
//! ```no_run
//! # #[cfg(feature = "vmm")]
//! # fn main() -> Result<(), kickvm::vmm::Error> {
//! use kickvm::boot::Image;
//! use kickvm::vmm::{VMMConfig, Vmm};
//!
//! let mut config = VMMConfig::new(Image::File("vmlinuz".into()));
//! config.cpus = 2;
//! let outcome = Vmm::try_from(config)?.run()?;
//! println!("{} ({})", outcome.reason, outcome.reason.code());
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "vmm"))]
//! # fn main() {}
//! ```
#![deny(missing_docs)]
#![cfg_attr(not(feature = "vmm"), allow(rustdoc::broken_intra_doc_links))]

#[cfg(feature = "vmm")]
pub mod boot;
#[cfg(feature = "vmm")]
pub mod cli;
#[cfg(feature = "vmm")]
pub mod console;
#[cfg(feature = "vmm")]
pub mod device;
#[cfg(feature = "vmm")]
pub mod doctor;
pub mod event;
#[cfg(feature = "vmm")]
pub mod exec;
#[cfg(feature = "vmm")]
pub mod memory;
#[cfg(feature = "vmm")]
pub mod report;
#[cfg(feature = "vmm")]
pub mod sys;
#[cfg(feature = "vmm")]
pub mod vcpu;
#[cfg(feature = "vmm")]
pub mod vmm;
