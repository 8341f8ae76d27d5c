//! The steps of a run before the guest starts.

use std::sync::Arc;

use super::timeout_and_signals::{on_signal, on_timeout, stop_signals};
use super::{ConsoleConfig, Error, Subscriber, VMMConfig, Vmm};
use crate::boot::{self, BootParams, Entry};
use crate::console::terminal::RawTerminal;
use crate::event::{Signals, SubscriberOps};

impl Vmm {
    /// Copies the kernel, the initramfs and the tables into guest memory.
    pub(super) fn load(&self) -> Result<Entry, Error> {
        let VMMConfig { image, initramfs, cmdline, cpus, .. } = &self.config;
        let params = BootParams {
            image,
            initramfs,
            initramfs_source: self.hooks.initramfs_source.as_deref().map(|source| source as _),
            cmdline,
            cpus: *cpus,
            virtio_devices: self.virtio.subscribers.len(),
            second_serial: self.hooks.second_serial,
        };
        let entry = boot::load(self.ram.memory(), &params)?;
        log::info!("boot protocol: {}, entry at {:#x}", entry.protocol, entry.address.0);
        log::info!("command line: {cmdline}");
        // With this level, panic(9) prints nothing (console_verbose in linux/printk.h).
        if cmdline.split(' ').rfind(|word| word.starts_with("loglevel=")) == Some("loglevel=0") {
            log::warn!("warning: 'loglevel=0' on the kernel command line hides a panic from the console");
        }
        Ok(entry)
    }

    /// Truncates the console's file. `run` calls it after `load`, so that a mistyped kernel does not erase the last
    /// log.
    pub(super) fn truncate_output(&self) -> Result<(), Error> {
        let ConsoleConfig::File(path) = &self.config.console else { return Ok(()) };
        let truncated = self.console().truncate_output(self.config.input_files());
        truncated.map_err(|source| Error::ConsoleFile { path: path.clone(), source })
    }

    /// Adds what the loop waits for besides the exit handler. Returns the descriptor of the signals.
    pub(super) fn subscribe(&mut self) -> Result<Arc<Signals>, Error> {
        let stop = Arc::new(stop_signals(&[libc::SIGCONT]).map_err(Error::host("wait for signals"))?);
        let exit_handler = &self.exit_handler;
        let signals = on_signal(stop.clone(), self.hooks.on_signal.take(), exit_handler.clone());
        let timeout = |after| on_timeout(after, exit_handler.clone());
        let timeout = self.config.timeout.map(timeout).transpose().map_err(Error::host("set a timer"))?;
        let added = [signals].into_iter().chain(self.hooks.subscribers.drain(..)).chain(timeout);
        let devices = self.virtio.subscribers.iter().cloned();
        for subscriber in added.chain([self.console.clone() as Subscriber]).chain(devices) {
            self.event_mgr.add_subscriber(subscriber);
        }
        Ok(stop)
    }

    /// Makes the terminal raw if its keys are for the guest.
    pub(super) fn enter_terminal(&self) -> Result<Option<RawTerminal>, Error> {
        let raw = self.hooks.raw_terminal || self.config.console.has_input();
        let terminal = if raw { RawTerminal::enter() } else { Ok(None) };
        terminal.map_err(Error::host("make the terminal raw"))
    }
}
