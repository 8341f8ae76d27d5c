//! The reset of a device (virtio 1.3, 2.4): asynchronous while the device has I/O in flight. The event loop completes
//! it, and the status reads as before until then (2.4.2).

use std::time::Duration;

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_INT_VRING, VIRTIO_MMIO_INTERRUPT_STATUS};

use super::{QueueConfig, Virtio, VirtioDevice, Virtqueue, half};

/// How long a vCPU that writes 0 to the status register waits for a reset that takes time. Linux does not poll the
/// register, but takes the memory of its buffers back at once. The vCPU can be kicked out of the guest afterwards, so
/// this must be much shorter than the time a shutdown waits for it.
pub(super) const RESET_WAIT: Duration = Duration::from_millis(100);

impl<D: VirtioDevice> Virtio<D> {
    pub(super) fn reset(&mut self) {
        self.queues.iter_mut().for_each(Virtqueue::reset);
        self.queue_configs.fill(QueueConfig::default());
        self.driver_features = 0;
        (self.driver_features_sel, self.queue_sel) = (0, 0);
        self.status = 0;
        self.resetting = true;
        self.try_complete_reset();
    }

    pub(super) fn try_complete_reset(&mut self) {
        self.device.reset();
        if self.device.has_io_in_flight() {
            return;
        }
        self.resetting = false;
        self.set_status(0);
        // Used buffers are announced by edges and the line is the device's own, so its driver may check each time.
        self.page.store(VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_INT_VRING);
        self.page.store(VIRTIO_MMIO_DEVICE_FEATURES, half(self.features(), 0));
        self.store_queue();
        self.reset_done.notify_all();
    }
}
