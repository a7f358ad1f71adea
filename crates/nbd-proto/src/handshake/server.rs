//! The server's side of the handshake.

use alloc::string::String;
use alloc::vec::Vec;

use super::ReplyStyle;
use super::codes::{
    BASE_ALLOCATION, FLAG_C_FIXED_NEWSTYLE, FLAG_C_NO_ZEROES, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES,
    OptionReplyType, OptionType,
};
use super::error::HandshakeError;
use super::message::{INIT_MAGIC, OPTION_MAGIC, OptionHead, Reader, ZEROES_LEN, put_reply};
use super::offer::{Agreement, ExportList, Offer};
use super::option_replies::{
    acknowledge, list, parse_info, parse_queries, put_infos, refuse, refuse_export,
};
use crate::TransmissionFlags;

/// The longest option that is read, in bytes: an export's name and queries of metadata contexts.
const MAX_OPTION_BYTES: u32 = 64 << 10;
/// The longest option that is skipped and refused, in bytes. A longer one ends the connection.
const MAX_SKIPPED_BYTES: u32 = 16 << 20;
/// The number of `base:allocation`, the only context that this server knows.
const ALLOCATION_CONTEXT_ID: u32 = 1;

/// Whether clients may or must secure their connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsPolicy {
    /// They cannot (`NOTLS` in the specification).
    #[default]
    Off,
    /// They may.
    Optional,
    /// They must before anything else (`FORCEDTLS`).
    Required,
}

/// What the caller does after [`ServerHandshake::handle`], once its output has been sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerProgress {
    /// Receive more.
    More,
    /// Secure the connection, call [`ServerHandshake::secured`] and go on. Bytes that the client has sent
    /// behind its request are an attempt to inject plain text: drop the connection.
    StartTls,
    /// Close the connection: the client has seen enough.
    Aborted,
    /// Begin transmission.
    Transmission(Agreement),
}

/// One client's handshake.
///
/// Inputs are [`handle`](Self::handle) and [`secured`](Self::secured); there are no timers: a
/// client that is too slow is the caller's to drop.
#[derive(Debug)]
pub struct ServerHandshake {
    policy: TlsPolicy,
    is_secured: bool,
    /// The client flags have come.
    is_begun: bool,
    no_zeroes: bool,
    style: ReplyStyle,
    /// The export for which `base:allocation` was selected.
    allocation_of: Option<String>,
    /// What is left of an option that is too long to be read.
    skipping: Option<(OptionType, usize)>,
}

/// What one step did with the bytes at the front of the input.
enum StepOutcome {
    /// There are not enough of them.
    Incomplete,
    /// So many were consumed.
    Consumed(usize),
    /// So many were consumed, and the caller has to act.
    Stop(usize, ServerProgress),
}

type OptionOutcome = Result<Option<ServerProgress>, HandshakeError>;

impl ServerHandshake {
    /// A handshake that has not begun.
    pub const fn new(policy: TlsPolicy) -> Self {
        Self {
            policy,
            is_secured: false,
            is_begun: false,
            no_zeroes: false,
            style: ReplyStyle::Simple,
            allocation_of: None,
            skipping: None,
        }
    }

