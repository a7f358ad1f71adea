//! The client's side of the handshake.

use alloc::string::String;
use alloc::vec::Vec;

use super::ReplyStyle;
use super::error::HandshakeError;
use super::message::{
    BlockSizes, GREETING_LEN, INIT_MAGIC, OLDSTYLE_MAGIC, OPTION_MAGIC, OptionReplyHead, Reader,
    ZEROES_LEN, put_option, put_string,
};
use super::number::{
    BASE_ALLOCATION, FLAG_C_FIXED_NEWSTYLE, FLAG_C_NO_ZEROES, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES,
    InfoType, OptionReplyType, OptionType,
};
use crate::TransmissionFlags;

/// The longest answer that is read. Nothing that we ask for needs as much.
const MOST_REPLY: u32 = 64 << 10;

/// What a client would like. Only the export and TLS are conditions; the rest is done without
/// where the server does not know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// Name of the export; empty for the default one.
    pub name: String,
    /// The connection must be secured before anything else.
    pub tls: bool,
    /// Structured replies.
    pub structured: bool,
    /// Extended headers.
    pub extended: bool,
    /// The metadata context `base:allocation`.
    pub allocation: bool,
}

impl Wishes {
    /// All that there is, without TLS.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), tls: false, structured: true, extended: true, allocation: true }
    }
}

/// What a server has agreed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Established {
    /// Length of the export in bytes.
    pub size: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
    /// Its size constraints, or those that hold where nothing is said.
    pub block_sizes: BlockSizes,
    /// How requests and replies look.
    pub style: ReplyStyle,
    /// The number of `base:allocation`, if that was negotiated.
    pub allocation: Option<u32>,
}

/// What is to be done after [`Client::handle`], once its output has been sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientProgress {
    /// Receive more.
    More,
    /// Secure the connection, call [`Client::secured`] and [`Client::handle`]. Bytes that the
    /// server has sent behind its promise are an attempt to inject plain text: drop it.
    StartTls,
    /// Begin transmission; bytes that were not used up belong to it.
    Established(Established),
}

/// What the client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Greeting,
    /// The connection is being secured.
    Tls,
    /// The answer to this option.
    Option(OptionType),
    /// The answer to export name, with so many bytes.
    Export(usize),
    Done,
}

/// A handshake with one server.
#[derive(Debug)]
pub struct Client {
    wishes: Wishes,
    stage: Stage,
    no_zeroes: bool,
    style: ReplyStyle,
    allocation: Option<u32>,
    export: Option<(u64, TransmissionFlags)>,
    block_sizes: Option<BlockSizes>,
}

impl Client {
    /// A handshake that has not begun.
    pub const fn new(wishes: Wishes) -> Self {
        Self {
            wishes,
            stage: Stage::Greeting,
            no_zeroes: false,
            style: ReplyStyle::Simple,
            allocation: None,
            export: None,
            block_sizes: None,
        }
    }

    /// The connection has been secured.
    pub fn secured(&mut self) {
        self.wishes.tls = false;
    }

