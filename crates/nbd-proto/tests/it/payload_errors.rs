//! Malformed payloads, by the party at fault.

use nbd_proto::payload::{
    BlockStatus, ErrorPayload, ExtendedBlockStatus, MalformedPayload, StatusFilter,
};
use nbd_proto::{NbdError, ReplyType};

#[test]
fn server_error_without_a_number() {
    let payload = [0, 0, 0, 0, 0, 0];
    assert_eq!(ErrorPayload::parse(ReplyType::ERROR, &payload), Err(MalformedPayload));
}

#[test]
fn server_error_message_passes_the_payload_s_end() {
    let payload = [0, 0, 0, 5, 0, 4, b'b', b'a', b'd'];
    assert_eq!(ErrorPayload::parse(ReplyType::ERROR, &payload), Err(MalformedPayload));
}

#[test]
fn server_error_message_is_longer_than_a_string_may_be() {
    let mut payload = vec![0, 0, 0, 5, 0x10, 0x01];
    payload.resize(6 + 4097, b'x');
    assert_eq!(ErrorPayload::parse(ReplyType::ERROR, &payload), Err(MalformedPayload));
}

#[test]
fn server_error_offset_without_an_offset() {
    let payload = [0, 0, 0, 5, 0, 1, b'x', 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(ErrorPayload::parse(ReplyType::ERROR_OFFSET, &payload), Err(MalformedPayload));
    assert!(ErrorPayload::parse(ReplyType::ERROR, &payload).is_ok());
}

/// A type from the future ends in unknown fields, which are skipped.
#[test]
fn server_error_of_an_unknown_type_is_understood() {
    let payload = [0, 0, 0, 28, 0, 1, b'x', 9, 9, 9];
    let error = ErrorPayload::parse(ReplyType(0x8077), &payload);
    let expected = ErrorPayload { error: NbdError::ENOSPC, message: b"x", offset: None };
    assert_eq!(error, Ok(expected));
}

#[test]
fn server_block_status_without_extents() {
    assert_eq!(BlockStatus::parse(&[0, 0, 0, 1]), Err(MalformedPayload));
    assert_eq!(ExtendedBlockStatus::parse(&[0, 0, 0, 1, 0, 0, 0, 0]), Err(MalformedPayload));
}

#[test]
fn server_block_status_with_half_an_extent() {
    let payload = [0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 16, 0];
    assert_eq!(BlockStatus::parse(&payload), Err(MalformedPayload));
    assert!(BlockStatus::parse(&payload[..12]).is_ok());
}

#[test]
fn server_block_status_with_an_empty_extent() {
    let payload = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3];
    assert_eq!(BlockStatus::parse(&payload), Err(MalformedPayload));
}

#[test]
fn server_extended_block_status_miscounts() {
    let mut payload = [1; 24];
    payload[..8].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2]);
    assert_eq!(ExtendedBlockStatus::parse(&payload), Err(MalformedPayload));
    payload[7] = 1;
    assert!(ExtendedBlockStatus::parse(&payload).is_ok());
}

#[test]
fn client_status_filter_with_half_a_context() {
    assert_eq!(StatusFilter::parse(&[0; 10]), Err(MalformedPayload));
    assert_eq!(StatusFilter::parse(&[0; 7]), Err(MalformedPayload));
    assert!(StatusFilter::parse(&[0; 12]).is_ok());
}
