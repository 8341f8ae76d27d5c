//! A disk's feature bits and configuration space (virtio 1.3, 5.2.3 and 5.2.4).

use std::mem::offset_of;

use virtio_bindings::virtio_blk::*;

use super::disk::Disk;
use super::request::{MAX_DISCARD_SECTORS, MAX_ZERO_SECTORS, SECTOR};

/// Bytes of the configuration space that are defined.
pub const LEN: usize = offset_of!(virtio_blk_config, write_zeroes_may_unmap) + 4;

/// The feature bits of `disk`.
pub fn features(disk: &Disk) -> u64 {
    let always = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_TOPOLOGY;
    let writable = 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    always | if disk.read_only { 1 << VIRTIO_BLK_F_RO } else { writable }
}

/// The configuration space of `disk`.
pub fn space(disk: &Disk) -> [u8; LEN] {
    const PAGE: u64 = 4 << 10;
    let mut config = [0; LEN];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(offset_of!(virtio_blk_config, capacity), &disk.sectors.to_le_bytes());
    // A chain is no longer than the queue; the header and the status take two of its descriptors.
    put(offset_of!(virtio_blk_config, seg_max), &u32::from(super::QUEUE_SIZE - 2).to_le_bytes());
    put(offset_of!(virtio_blk_config, blk_size), &disk.block_size.to_le_bytes()[..4]);
    // The host reads and writes whole pages.
    let blocks = PAGE / disk.block_size;
    put(offset_of!(virtio_blk_config, physical_block_exp), &blocks.ilog2().to_le_bytes()[..1]);
    put(offset_of!(virtio_blk_config, min_io_size), &blocks.to_le_bytes()[..2]);
    let page_sectors = (PAGE / SECTOR).to_le_bytes();
    put(offset_of!(virtio_blk_config, max_discard_sectors), &MAX_DISCARD_SECTORS.to_le_bytes());
    put(offset_of!(virtio_blk_config, max_discard_seg), &1u32.to_le_bytes());
    put(offset_of!(virtio_blk_config, discard_sector_alignment), &page_sectors[..4]);
    put(offset_of!(virtio_blk_config, max_write_zeroes_sectors), &MAX_ZERO_SECTORS.to_le_bytes());
    put(offset_of!(virtio_blk_config, max_write_zeroes_seg), &1u32.to_le_bytes());
    put(offset_of!(virtio_blk_config, write_zeroes_may_unmap), &[1]);
    config
}