    /// Takes what the server has sent and appends what it is to be told, up to the end of the
    /// input or to the first thing that is to be done. Returns how many bytes were used up.
    pub fn handle(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(usize, ClientProgress), HandshakeError> {
        let mut used = 0;
        loop {
            let (count, progress) = match self.stage {
                Stage::Greeting => self.greeting(&input[used..], out)?,
                Stage::Tls => {
                    if self.wishes.tls {
                        return Ok((used, ClientProgress::StartTls));
                    }
                    self.ask_next(OptionType::STARTTLS, out);
                    continue;
                }
                Stage::Option(option) => self.reply(option, &input[used..], out)?,
                Stage::Export(length) => self.bare_export(length, &input[used..]),
                Stage::Done => (0, None),
            };
            used += count;
            match progress {
                Some(established) => return Ok((used, ClientProgress::Established(established))),
                None if count == 0 => return Ok((used, ClientProgress::More)),
                None => {}
            }
        }
    }

    fn greeting(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Taken, HandshakeError> {
        let mut reader = Reader(input);
        // A server of another kind may never send as much as ours do.
        match reader.u64() {
            Some(INIT_MAGIC) => {}
            None => return Ok((0, None)),
            Some(magic) => return Err(HandshakeError::NotNbd(magic)),
        }
        match reader.u64() {
            Some(OPTION_MAGIC) => {}
            None => return Ok((0, None)),
            Some(OLDSTYLE_MAGIC) => return Err(HandshakeError::Oldstyle),
            Some(magic) => return Err(HandshakeError::WrongMagic(magic)),
        }
        let Some(flags) = reader.u16() else {
            return Ok((0, None));
        };
        let is_fixed = flags & FLAG_FIXED_NEWSTYLE != 0;
        self.no_zeroes = flags & FLAG_NO_ZEROES != 0;
        let mine = [(is_fixed, FLAG_C_FIXED_NEWSTYLE), (self.no_zeroes, FLAG_C_NO_ZEROES)];
        let mine = mine.iter().fold(0, |all, (set, flag)| if *set { all | flag } else { all });
        out.extend_from_slice(&mine.to_be_bytes());
        match (is_fixed, self.wishes.tls) {
            (true, true) => self.ask(OptionType::STARTTLS, out),
            (true, false) => self.ask_next(OptionType::STARTTLS, out),
            (false, true) => return Err(HandshakeError::NoTls),
            (false, false) => self.ask(OptionType::EXPORT_NAME, out),
        }
        Ok((GREETING_LEN, None))
    }

    /// Asks for what comes after an option.
    fn ask_next(&mut self, option: OptionType, out: &mut Vec<u8>) {
        let Wishes { structured, extended, allocation, .. } = self.wishes;
        let has_chunks = self.style != ReplyStyle::Simple;
        let wishes = [
            (OptionType::STARTTLS, false),
            (OptionType::EXTENDED_HEADERS, extended),
            (OptionType::STRUCTURED_REPLY, structured && !has_chunks),
            (OptionType::SET_META_CONTEXT, allocation && has_chunks),
            (OptionType::GO, true),
        ];
        let later = wishes.into_iter().skip_while(|(asked, _)| *asked != option).skip(1);
        // Behind the last of them comes what old servers know.
        let next = later.filter(|(_, is_wanted)| *is_wanted).map(|(next, _)| next).next();
        self.ask(next.unwrap_or(OptionType::EXPORT_NAME), out);
    }

    fn ask(&mut self, option: OptionType, out: &mut Vec<u8>) {
        self.stage = Stage::Option(option);
        let mut data = Vec::new();
        match option {
            OptionType::SET_META_CONTEXT => {
                put_string(&mut data, &self.wishes.name);
                data.extend_from_slice(&1_u32.to_be_bytes());
                put_string(&mut data, BASE_ALLOCATION);
            }
            OptionType::GO => {
                put_string(&mut data, &self.wishes.name);
                data.extend_from_slice(&1_u16.to_be_bytes());
                data.extend_from_slice(&InfoType::BLOCK_SIZE.0.to_be_bytes());
            }
            OptionType::EXPORT_NAME => {
                data.extend_from_slice(self.wishes.name.as_bytes());
                self.stage = Stage::Export(10 + if self.no_zeroes { 0 } else { ZEROES_LEN });
            }
            _ => {}
        }
        put_option(out, option, &data);
    }

    fn reply(
        &mut self,
        option: OptionType,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Taken, HandshakeError> {
        let Some((bytes, rest)) = input.split_first_chunk() else {
            return Ok((0, None));
        };
        let Some(head) = OptionReplyHead::decode(bytes) else {
            let (magic, _) = input.split_first_chunk().unwrap_or((&[0; 8], &[]));
            return Err(HandshakeError::WrongMagic(u64::from_be_bytes(*magic)));
        };
        let OptionReplyHead { option: answered, reply, length } = head;
        if answered != option {
            return Err(HandshakeError::Unexpected { option: answered, reply });
        }
        if length > MOST_REPLY {
            return Err(HandshakeError::TooLong { option, length });
        }
        let Some(data) = rest.get(..length as usize) else {
            return Ok((0, None));
        };
        let count = OptionReplyHead::LEN + data.len();
        if reply.is_error() {
            self.refused(option, reply, data, out)?;
            return Ok((count, None));
        }
        Ok((count, self.granted(option, reply, data, out)?))
    }

    fn granted(
        &mut self,
        option: OptionType,
        reply: OptionReplyType,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Established>, HandshakeError> {
        let malformed = HandshakeError::Malformed { option, reply };
        match (option, reply) {
            (OptionType::GO, OptionReplyType::INFO) => {
                self.info(data).ok_or(malformed)?;
            }
            (OptionType::GO, OptionReplyType::ACK) => {
                let (size, flags) = self.export.ok_or(malformed)?;
                return Ok(Some(self.establish(size, flags)));
            }
            (OptionType::SET_META_CONTEXT, OptionReplyType::META_CONTEXT) => {
                let mut reader = Reader(data);
                let number = reader.u32().ok_or(malformed)?;
                if reader.rest() == Some(BASE_ALLOCATION) {
                    self.allocation = Some(number);
                }
            }
            (OptionType::STARTTLS, OptionReplyType::ACK) => self.stage = Stage::Tls,
            (_, OptionReplyType::ACK) => {
                match option {
                    OptionType::EXTENDED_HEADERS => self.style = ReplyStyle::Extended,
                    OptionType::STRUCTURED_REPLY => self.style = ReplyStyle::Structured,
                    _ => {}
                }
                self.ask_next(option, out);
            }
            _ => return Err(HandshakeError::Unexpected { option, reply }),
        }
        Ok(None)
    }

    /// What is no condition is done without.
    fn refused(
        &mut self,
        option: OptionType,
        reply: OptionReplyType,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), HandshakeError> {
        match (option, reply) {
            (OptionType::GO, OptionReplyType::ERR_UNSUP) if self.style != ReplyStyle::Extended => {}
            (OptionType::GO, OptionReplyType::ERR_UNKNOWN) => {
                return Err(HandshakeError::UnknownExport(self.wishes.name.clone()));
            }
            // Whoever demands TLS demands it of every option.
            (OptionType::STARTTLS | OptionType::GO, _) | (_, OptionReplyType::ERR_TLS_REQD) => {
                let words = String::from_utf8_lossy(data).into_owned();
                return Err(HandshakeError::Refused { option, reply, words });
            }
            (OptionType::SET_META_CONTEXT, _) => self.allocation = None,
            _ => {}
        }
        self.ask_next(option, out);
        Ok(())
    }

    /// `NBD_REP_INFO`; what is not known is ignored.
    fn info(&mut self, data: &[u8]) -> Option<()> {
        let mut reader = Reader(data);
        match InfoType(reader.u16()?) {
            InfoType::EXPORT => {
                let (size, flags) = (reader.u64()?, reader.u16()?);
                self.export = Some((size, TransmissionFlags::from_bits(flags)));
            }
            InfoType::BLOCK_SIZE => {
                let (minimum, preferred) = (reader.u32()?, reader.u32()?);
                let sizes = BlockSizes { minimum, preferred, maximum: reader.u32()? };
                self.block_sizes = Some(sizes.is_sound().then_some(sizes)?);
            }
            _ => return Some(()),
        }
        reader.is_empty().then_some(())
    }

    fn bare_export(&mut self, length: usize, input: &[u8]) -> Taken {
        let mut reader = Reader(input);
        match (reader.u64(), reader.u16()) {
            (Some(size), Some(flags)) if input.len() >= length => {
                (length, Some(self.establish(size, TransmissionFlags::from_bits(flags))))
            }
            _ => (0, None),
        }
    }

    fn establish(&mut self, size: u64, flags: TransmissionFlags) -> Established {
        self.stage = Stage::Done;
        Established {
            size,
            flags,
            block_sizes: self.block_sizes.unwrap_or(BlockSizes::DEFAULT),
            style: self.style,
            allocation: self.allocation,
        }
    }
}

/// Bytes used up, and what was agreed on.
type Taken = (usize, Option<Established>);
