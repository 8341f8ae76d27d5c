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
        let mut rest = &bytes[..];
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            socket_type: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// Encodes the header.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let cids = [self.src_cid, self.dst_cid].map(u64::to_le_bytes);
        let ports_and_len = [self.src_port, self.dst_port, self.len].map(u32::to_le_bytes);
        let type_and_op = [self.socket_type, self.op].map(u16::to_le_bytes);
        let rest = [self.flags, self.buf_alloc, self.fwd_cnt].map(u32::to_le_bytes);
        let fields =
            [cids.as_flattened(), ports_and_len.as_flattened(), type_and_op.as_flattened(), rest.as_flattened()];
        let mut bytes = [0; HEADER_LEN];
        bytes.iter_mut().zip(fields.into_iter().flatten()).for_each(|(to, from)| *to = *from);
        bytes
    }

    /// The RST packet that answers this packet.
    pub fn rst(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            socket_type: self.socket_type,
            op: op::RST,
            ..Self::default()
        }
    }
}

/// Splits off the next `N` bytes. The fields fill the header exactly, so the default is never used.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    rest.split_off(..N).and_then(|part| part.try_into().ok()).unwrap_or([0; N])
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
