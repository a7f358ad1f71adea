//! The payload of error chunks: what went wrong, in words for a human, and where.

use super::MalformedPayload;
use crate::field::{get_u16, get_u32, put_u16, put_u32};
use crate::{NbdError, ReplyType};

/// The start of every error payload, 6 bytes. The message follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ErrorHead {
    /// How the request ended.
    pub error: NbdError,
    /// Length of the message, in bytes.
    pub message_length: u16,
}

impl ErrorHead {
    /// Size on the wire, in bytes.
    pub const LEN: usize = 6;

    /// The bytes as they go on the wire.
    pub const fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        put_u32(&mut bytes, 0, self.error.0);
        put_u16(&mut bytes, 4, self.message_length);
        bytes
    }

    /// Reads the bytes.
    pub const fn decode(bytes: &[u8; Self::LEN]) -> Self {
        Self { error: NbdError(get_u32(bytes, 0)), message_length: get_u16(bytes, 4) }
    }
}

/// The whole payload of an error chunk (`NBD_REPLY_TYPE_ERROR`, `NBD_REPLY_TYPE_ERROR_OFFSET`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ErrorPayload<'a> {
    /// How the request ended; never success when parsed.
    pub error: NbdError,
    /// Words for a human; UTF-8 if the server keeps to the specification.
    pub message: &'a [u8],
    /// Where it went wrong, in bytes from the start of the export.
    pub offset: Option<u64>,
}

impl<'a> ErrorPayload<'a> {
    /// The longest message, in bytes (specification: "Conventions").
    pub const MAX_MESSAGE: u16 = 4096;

    /// The chunk type that this payload belongs to.
    pub const fn reply_type(&self) -> ReplyType {
        match self.offset {
            Some(_) => ReplyType::ERROR_OFFSET,
            None => ReplyType::ERROR,
        }
    }

    /// Appends the payload to `out`. Of a message that is too long the beginning is sent.
    pub fn encode_to(&self, out: &mut impl Extend<u8>) {
        let message_length = self.sent_length();
        let message = &self.message[..usize::from(message_length)];
        out.extend(ErrorHead { error: self.error, message_length }.encode());
        out.extend(message.iter().copied());
        out.extend(self.offset.into_iter().flat_map(u64::to_be_bytes));
    }

    /// Length of the encoded payload, in bytes.
    pub fn encoded_len(&self) -> u32 {
        let offset_length = if self.offset.is_some() { 8 } else { 0 };
        ErrorHead::LEN as u32 + u32::from(self.sent_length()) + offset_length
    }

    /// Parses the payload of an error chunk; of one with an unknown type, the part that all of
    /// them have in common.
    ///
    /// # Errors
    ///
    /// If the payload is shorter than its type or its message length requires, the message is too
    /// long, or the error is success.
    pub fn parse(reply_type: ReplyType, payload: &'a [u8]) -> Result<Self, MalformedPayload> {
        let (head, rest) = payload.split_first_chunk().ok_or(MalformedPayload)?;
        let ErrorHead { error, message_length } = ErrorHead::decode(head);
        if error.is_success() || message_length > Self::MAX_MESSAGE {
            return Err(MalformedPayload);
        }
        let (message, rest) =
            rest.split_at_checked(usize::from(message_length)).ok_or(MalformedPayload)?;
        let offset = match reply_type {
            ReplyType::ERROR_OFFSET => {
                Some(u64::from_be_bytes(*rest.first_chunk().ok_or(MalformedPayload)?))
            }
            _ => None,
        };
        Ok(Self { error, message, offset })
    }

    /// How much of the message fits, without cutting a UTF-8 character in half.
    fn sent_length(&self) -> u16 {
        let mut end = usize::from(Self::MAX_MESSAGE);
        let Some(mut next) = self.message.get(end) else {
            // Shorter than the limit, which is itself a u16.
            return self.message.len() as u16;
        };
        while is_continuation(*next) && end > 0 {
            end -= 1;
            next = &self.message[end];
        }
        end as u16
    }
}

/// Whether a byte continues a UTF-8 character rather than beginning one.
const fn is_continuation(byte: u8) -> bool {
    byte & 0b1100_0000 == 0b1000_0000
}