    /// Appends the server's greeting.
    pub fn greet(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&INIT_MAGIC.to_be_bytes());
        out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        out.extend_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    }

    /// Tells the machine that the connection is secured now. Everything negotiated before is void: an
    /// attacker may have injected it.
    pub fn secured(&mut self) {
        self.is_secured = true;
        self.style = ReplyStyle::Simple;
        self.allocation_of = None;
    }

    /// Takes what the client has sent and appends the replies, up to the end of the input or to the
    /// first action for the caller. Returns how many bytes were consumed.
    ///
    /// # Errors
    ///
    /// If the client breaks the protocol, or asks for an export in a way that has no error reply.
    /// What was appended may still be sent; then close the connection.
    pub fn handle(
        &mut self,
        input: &[u8],
        exports: &impl ExportList,
        out: &mut Vec<u8>,
    ) -> Result<(usize, ServerProgress), HandshakeError> {
        let mut used = 0;
        loop {
            match self.step(&input[used..], exports, out)? {
                StepOutcome::Incomplete => return Ok((used, ServerProgress::More)),
                StepOutcome::Consumed(count) => used += count,
                StepOutcome::Stop(count, progress) => return Ok((used + count, progress)),
            }
        }
    }

    fn step(
        &mut self,
        input: &[u8],
        exports: &impl ExportList,
        out: &mut Vec<u8>,
    ) -> Result<StepOutcome, HandshakeError> {
        if !self.is_begun {
            return self.begin(input);
        }
        if let Some((option, rest)) = self.skipping {
            return Ok(self.skip(option, rest, input.len(), out));
        }
        let Some((head, rest)) = input.split_first_chunk::<{ OptionHead::LEN }>() else {
            return Ok(StepOutcome::Incomplete);
        };
        let Some(OptionHead { option, length }) = OptionHead::decode(head) else {
            let (magic, _) = input.split_first_chunk().unwrap_or((&[0; 8], &[]));
            return Err(HandshakeError::WrongMagic(u64::from_be_bytes(*magic)));
        };
        if length > MAX_OPTION_BYTES {
            if length > MAX_SKIPPED_BYTES || option == OptionType::EXPORT_NAME {
                return Err(HandshakeError::TooLong { option, length });
            }
            self.skipping = Some((option, length as usize));
            return Ok(StepOutcome::Consumed(OptionHead::LEN));
        }
        let Some(data) = rest.get(..length as usize) else {
            return Ok(StepOutcome::Incomplete);
        };
        let count = OptionHead::LEN + data.len();
        Ok(match self.answer(option, data, exports, out)? {
            None => StepOutcome::Consumed(count),
            Some(progress) => StepOutcome::Stop(count, progress),
        })
    }

    fn begin(&mut self, input: &[u8]) -> Result<StepOutcome, HandshakeError> {
        let Some((flags, _)) = input.split_first_chunk() else {
            return Ok(StepOutcome::Incomplete);
        };
        let flags = u32::from_be_bytes(*flags);
        if flags & !(FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES) != 0 {
            return Err(HandshakeError::UnknownClientFlags(flags));
        }
        self.no_zeroes = flags & FLAG_C_NO_ZEROES != 0;
        self.is_begun = true;
        Ok(StepOutcome::Consumed(flags.to_be_bytes().len()))
    }

    fn skip(
        &mut self,
        option: OptionType,
        rest: usize,
        have: usize,
        out: &mut Vec<u8>,
    ) -> StepOutcome {
        if have < rest {
            self.skipping = Some((option, rest - have));
            return if have == 0 { StepOutcome::Incomplete } else { StepOutcome::Consumed(have) };
        }
        self.skipping = None;
        refuse(out, option, OptionReplyType::ERR_TOO_BIG, "the option is too long");
        StepOutcome::Consumed(rest)
    }

    fn answer(
        &mut self,
        option: OptionType,
        data: &[u8],
        exports: &impl ExportList,
        out: &mut Vec<u8>,
    ) -> OptionOutcome {
        if self.policy == TlsPolicy::Required && !self.is_secured {
            match option {
                OptionType::STARTTLS | OptionType::ABORT => {}
                OptionType::EXPORT_NAME => {
                    return Err(HandshakeError::Dropped(OptionReplyType::ERR_TLS_REQD));
                }
                _ => {
                    refuse(
                        out,
                        option,
                        OptionReplyType::ERR_TLS_REQD,
                        "secure the connection first",
                    );
                    return Ok(None);
                }
            }
        }
        match option {
            OptionType::EXPORT_NAME => return self.export_name(data, exports, out),
            OptionType::ABORT => {
                acknowledge(out, option);
                return Ok(Some(ServerProgress::Aborted));
            }
            OptionType::INFO | OptionType::GO => return Ok(self.info(option, data, exports, out)),
            OptionType::LIST_META_CONTEXT | OptionType::SET_META_CONTEXT => {
                self.meta_context(option, data, exports, out);
            }
            OptionType::LIST
            | OptionType::STARTTLS
            | OptionType::STRUCTURED_REPLY
            | OptionType::EXTENDED_HEADERS => {
                if !data.is_empty() {
                    refuse(out, option, OptionReplyType::ERR_INVALID, "the option has no data");
                    return Ok(None);
                }
                return Ok(self.answer_bare(option, exports, out));
            }
            _ => refuse(out, option, OptionReplyType::ERR_UNSUP, "unknown option"),
        }
        Ok(None)
    }

    /// Options without data.
    fn answer_bare(
        &mut self,
        option: OptionType,
        exports: &impl ExportList,
        out: &mut Vec<u8>,
    ) -> Option<ServerProgress> {
        match option {
            OptionType::LIST => list(exports, out),
            OptionType::STARTTLS if self.policy == TlsPolicy::Off => {
                refuse(out, option, OptionReplyType::ERR_POLICY, "no certificate is set up");
            }
            OptionType::STARTTLS if self.is_secured => {
                refuse(out, option, OptionReplyType::ERR_INVALID, "the connection is secure");
            }
            OptionType::STARTTLS => {
                acknowledge(out, option);
                return Some(ServerProgress::StartTls);
            }
            OptionType::EXTENDED_HEADERS => {
                self.style = ReplyStyle::Extended;
                acknowledge(out, option);
            }
            _ if self.style == ReplyStyle::Extended => {
                let words = "extended headers were negotiated";
                refuse(out, option, OptionReplyType::ERR_EXT_HEADER_REQD, words);
            }
            _ => {
                self.style = ReplyStyle::Structured;
                acknowledge(out, option);
            }
        }
        None
    }

    /// `NBD_OPT_EXPORT_NAME`: has no error reply, so the answer is the export or a closed connection.
    fn export_name(
        &mut self,
        data: &[u8],
        exports: &impl ExportList,
        out: &mut Vec<u8>,
    ) -> OptionOutcome {
        let invalid = HandshakeError::Dropped(OptionReplyType::ERR_INVALID);
        let name = Reader(data).rest().ok_or(invalid.clone())?;
        if self.style == ReplyStyle::Extended {
            return Err(invalid);
        }
        let find = exports.find(name);
        let offer = find.map_err(|refusal| HandshakeError::Dropped(refusal.reply().0))?;
        let agreement = self.agree(name, offer);
        out.extend_from_slice(&agreement.offer.size.to_be_bytes());
        out.extend_from_slice(&agreement.offer.flags.bits().to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; ZEROES_LEN]);
        }
        Ok(Some(ServerProgress::Transmission(agreement)))
    }

    /// `NBD_OPT_INFO` and `NBD_OPT_GO`.
    fn info(
        &self,
        option: OptionType,
        data: &[u8],
        exports: &impl ExportList,
        out: &mut Vec<u8>,
    ) -> Option<ServerProgress> {
        let Some((name, wanted)) = parse_info(data) else {
            refuse(out, option, OptionReplyType::ERR_INVALID, "the option is malformed");
            return None;
        };
        let offer = match exports.find(name) {
            Ok(offer) => offer,
            Err(refusal) => {
                refuse_export(out, option, refusal);
                return None;
            }
        };
        let agreement = self.agree(name, offer);
        put_infos(out, option, &agreement.offer, &wanted);
        acknowledge(out, option);
        (option == OptionType::GO).then_some(ServerProgress::Transmission(agreement))
    }

    fn agree(&self, name: &str, mut offer: Offer) -> Agreement {
        let has_context = offer.allocation && self.allocation_of.as_deref() == Some(name);
        if self.style != ReplyStyle::Simple {
            offer.flags |= TransmissionFlags::SEND_DF;
        }
        if self.style == ReplyStyle::Extended && has_context {
            offer.flags |= TransmissionFlags::BLOCK_STATUS_PAYLOAD;
        }
        let allocation = has_context.then_some(ALLOCATION_CONTEXT_ID);
        Agreement { offer, style: self.style, allocation }
    }

    /// `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
    fn meta_context(
        &mut self,
        option: OptionType,
        data: &[u8],
        exports: &impl ExportList,
        out: &mut Vec<u8>,
    ) {
        let is_set = option == OptionType::SET_META_CONTEXT;
        if is_set {
            self.allocation_of = None;
        }
        if self.style == ReplyStyle::Simple {
            let words = "structured replies were not negotiated";
            return refuse(out, option, OptionReplyType::ERR_INVALID, words);
        }
        let Some((name, queries)) = parse_queries(data) else {
            return refuse(out, option, OptionReplyType::ERR_INVALID, "the option is malformed");
        };
        let offer = match exports.find(name) {
            Ok(offer) => offer,
            Err(refusal) => return refuse_export(out, option, refusal),
        };
        let wants = |query: &&str| **query == *BASE_ALLOCATION || (!is_set && **query == *"base:");
        let is_wanted = queries.iter().any(wants) || (!is_set && queries.is_empty());
        if offer.allocation && is_wanted {
            let number = if is_set { ALLOCATION_CONTEXT_ID } else { 0 };
            let mut context = Vec::from(number.to_be_bytes());
            context.extend_from_slice(BASE_ALLOCATION.as_bytes());
            put_reply(out, option, OptionReplyType::META_CONTEXT, &context);
            if is_set {
                self.allocation_of = Some(name.into());
            }
        }
        acknowledge(out, option);
    }
}
