//! Each message against bytes written out by hand.
//!
//! The bytes come from the specification's tables, never from this crate's output. A message
//! laid over a padded struct, where an offset and a length take 16 bytes and not 12, fails here.

use nbd_proto::payload::{
    BlockStatusHead, ErrorHead, ErrorPayload, ExtendedBlockStatusHead, ExtendedExtent, Extent,
    OffsetData, OffsetHole, StatusFilterHead,
};
use nbd_proto::{
    CommandFlags, CommandType, ExtendedReplyChunk, ExtendedRequest, NbdError, ReplyFlags,
    ReplyType, Request, SimpleReply, StructuredReplyChunk, TransmissionFlags,
};

const COOKIE: u64 = 0x0102_0304_0506_0708;
const OFFSET: u64 = 0x1112_1314_1516_1718;

#[test]
#[rustfmt::skip]
fn request_is_28_bytes() {
    let bytes: [u8; 28] = [
        0x25, 0x60, 0x95, 0x13,                         // magic
        0x00, 0x01,                                     // command flags: FUA
        0x00, 0x01,                                     // type: write
        0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, // cookie
        0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, // offset
        0x21, 0x22, 0x23, 0x24,                         // length
    ];
    let request = Request {
        flags: CommandFlags::FUA,
        command: CommandType::WRITE,
        cookie: COOKIE,
        offset: OFFSET,
        length: 0x2122_2324,
    };
    assert_eq!(Request::LEN, 28);
    assert_eq!(request.encode(), bytes);
    assert_eq!(Request::decode(&bytes), Ok(request));
}

#[test]
#[rustfmt::skip]
fn extended_request_is_32_bytes() {
    let bytes: [u8; 32] = [
        0x21, 0xe4, 0x1c, 0x71,                         // magic
        0x00, 0x20,                                     // command flags: PAYLOAD_LEN
        0x00, 0x07,                                     // type: block status
        0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, // cookie
        0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, // offset
        0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, // length
    ];
    let request = ExtendedRequest {
        flags: CommandFlags::PAYLOAD_LEN,
        command: CommandType::BLOCK_STATUS,
        cookie: COOKIE,
        offset: OFFSET,
        length: 0x2122_2324_2526_2728,
    };
    assert_eq!(ExtendedRequest::LEN, 32);
    assert_eq!(request.encode(), bytes);
    assert_eq!(ExtendedRequest::decode(&bytes), Ok(request));
}

#[test]
#[rustfmt::skip]
fn simple_reply_is_16_bytes() {
    let bytes: [u8; 16] = [
        0x67, 0x44, 0x66, 0x98,                         // magic
        0x00, 0x00, 0x00, 0x1c,                         // error: ENOSPC
        0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, // cookie
    ];
    let reply = SimpleReply { error: NbdError::ENOSPC, cookie: COOKIE };
    assert_eq!(SimpleReply::LEN, 16);
    assert_eq!(reply.encode(), bytes);
    assert_eq!(SimpleReply::decode(&bytes), Ok(reply));
}

#[test]
#[rustfmt::skip]
fn structured_reply_chunk_is_20_bytes() {
    let bytes: [u8; 20] = [
        0x66, 0x8e, 0x33, 0xef,                         // magic
        0x00, 0x01,                                     // flags: DONE
        0x80, 0x02,                                     // type: error offset
        0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, // cookie
        0x00, 0x00, 0x00, 0x0e,                         // length of payload
    ];
    let chunk = StructuredReplyChunk {
        flags: ReplyFlags::DONE,
        reply_type: ReplyType::ERROR_OFFSET,
        cookie: COOKIE,
        length: 14,
    };
    assert_eq!(StructuredReplyChunk::LEN, 20);
    assert_eq!(chunk.encode(), bytes);
    assert_eq!(StructuredReplyChunk::decode(&bytes), Ok(chunk));
}

