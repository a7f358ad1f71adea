//! What a server answers to options, and what it reads in them.

use alloc::vec::Vec;

use super::codes::{InfoType, MAX_STRING_BYTES, OptionReplyType, OptionType};
use super::message::{
    BlockSizes, Reader, encode_block_sizes, encode_export, put_reply, put_string,
};
use super::offer::{ExportList, Offer, Refusal};

pub(super) fn acknowledge(out: &mut Vec<u8>, option: OptionType) {
    put_reply(out, option, OptionReplyType::ACK, &[]);
}

pub(super) fn refuse(out: &mut Vec<u8>, option: OptionType, reply: OptionReplyType, words: &str) {
    put_reply(out, option, reply, words.as_bytes());
}

pub(super) fn refuse_export(out: &mut Vec<u8>, option: OptionType, refusal: Refusal) {
    let (reply, words) = refusal.reply();
    refuse(out, option, reply, words);
}

/// `NBD_OPT_LIST`.
pub(super) fn list(exports: &impl ExportList, out: &mut Vec<u8>) {
    let option = OptionType::LIST;
    match exports.list() {
        Ok(found) => {
            for (name, description) in found {
                let mut data = Vec::new();
                put_string(&mut data, &name);
                data.extend_from_slice(description.unwrap_or_default().as_bytes());
                put_reply(out, option, OptionReplyType::SERVER, &data);
            }
            acknowledge(out, option);
        }
        Err(refusal) => refuse_export(out, option, refusal),
    }
}

/// The information about an export that was asked for, or that has to be known.
pub(super) fn put_infos(out: &mut Vec<u8>, option: OptionType, offer: &Offer, wanted: &[InfoType]) {
    let mut put = |data: &[u8]| put_reply(out, option, OptionReplyType::INFO, data);
    put(&encode_export(offer.size, offer.flags));
    let text = |info: InfoType, text: &str| [&info.0.to_be_bytes(), text.as_bytes()].concat();
    if wanted.contains(&InfoType::NAME) {
        put(&text(InfoType::NAME, &offer.name));
    }
    if let (true, Some(words)) = (wanted.contains(&InfoType::DESCRIPTION), &offer.description) {
        put(&text(InfoType::DESCRIPTION, words));
    }
    // Also sent unasked if the minimum is not 1: a client that ignores it gets errors.
    if wanted.contains(&InfoType::BLOCK_SIZE)
        || offer.block_sizes.minimum > BlockSizes::DEFAULT.minimum
    {
        put(&encode_block_sizes(&offer.block_sizes));
    }
}

pub(super) fn parse_info(data: &[u8]) -> Option<(&str, Vec<InfoType>)> {
    let mut reader = Reader(data);
    let name = reader.string()?;
    let count = reader.u16()?;
    let wanted: Vec<_> = (0..count).map_while(|_| reader.u16().map(InfoType)).collect();
    (name.len() <= MAX_STRING_BYTES && wanted.len() == usize::from(count) && reader.is_empty())
        .then_some((name, wanted))
}

pub(super) fn parse_queries(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut reader = Reader(data);
    let name = reader.string()?;
    let count = reader.u32()?;
    // The count is hostile input: the loop ends with the data, not with the count.
    let queries: Vec<_> = (0..count).map_while(|_| reader.string()).collect();
    let is_sound = |query: &&str| query.len() <= MAX_STRING_BYTES && query.contains(':');
    let all = queries.len() == count as usize && reader.is_empty();
    (name.len() <= MAX_STRING_BYTES && all && queries.iter().all(is_sound))
        .then_some((name, queries))
}
