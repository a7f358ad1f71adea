//! No bytes make a decoder panic, and a wrong magic number is always noticed.

use nbd_proto::payload::{BlockStatus, ErrorPayload, ExtendedBlockStatus, StatusFilter};
use nbd_proto::{
    ExtendedReplyChunk, ExtendedRequest, ReplyKind, ReplyType, Request, SimpleReply,
    StructuredReplyChunk, WrongMagic, magic,
};
use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    /// Arbitrary bytes: refused for their magic number, of which they are told.
    #[test]
    fn wrong_magic(bytes: [u8; 32]) {
        let found = u32::from_be_bytes(*bytes.first_chunk().unwrap());
        let known = [
            magic::REQUEST,
            magic::EXTENDED_REQUEST,
            magic::SIMPLE_REPLY,
            magic::STRUCTURED_REPLY,
            magic::EXTENDED_REPLY,
        ];
        prop_assume!(!known.contains(&found));
        let wrong = WrongMagic { found };
        prop_assert_eq!(Request::decode(bytes.first_chunk().unwrap()), Err(wrong));
        prop_assert_eq!(ExtendedRequest::decode(&bytes), Err(wrong));
        prop_assert_eq!(SimpleReply::decode(bytes.first_chunk().unwrap()), Err(wrong));
        prop_assert_eq!(StructuredReplyChunk::decode(bytes.first_chunk().unwrap()), Err(wrong));
        prop_assert_eq!(ExtendedReplyChunk::decode(&bytes), Err(wrong));
        prop_assert_eq!(ReplyKind::of(bytes.first_chunk().unwrap()), Err(wrong));
    }

    /// Arbitrary bytes behind the right magic number: kept bit for bit.
    #[test]
    fn right_magic(mut bytes: [u8; 32]) {
        bytes[..4].copy_from_slice(&magic::REQUEST.to_be_bytes());
        let request: &[u8; 28] = bytes.first_chunk().unwrap();
        prop_assert_eq!(Request::decode(request).unwrap().encode(), *request);

        bytes[..4].copy_from_slice(&magic::EXTENDED_REQUEST.to_be_bytes());
        prop_assert_eq!(ExtendedRequest::decode(&bytes).unwrap().encode(), bytes);

        bytes[..4].copy_from_slice(&magic::SIMPLE_REPLY.to_be_bytes());
        let reply: &[u8; 16] = bytes.first_chunk().unwrap();
        prop_assert_eq!(SimpleReply::decode(reply).unwrap().encode(), *reply);

        bytes[..4].copy_from_slice(&magic::STRUCTURED_REPLY.to_be_bytes());
        let chunk: &[u8; 20] = bytes.first_chunk().unwrap();
        prop_assert_eq!(StructuredReplyChunk::decode(chunk).unwrap().encode(), *chunk);

        bytes[..4].copy_from_slice(&magic::EXTENDED_REPLY.to_be_bytes());
        prop_assert_eq!(ExtendedReplyChunk::decode(&bytes).unwrap().encode(), bytes);
    }

    /// Arbitrary payloads: refused or read, never past their end.
    #[test]
    fn payloads(reply_type: u16, payload in vec(prop_oneof![Just(0), any::<u8>()], 0..80)) {
        for reply_type in [ReplyType::ERROR, ReplyType::ERROR_OFFSET, ReplyType(reply_type)] {
            if let Ok(error) = ErrorPayload::parse(reply_type, &payload) {
                prop_assert!(error.encoded_len() as usize <= payload.len());
            }
        }
        if let Ok(status) = BlockStatus::parse(&payload) {
            prop_assert_eq!(payload.len(), 4 + 8 * status.extents().len());
        }
        if let Ok(status) = ExtendedBlockStatus::parse(&payload) {
            prop_assert_eq!(payload.len(), 8 + 16 * status.extents().len());
        }
        if let Ok(filter) = StatusFilter::parse(&payload) {
            prop_assert_eq!(payload.len(), 8 + 4 * filter.contexts().len());
        }
    }
}