#[test]
#[rustfmt::skip]
fn extended_reply_chunk_is_32_bytes() {
    let bytes: [u8; 32] = [
        0x6e, 0x8a, 0x27, 0x8c,                         // magic
        0x00, 0x00,                                     // flags: none
        0x00, 0x06,                                     // type: extended block status
        0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, // cookie
        0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, // offset
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x18, // length of payload
    ];
    let chunk = ExtendedReplyChunk {
        flags: ReplyFlags::NONE,
        reply_type: ReplyType::BLOCK_STATUS_EXT,
        cookie: COOKIE,
        offset: OFFSET,
        length: 24,
    };
    assert_eq!(ExtendedReplyChunk::LEN, 32);
    assert_eq!(chunk.encode(), bytes);
    assert_eq!(ExtendedReplyChunk::decode(&bytes), Ok(chunk));
}

#[test]
#[rustfmt::skip]
fn content_payloads() {
    let offset = [0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18];
    assert_eq!(OffsetData { offset: OFFSET }.encode(), offset);
    assert_eq!(OffsetData::decode(&offset), OffsetData { offset: OFFSET });

    let hole = [
        0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, // offset
        0x00, 0x00, 0x10, 0x00,                         // hole size
    ];
    assert_eq!(OffsetHole::LEN, 12);
    assert_eq!(OffsetHole { offset: OFFSET, length: 4096 }.encode(), hole);
    assert_eq!(OffsetHole::decode(&hole), OffsetHole { offset: OFFSET, length: 4096 });
}

#[test]
#[rustfmt::skip]
fn error_payloads() {
    let head = ErrorHead { error: NbdError::EIO, message_length: 0x0102 };
    assert_eq!(head.encode(), [0x00, 0x00, 0x00, 0x05, 0x01, 0x02]);

    let mut bytes = Vec::new();
    let payload = ErrorPayload { error: NbdError::EIO, message: b"bad", offset: Some(OFFSET) };
    payload.encode_to(&mut bytes);
    assert_eq!(bytes, [
        0x00, 0x00, 0x00, 0x05,                         // error: EIO
        0x00, 0x03,                                     // message length
        b'b', b'a', b'd',                               // message
        0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, // offset
    ]);
}

#[test]
#[rustfmt::skip]
fn block_status_payloads() {
    assert_eq!(BlockStatusHead { context: 7 }.encode(), [0, 0, 0, 7]);
    assert_eq!(Extent { length: 0x0102_0304, flags: 3 }.encode(), [1, 2, 3, 4, 0, 0, 0, 3]);

    assert_eq!(ExtendedBlockStatusHead { context: 7, count: 2 }.encode(), [0, 0, 0, 7, 0, 0, 0, 2]);
    assert_eq!(ExtendedExtent { length: OFFSET, flags: 3 }.encode(), [
        0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, // length
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x03, // flags
    ]);
    assert_eq!(StatusFilterHead { effect_length: 9 }.encode(), [0, 0, 0, 0, 0, 0, 0, 9]);
}

#[test]
fn flags_have_the_specification_s_bits() {
    assert_eq!(CommandFlags::FUA.bits(), 1);
    assert_eq!(CommandFlags::NO_HOLE.bits(), 2);
    assert_eq!(CommandFlags::DF.bits(), 4);
    assert_eq!(CommandFlags::REQ_ONE.bits(), 8);
    assert_eq!(CommandFlags::FAST_ZERO.bits(), 16);
    assert_eq!(CommandFlags::PAYLOAD_LEN.bits(), 32);
    assert_eq!(ReplyFlags::DONE.bits(), 1);
    let transmission = [
        TransmissionFlags::HAS_FLAGS,
        TransmissionFlags::READ_ONLY,
        TransmissionFlags::SEND_FLUSH,
        TransmissionFlags::SEND_FUA,
        TransmissionFlags::ROTATIONAL,
        TransmissionFlags::SEND_TRIM,
        TransmissionFlags::SEND_WRITE_ZEROES,
        TransmissionFlags::SEND_DF,
        TransmissionFlags::CAN_MULTI_CONN,
        TransmissionFlags::SEND_RESIZE,
        TransmissionFlags::SEND_CACHE,
        TransmissionFlags::SEND_FAST_ZERO,
        TransmissionFlags::BLOCK_STATUS_PAYLOAD,
    ];
    for (bit, flag) in transmission.into_iter().enumerate() {
        assert_eq!(flag.bits(), 1 << bit, "{flag}");
    }
}
