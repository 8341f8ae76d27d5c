//! kickvm, a small VMM for Linux/KVM on x86-64: one event loop, vCPU threads that *kick* it through an eventfd when
//! their vCPU ends, and one exit path.
//!
//! # Reading order
//!
//! The course in `docs` of the repository builds these parts in small programs (`make book`).
//!
//! The event loop and the exit path implement four existing designs, the *seeds* of this project, and keep their names.
//! Steps 1 to 6 name their seed.
//!
//! | seed | idea |
//! |---|---|
//! | the epoll wrapper | `Epoll`, `EpollEvent` and `EventSet`: the system calls of epoll(7) as safe functions |
//! | `Poll`, `Registry` and `Token` | one thread waits, any thread registers, a token identifies the source |
//! | the event manager | subscribers register descriptors in `init` and are called back in `process` |
//! | the exit-handler pattern | an eventfd and a flag end the event loop; vCPU threads kick it |
//!
//! 1. [`event::epoll`]: [`Epoll`](event::Epoll) waits for descriptors. *Seed: the epoll wrapper.*
//! 2. [`event::poll`]: [`Poll`](event::Poll) waits with `&mut self`, a [`Registry`](event::Registry) registers with
//!    `&self`. *Seed: Poll, Registry and Token.*
//! 3. [`event`]: the [`EventManager`](event::EventManager) dispatches events to subscribers, and a `RemoteEndpoint`
//!    lets other threads call into the loop. *Seed: the event manager.* Steps 1 to 3 need no KVM, and are what
//!    remains of the crate without default features.
//! 4. [`vmm::VmmExitHandler`] is the first subscriber of the loop. [`set_reason`](vmm::ExitHandler::set_reason) and
//!    [`kick`](vmm::ExitHandler::kick) end the run; the first reason counts. *Seed: the exit-handler pattern.*
//! 5. [`vmm::Vmm::run`] contains one whole run: load the guest, start the vCPUs, run the event loop until
//!    the exit handler has been kicked, shut down. *Seed: the exit-handler pattern.*
//! 6. [`vmm::KvmVm`] starts one thread per vCPU, each with a guard that kicks if the thread panics, and joins
//!    them within about a second. *Seed: the exit-handler pattern.*
//! 7. [`vcpu::Vcpu::run`] enters the guest again and again. [`vcpu::handle`] maps an exit to an access to a
//!    device or to the end of the vCPU. It needs no KVM, so unit tests cover every exit.
//! 8. [`device`]: what the guest can access. [`device::serial::Serial`] is the largest of the platform devices;
//!    [`device::virtio`] has one transport and a file or folder for each kind of device.
//! 9. [`memory`] maps guest RAM. [`boot`] turns files into guest memory; [`boot::layout`] is the memory map.
//! 10. [`console`]: the user's side of the guest's console, and the monitor that examines its lines. [`results`] finds
//!     test results in them.
//! 11. [`exec`] runs one command in a guest, through the same [`VmmBuilder`](vmm::VmmBuilder) as any embedder:
//!     [`exec::run`] on the host,
//!     [`exec::run_if_init`] as the guest's first process.
//! 12. [`report`] turns an [`Outcome`](vmm::Outcome) into messages, JSON and JUnit. [`doctor`] checks the host
//!     and has the demonstration guest.
//! 13. [`matrix`] runs one command for each combination of kernels, vCPUs and kernel command lines.
//!
//! The pattern of steps 3 to 6 in one piece, without KVM:
//!
//! ```
//! # #[cfg(feature = "vmm")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use kickvm::event::{EventManager, MutEventSubscriber, SubscriberOps};
//! use kickvm::vmm::{ExitHandler, ExitReason, WrappedExitHandler};
//! use std::sync::{Arc, Mutex};
//!
//! let exit_handler = WrappedExitHandler::new()?;
//! let mut event_mgr = EventManager::<Arc<Mutex<dyn MutEventSubscriber + Send>>>::new()?;
//! event_mgr.add_subscriber(exit_handler.subscriber());
//!
//! let handle = exit_handler.clone();
//! let vcpu0 = std::thread::spawn(move || {
//!     let reason = ExitReason::Failed("no KVM in this example".to_owned()); // here, a vCPU thread runs its vCPU
//!     handle.set_reason(reason);
//!     handle.kick()
//! });
//! loop {
//!     event_mgr.run()?;
//!     if !exit_handler.keep_running() {
//!         break;
//!     }
//! }
//! vcpu0.join().expect("the thread does not panic")?;
//! assert_eq!(exit_handler.reason().map(|reason| reason.code()), Some(kickvm::vmm::code::FAILED));
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "vmm"))]
//! # fn main() {}
//! ```
//!
//! # Floors
//!
//! ```text
//!   main      parse, run, report, exit code
//!   cli       the command line, turned into configurations; the logger
//!   doctor    checks of the host, the demonstration
//!   report    a run as JSON, JUnit and messages
//!   exec      one command in a guest: root file system, channel, host side, init
//!   vmm       Vmm::run, builder, KvmVm, exit handler, outcome, configuration
//!   results   test results in the text of a source
//!   console   terminal, input, output, escape keys, console monitor
//!   vcpu      one virtual CPU: CPUID, registers, run loop, exits as values, kick
//!   boot      kernel, initramfs, command line, ACPI tables, memory map
//!   device    bus, platform devices, virtio
//!   memory    guest RAM: mapping, memory slots
//!   sys       wrappers of system calls and shared memory, one subject a file
//!   event     epoll, Poll, EventManager, timers, signals
//! ```
//!
//! A floor imports only floors below it; the test `floors` checks that. `cli` is public for `main`, the generator of
//! the manual pages and tests. All `unsafe` code is in `sys`, `memory.rs`, `event/epoll.rs`, `event/sys.rs`,
//! `vcpu/run_page.rs` and `vcpu/kick_signal.rs`; `doctor/embedded_guests.rs` declares the symbols of the embedded
//! guests.
//!
//! The library writes nothing to standard error; it uses the `log` facade.
//!
//! # A machine in a program
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
//!
//! A [`VmmBuilder`](vmm::VmmBuilder) adds port devices, subscribers of the event loop, and hooks for signals and for
//! the end of the run. `examples/embed.rs` is a complete program with a device and a subscriber.
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
pub mod matrix;
#[cfg(feature = "vmm")]
pub mod memory;
#[cfg(feature = "vmm")]
pub mod report;
#[cfg(feature = "vmm")]
pub mod results;
#[cfg(feature = "vmm")]
pub mod sys;
#[cfg(feature = "vmm")]
pub mod vcpu;
#[cfg(feature = "vmm")]
pub mod vmm;
