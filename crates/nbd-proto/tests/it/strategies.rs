//! Arbitrary messages.

use nbd_proto::{
    CommandFlags, CommandType, ExtendedRequest, Request, RequestRules, TransmissionFlags,
};
use proptest::prelude::*;

/// Numbers near 0, near a common boundary, near the top, and anywhere.
pub(crate) fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..8192_u64,
        (0..64_u32, 0..4_u64).prop_map(|(bit, back)| (1_u64 << bit).wrapping_sub(back)),
        (0..8192_u64).prop_map(|back| u64::MAX - back),
        any::<u64>(),
    ]
}

/// Numbers, half of them multiples of every block size in use.
fn position() -> impl Strategy<Value = u64> {
    prop_oneof![number(), number().prop_map(|number| number & !4095)]
}

pub(crate) fn request() -> impl Strategy<Value = Request> {
    extended_request().prop_map(|wide| Request {
        flags: wide.flags,
        command: wide.command,
        cookie: wide.cookie,
        offset: wide.offset,
        length: wide.length as u32,
    })
}

/// Mostly commands that exist, with flags that they may have: most requests would otherwise be
/// rejected before anything interesting is looked at.
pub(crate) fn extended_request() -> impl Strategy<Value = ExtendedRequest> {
    let command = prop_oneof![9 => 0..9_u16, 1 => any::<u16>()];
    let fua = CommandFlags::FUA.bits();
    let payload = CommandFlags::PAYLOAD_LEN.bits();
    let flags = prop_oneof![
        4 => prop::sample::select(vec![0, fua]),
        4 => prop::sample::select(vec![payload, payload | fua]),
        1 => 0..64_u16,
        1 => any::<u16>(),
    ];
    let length = prop_oneof![position(), 0..65536_u64, Just(0)];
    (flags, command, any::<u64>(), position(), length).prop_map(
        |(flags, command, cookie, offset, length)| ExtendedRequest {
            flags: CommandFlags::from_bits(flags),
            command: CommandType(command),
            cookie,
            offset,
            length,
        },
    )
}

/// Mostly large exports that offer all flags.
pub(crate) fn export() -> impl Strategy<Value = RequestRules> {
    let size = prop_oneof![number(), Just(u64::MAX), Just(1 << 40)];
    let all_flags = !TransmissionFlags::READ_ONLY.bits();
    let flags = prop_oneof![3 => Just(all_flags), 1 => any::<u16>()];
    let block_size = prop_oneof![8 => Just(1), 2 => Just(4096), 1 => any::<u32>()];
    let max_payload = prop_oneof![Just(RequestRules::DEFAULT_MAX_PAYLOAD), any::<u32>()];
    (size, flags, block_size, max_payload).prop_map(|(size, flags, min_block_size, max_payload)| {
        RequestRules {
            size,
            flags: TransmissionFlags::from_bits(flags),
            min_block_size,
            max_payload,
            block_status: true,
        }
    })
}
