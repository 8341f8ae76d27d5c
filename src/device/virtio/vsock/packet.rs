//! Packets (virtio 1.3, 5.10.6): a header, followed by the payload in OP_RW packets.
//!
//! The crate virtio-vsock does not replace this file: version 0.12 parses raw descriptor chains only, requires the
//! payload in one descriptor, and has private fields in its `PacketHeader`. A [`Chain`](crate::device::virtio::Chain)
//! is already checked and may split a packet anywhere.

/// Size of a header in bytes.
pub const HEADER_LEN: usize = 44;

/// The context identifier (CID) of the host, the only one that a guest can reach.
pub const HOST_CID: u64 = 2;

/// The socket type `VIRTIO_VSOCK_TYPE_STREAM`, the only one supported.
pub const TYPE_STREAM: u16 = 1;

/// Operations (`VIRTIO_VSOCK_OP_*`).
pub mod op {
    /// Requests a connection.
    pub const REQUEST: u16 = 1;
    /// Accepts a connection.
    pub const RESPONSE: u16 = 2;
    /// Refuses or resets a connection.
    pub const RST: u16 = 3;
    /// Announces that the sender will receive or send no more.
    pub const SHUTDOWN: u16 = 4;
    /// Carries payload.
    pub const RW: u16 = 5;
    /// Carries `buf_alloc` and `fwd_cnt` only, which every packet has.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Requests a [`CREDIT_UPDATE`].
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flag of a SHUTDOWN packet: its sender will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// Flag of a SHUTDOWN packet: its sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;

/// `struct virtio_vsock_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// CID of the sender.
    pub src_cid: u64,
    /// CID of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Length of the payload in bytes.
    pub len: u32,
    /// The socket type (`type` in the specification), [`TYPE_STREAM`].
    pub socket_type: u16,
    /// One of [`op`].
    pub op: u16,
    /// [`SHUTDOWN_RECEIVE`] and [`SHUTDOWN_SEND`] in a SHUTDOWN packet.
    pub flags: u32,
    /// Size of the sender's receive buffer in bytes.
    pub buf_alloc: u32,
    /// Number of bytes that the sender has consumed since the connection was established, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Decodes a header.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        let word = |index: usize| u32::from_le_bytes(bytes.as_chunks::<4>().0[index]);
        let cid = |index: usize| u64::from(word(index + 1)) << 32 | u64::from(word(index));
        let (src_cid, dst_cid, src_port, dst_port, len) = (cid(0), cid(2), word(4), word(5), word(6));
        let (socket_type, op) = ((word(7) & 0xffff) as u16, (word(7) >> 16) as u16);
        let (flags, buf_alloc, fwd_cnt) = (word(8), word(9), word(10));
        Self { src_cid, dst_cid, src_port, dst_port, len, socket_type, op, flags, buf_alloc, fwd_cnt }
    }

    /// Encodes the header.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let Self { src_cid, dst_cid, src_port, dst_port, len, socket_type, op, flags, buf_alloc, fwd_cnt } = self;
        let [a, b, c, d] = [src_cid, src_cid >> 32, dst_cid, dst_cid >> 32].map(|half| (half & 0xffff_ffff) as u32);
        let type_and_op = u32::from(op) << 16 | u32::from(socket_type);
        let words = [a, b, c, d, src_port, dst_port, len, type_and_op, flags, buf_alloc, fwd_cnt];
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(words.map(u32::to_le_bytes).as_flattened());
        bytes
    }

    /// The RST packet that answers this packet.
    pub fn rst(&self) -> Self {
        let Self { src_cid, dst_cid, src_port, dst_port, socket_type, .. } = *self;
        let (src_cid, dst_cid, src_port, dst_port) = (dst_cid, src_cid, dst_port, src_port);
        Self { src_cid, dst_cid, src_port, dst_port, socket_type, op: op::RST, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_header_field_has_the_offset_of_the_specification() {
        let bytes: [u8; HEADER_LEN] = std::array::from_fn(|index| index.to_le_bytes()[0]);
        let header = Header::from_bytes(&bytes);
        let expected = Header {
            src_cid: 0x0706_0504_0302_0100,
            dst_cid: 0x0f0e_0d0c_0b0a_0908,
            src_port: 0x1312_1110,
            dst_port: 0x1716_1514,
            len: 0x1b1a_1918,
            socket_type: 0x1d1c,
            op: 0x1f1e,
            flags: 0x2322_2120,
            buf_alloc: 0x2726_2524,
            fwd_cnt: 0x2b2a_2928,
        };
        assert_eq!(header, expected);
        assert_eq!(header.to_bytes(), bytes);
        let rst = header.rst();
        assert_eq!((rst.src_cid, rst.dst_port, rst.op), (header.dst_cid, header.src_port, op::RST));
    }
}
