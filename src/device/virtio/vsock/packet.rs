//! Packets (virtio 1.3, 5.10.6): a header, and for some the bytes of a stream behind it.
//!
//! The crate virtio-vsock has a type for them, but it takes raw descriptor chains, refuses what is in more than two pieces,
//! and has no way to build a packet for a chain that was checked already.

/// Bytes of a header.
pub const HEADER: usize = 44;

/// The host's context identifier, and the only one that guests can reach.
pub const HOST_CID: u64 = 2;

/// The one type of socket there is: a stream.
pub const STREAM: u16 = 1;

/// What a packet is for.
pub mod op {
    /// Asks for a connection.
    pub const REQUEST: u16 = 1;
    /// Grants one.
    pub const RESPONSE: u16 = 2;
    /// Ends one at once, or refuses it.
    pub const RST: u16 = 3;
    /// Says that the sender will not send or receive any more.
    pub const SHUTDOWN: u16 = 4;
    /// Carries bytes.
    pub const RW: u16 = 5;
    /// Says how much room there is, as every packet does.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for that.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// In the flags of a SHUTDOWN: its sender will not receive any more.
pub const NO_RECEIVE: u32 = 1;
/// In the flags of a SHUTDOWN: its sender will not send any more.
pub const NO_SEND: u32 = 2;

/// The header of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The sender's context identifier.
    pub src_cid: u64,
    /// The receiver's.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's.
    pub dst_port: u32,
    /// How many bytes follow.
    pub len: u32,
    /// The type of socket.
    pub kind: u16,
    /// What the packet is for, one of [`op`].
    pub op: u16,
    /// For a SHUTDOWN, [`NO_RECEIVE`] and [`NO_SEND`].
    pub flags: u32,
    /// How many bytes its sender can hold.
    pub buf_alloc: u32,
    /// How many bytes its sender has passed on since the connection began, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Takes a header apart.
    pub fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        let mut rest = &bytes[..];
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// Puts a header together.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut rest = &mut bytes[..];
        put(&mut rest, &self.src_cid.to_le_bytes());
        put(&mut rest, &self.dst_cid.to_le_bytes());
        put(&mut rest, &self.src_port.to_le_bytes());
        put(&mut rest, &self.dst_port.to_le_bytes());
        put(&mut rest, &self.len.to_le_bytes());
        put(&mut rest, &self.kind.to_le_bytes());
        put(&mut rest, &self.op.to_le_bytes());
        put(&mut rest, &self.flags.to_le_bytes());
        put(&mut rest, &self.buf_alloc.to_le_bytes());
        put(&mut rest, &self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The packet that refuses this one.
    pub fn refusal(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Self::default()
        }
    }
}

/// The next bytes; zeros behind the end, where no header's field is.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    rest.split_off(..N).and_then(|part| part.try_into().ok()).unwrap_or([0; N])
}

fn put(rest: &mut &mut [u8], field: &[u8]) {
    if let Some(part) = rest.split_off_mut(..field.len()) {
        part.copy_from_slice(field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_what_the_specification_says_byte_by_byte() {
        let bytes: [u8; HEADER] = std::array::from_fn(|index| index as u8);
        let header = Header::from_bytes(&bytes);
        let expected = Header {
            src_cid: 0x0706_0504_0302_0100,
            dst_cid: 0x0f0e_0d0c_0b0a_0908,
            src_port: 0x1312_1110,
            dst_port: 0x1716_1514,
            len: 0x1b1a_1918,
            kind: 0x1d1c,
            op: 0x1f1e,
            flags: 0x2322_2120,
            buf_alloc: 0x2726_2524,
            fwd_cnt: 0x2b2a_2928,
        };
        assert_eq!(header, expected);
        assert_eq!(header.to_bytes(), bytes);
        let refusal = header.refusal();
        assert_eq!((refusal.src_cid, refusal.dst_port, refusal.op), (header.dst_cid, header.src_port, op::RST));
    }
}
