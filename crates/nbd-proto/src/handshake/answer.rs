//! What a server answers to options, and what it reads in them.

use alloc::vec::Vec;

use super::message::{
    BlockSizes, Reader, encode_block_sizes, encode_export, put_reply, put_string,
};
use super::number::{InfoType, MAX_STRING, OptionReplyType, OptionType};
use super::offer::{Catalog, Offer, Refusal};

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
pub(super) fn list(catalog: &impl Catalog, out: &mut Vec<u8>) {
    let option = OptionType::LIST;
    match catalog.list() {
        Ok(exports) => {
            for (name, description) in exports {
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
    // A client that has not asked is told all the same where it had better know.
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
    (name.len() <= MAX_STRING && wanted.len() == usize::from(count) && reader.is_empty())
        .then_some((name, wanted))
}

pub(super) fn parse_queries(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut reader = Reader(data);
    let name = reader.string()?;
    let count = reader.u32()?;
    // An option is short, and so are lies about the number of its queries.
    let queries: Vec<_> = (0..count).map_while(|_| reader.string()).collect();
    let is_sound = |query: &&str| query.len() <= MAX_STRING && query.contains(':');
    let all = queries.len() == count as usize && reader.is_empty();
    (name.len() <= MAX_STRING && all && queries.iter().all(is_sound)).then_some((name, queries))
}
