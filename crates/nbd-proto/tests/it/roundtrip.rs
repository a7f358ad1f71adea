//! Whatever is encoded decodes to the same, for all values, the unknown ones included.

use nbd_proto::payload::{
    BlockStatus, BlockStatusHead, ErrorHead, ErrorPayload, ExtendedBlockStatus,
    ExtendedBlockStatusHead, ExtendedExtent, Extent, OffsetData, OffsetHole, StatusFilter,
    StatusFilterHead,
};
use nbd_proto::{
    ExtendedReplyChunk, ExtendedRequest, NbdError, ReplyFlags, ReplyKind, ReplyType, Request,
    SimpleReply, StructuredReplyChunk,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::strategies::{extended_request, request};

proptest! {
    #[test]
    fn requests(request in request(), wide in extended_request()) {
        prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
        prop_assert_eq!(ExtendedRequest::decode(&wide.encode()), Ok(wide));
    }

    #[test]
    fn simple_replies(error: u32, cookie: u64) {
        let reply = SimpleReply { error: NbdError(error), cookie };
        let bytes = reply.encode();
        prop_assert_eq!(SimpleReply::decode(&bytes), Ok(reply));
        prop_assert_eq!(kind(&bytes), Some((ReplyKind::Simple, bytes.len())));
    }

    #[test]
    fn structured_reply_chunks(flags: u16, reply_type: u16, cookie: u64, length: u32) {
        let flags = ReplyFlags::from_bits(flags);
        let reply_type = ReplyType(reply_type);
        let chunk = StructuredReplyChunk { flags, reply_type, cookie, length };
        let bytes = chunk.encode();
        prop_assert_eq!(StructuredReplyChunk::decode(&bytes), Ok(chunk));
        prop_assert_eq!(kind(&bytes), Some((ReplyKind::Structured, bytes.len())));
    }

    #[test]
    fn extended_reply_chunks(
        flags: u16, reply_type: u16, cookie: u64, offset: u64, length: u64
    ) {
        let flags = ReplyFlags::from_bits(flags);
        let reply_type = ReplyType(reply_type);
        let chunk = ExtendedReplyChunk { flags, reply_type, cookie, offset, length };
        let bytes = chunk.encode();
        prop_assert_eq!(ExtendedReplyChunk::decode(&bytes), Ok(chunk));
        prop_assert_eq!(kind(&bytes), Some((ReplyKind::Extended, bytes.len())));
    }

    #[test]
    fn content_payloads(offset: u64, length: u32) {
        let data = OffsetData { offset };
        prop_assert_eq!(OffsetData::decode(&data.encode()), data);
        let hole = OffsetHole { offset, length };
        prop_assert_eq!(OffsetHole::decode(&hole.encode()), hole);
    }

    #[test]
    fn error_payloads(
        error in 1..=u32::MAX, message in vec(any::<u8>(), 0..64), offset: Option<u64>
    ) {
        let payload = ErrorPayload { error: NbdError(error), message: &message, offset };
        let mut bytes = Vec::new();
        payload.encode_to(&mut bytes);
        prop_assert_eq!(bytes.len() as u32, payload.encoded_len());
        prop_assert_eq!(ErrorPayload::parse(payload.reply_type(), &bytes), Ok(payload));
    }

    #[test]
    fn error_messages_are_cut_between_characters(message in "\\PC{1300,1400}") {
        let payload =
            ErrorPayload { error: NbdError::EIO, message: message.as_bytes(), offset: None };
        let mut bytes = Vec::new();
        payload.encode_to(&mut bytes);
        prop_assert_eq!(bytes.len() as u32, payload.encoded_len());
        let sent = ErrorPayload::parse(ReplyType::ERROR, &bytes).unwrap().message;
        let sent = std::str::from_utf8(sent).unwrap();
        prop_assert!(message.starts_with(sent));
        prop_assert!(sent == message || (4093..=4096).contains(&sent.len()));
    }

    #[test]
    fn block_status(context: u32, extents in vec((1..=u32::MAX, any::<u32>()), 1..9)) {
        let extents: Vec<_> =
            extents.into_iter().map(|(length, flags)| Extent { length, flags }).collect();
        let mut bytes = BlockStatusHead { context }.encode().to_vec();
        bytes.extend(extents.iter().flat_map(Extent::encode));

        let status = BlockStatus::parse(&bytes).unwrap();
        prop_assert_eq!(status.context(), context);
        prop_assert_eq!(status.extents().collect::<Vec<_>>(), extents);
    }

    #[test]
    fn extended_block_status(context: u32, extents in vec((1..=u64::MAX, any::<u64>()), 1..9)) {
        let extents: Vec<_> =
            extents.into_iter().map(|(length, flags)| ExtendedExtent { length, flags }).collect();
        let count = extents.len() as u32;
        let mut bytes = ExtendedBlockStatusHead { context, count }.encode().to_vec();
        bytes.extend(extents.iter().flat_map(ExtendedExtent::encode));

        let status = ExtendedBlockStatus::parse(&bytes).unwrap();
        prop_assert_eq!(status.context(), context);
        prop_assert_eq!(status.extents().collect::<Vec<_>>(), extents);
    }

    #[test]
    fn status_filters(effect_length: u64, contexts in vec(any::<u32>(), 0..9)) {
        let mut bytes = StatusFilterHead { effect_length }.encode().to_vec();
        bytes.extend(contexts.iter().flat_map(|context| context.to_be_bytes()));

        let filter = StatusFilter::parse(&bytes).unwrap();
        prop_assert_eq!(filter.effect_length(), effect_length);
        prop_assert_eq!(filter.contexts().collect::<Vec<_>>(), contexts);
    }

    #[test]
    fn payload_parts(bytes: [u8; 16]) {
        let [four, six, eight] = [&bytes[..4], &bytes[..6], &bytes[..8]];
        prop_assert_eq!(&BlockStatusHead::decode(four.try_into().unwrap()).encode(), four);
        prop_assert_eq!(&ErrorHead::decode(six.try_into().unwrap()).encode(), six);
        prop_assert_eq!(&Extent::decode(eight.try_into().unwrap()).encode(), eight);
        prop_assert_eq!(&StatusFilterHead::decode(eight.try_into().unwrap()).encode(), eight);
        let head = ExtendedBlockStatusHead::decode(eight.try_into().unwrap());
        prop_assert_eq!(&head.encode(), eight);
        prop_assert_eq!(ExtendedExtent::decode(&bytes).encode(), bytes);
    }
}

/// What a client makes of the first bytes of a reply.
fn kind(reply: &[u8]) -> Option<(ReplyKind, usize)> {
    let kind = ReplyKind::of(reply.first_chunk()?).ok()?;
    Some((kind, kind.header_len()))
}
