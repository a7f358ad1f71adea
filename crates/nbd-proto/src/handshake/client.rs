//! The client's side of the handshake.

use alloc::string::String;
use alloc::vec::Vec;

use super::ReplyStyle;
use super::codes::{
    BASE_ALLOCATION, FLAG_C_FIXED_NEWSTYLE, FLAG_C_NO_ZEROES, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES,
    InfoType, OptionReplyType, OptionType,
};
use super::error::HandshakeError;
use super::listing::{ListedExport, Listing};
use super::message::{
    BlockSizes, GREETING_LEN, INIT_MAGIC, OLDSTYLE_MAGIC, OPTION_MAGIC, OptionReplyHead, Reader,
    ZEROES_LEN, put_option, put_string,
};
use crate::TransmissionFlags;

/// The longest reply that is read, in bytes. No option that this client sends needs as much.
const MAX_REPLY_BYTES: u32 = 64 << 10;

/// What a client asks for. The export and TLS are required; the client does without the others where
/// the server does not know them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
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
    /// List the exports of the server, and begin no transmission; the fields above but `tls` do not matter.
    pub list: bool,
}

impl ClientOptions {
    /// All options except TLS.
    pub fn new(name: &str) -> Self {
        let name = name.into();
        Self { name, tls: false, structured: true, extended: true, allocation: true, list: false }
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

/// What the caller does after [`ClientHandshake::handle`], once its output has been sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientProgress {
    /// Receive more.
    More,
    /// Secure the connection, call [`ClientHandshake::secured`] and [`ClientHandshake::handle`]. Bytes that the
    /// server has sent behind its promise are an attempt to inject plain text: drop it.
    StartTls,
    /// Begin transmission; bytes that were not used up belong to it.
    Established(Established),
    /// The exports of the server, if they were to be listed. The client has said goodbye: close the connection.
    Listed(Vec<ListedExport>),
}

/// What the client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientState {
    Greeting,
    /// The connection is being secured.
    Tls,
    /// The answer to this option.
    Option(OptionType),
    /// The answer to export name, with so many bytes.
    Export(usize),
    Done,
    /// All exports are listed.
    Listed,
}

/// A handshake with one server.
#[derive(Debug)]
pub struct ClientHandshake {
    options: ClientOptions,
    state: ClientState,
    no_zeroes: bool,
    style: ReplyStyle,
    allocation: Option<u32>,
    export: Option<(u64, TransmissionFlags)>,
    block_sizes: Option<BlockSizes>,
    listing: Listing,
}

impl ClientHandshake {
    /// A handshake that has not begun.
    pub const fn new(options: ClientOptions) -> Self {
        Self {
            options,
            state: ClientState::Greeting,
            no_zeroes: false,
            style: ReplyStyle::Simple,
            allocation: None,
            export: None,
            block_sizes: None,
            listing: Listing::new(),
        }
    }

    /// Tells the machine that the connection is secured now.
    pub fn secured(&mut self) {
        self.options.tls = false;
    }

    /// Takes what the server has sent and appends what to send to it, up to the end of the input or to
    /// the first action for the caller. Returns how many bytes were consumed.
    ///
    /// # Errors
    ///
    /// If the server breaks the protocol, or refuses the export or TLS. Close the connection.
    pub fn handle(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(usize, ClientProgress), HandshakeError> {
        let mut used = 0;
        loop {
            let (count, progress) = match self.state {
                ClientState::Greeting => self.greeting(&input[used..], out)?,
                ClientState::Tls => {
                    if self.options.tls {
                        return Ok((used, ClientProgress::StartTls));
                    }
                    self.ask_next(OptionType::STARTTLS, out);
                    continue;
                }
                ClientState::Option(option) => self.reply(option, &input[used..], out)?,
                ClientState::Export(length) => self.bare_export(length, &input[used..]),
                ClientState::Done => (0, None),
                ClientState::Listed => {
                    return Ok((used, ClientProgress::Listed(self.listing.take())));
                }
            };
            used += count;
            match progress {
                Some(established) => return Ok((used, ClientProgress::Established(established))),
                None if count == 0 => return Ok((used, ClientProgress::More)),
                None => {}
            }
        }
    }

    fn greeting(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Parsed, HandshakeError> {
        let mut reader = Reader(input);
        // Checked word by word: a server of another protocol may never send a whole greeting.
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
        let client_flags = [(is_fixed, FLAG_C_FIXED_NEWSTYLE), (self.no_zeroes, FLAG_C_NO_ZEROES)];
        let client_flags =
            client_flags.iter().fold(0, |all, (set, flag)| if *set { all | flag } else { all });
        out.extend_from_slice(&client_flags.to_be_bytes());
        match (is_fixed, self.options.tls) {
            (true, true) => self.ask(OptionType::STARTTLS, out),
            (true, false) => self.ask_next(OptionType::STARTTLS, out),
            (false, true) => return Err(HandshakeError::NoTls),
            (false, false) if self.options.list => return Err(HandshakeError::NoOptions),
            (false, false) => self.ask(OptionType::EXPORT_NAME, out),
        }
        Ok((GREETING_LEN, None))
    }

    /// Sends the option that follows another one in the order of negotiation.
    fn ask_next(&mut self, option: OptionType, out: &mut Vec<u8>) {
        let ClientOptions { structured, extended, allocation, list, .. } = self.options;
        if list {
            return self.ask(OptionType::LIST, out);
        }
        let has_chunks = self.style != ReplyStyle::Simple;
        let sequence = [
            (OptionType::STARTTLS, false),
            (OptionType::EXTENDED_HEADERS, extended),
            (OptionType::STRUCTURED_REPLY, structured && !has_chunks),
            (OptionType::SET_META_CONTEXT, allocation && has_chunks),
            (OptionType::GO, true),
        ];
        let later = sequence.into_iter().skip_while(|(asked, _)| *asked != option).skip(1);
        // After the last of them comes the option that every server knows.
        let next = later.filter(|(_, is_wanted)| *is_wanted).map(|(next, _)| next).next();
        self.ask(next.unwrap_or(OptionType::EXPORT_NAME), out);
    }

    /// Asks about the next export of the listing, or ends it.
    fn ask_next_listed(&mut self, out: &mut Vec<u8>) {
        let shape = self.export.take();
        if self.listing.advance(shape) {
            return self.ask(OptionType::INFO, out);
        }
        // Its answer need not be waited for.
        put_option(out, OptionType::ABORT, &[]);
        self.state = ClientState::Listed;
    }

    fn ask(&mut self, option: OptionType, out: &mut Vec<u8>) {
        self.state = ClientState::Option(option);
        let mut data = Vec::new();
        match option {
            OptionType::SET_META_CONTEXT => {
                put_string(&mut data, &self.options.name);
                data.extend_from_slice(&1_u32.to_be_bytes());
                put_string(&mut data, BASE_ALLOCATION);
            }
            OptionType::GO => {
                put_string(&mut data, &self.options.name);
                data.extend_from_slice(&1_u16.to_be_bytes());
                data.extend_from_slice(&InfoType::BLOCK_SIZE.0.to_be_bytes());
            }
            OptionType::INFO => {
                put_string(&mut data, self.listing.current_name());
                data.extend_from_slice(&0_u16.to_be_bytes());
            }
            OptionType::EXPORT_NAME => {
                data.extend_from_slice(self.options.name.as_bytes());
                self.state = ClientState::Export(10 + if self.no_zeroes { 0 } else { ZEROES_LEN });
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
    ) -> Result<Parsed, HandshakeError> {
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
        if length > MAX_REPLY_BYTES {
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
            (OptionType::GO | OptionType::INFO, OptionReplyType::INFO) => {
                self.info(data).ok_or(malformed)?;
            }
            (OptionType::LIST, OptionReplyType::SERVER) => self.listing.add(data)?,
            (OptionType::LIST | OptionType::INFO, OptionReplyType::ACK) => {
                self.ask_next_listed(out);
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
            (OptionType::STARTTLS, OptionReplyType::ACK) => self.state = ClientState::Tls,
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

    /// Continues without an option that is not required.
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
                return Err(HandshakeError::UnknownExport(self.options.name.clone()));
            }
            // A server that requires TLS refuses every option with this error.
            (OptionType::STARTTLS | OptionType::GO | OptionType::LIST, _)
            | (_, OptionReplyType::ERR_TLS_REQD) => {
                let words = String::from_utf8_lossy(data).into_owned();
                return Err(HandshakeError::Refused { option, reply, words });
            }
            (OptionType::SET_META_CONTEXT, _) => self.allocation = None,
            // It is listed without its size.
            (OptionType::INFO, _) => {
                self.export = None;
                self.ask_next_listed(out);
                return Ok(());
            }
            _ => {}
        }
        self.ask_next(option, out);
        Ok(())
    }

    /// `NBD_REP_INFO`; unknown information is ignored.
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

    fn bare_export(&mut self, length: usize, input: &[u8]) -> Parsed {
        let mut reader = Reader(input);
        match (reader.u64(), reader.u16()) {
            (Some(size), Some(flags)) if input.len() >= length => {
                (length, Some(self.establish(size, TransmissionFlags::from_bits(flags))))
            }
            _ => (0, None),
        }
    }

    fn establish(&mut self, size: u64, flags: TransmissionFlags) -> Established {
        self.state = ClientState::Done;
        Established {
            size,
            flags,
            block_sizes: self.block_sizes.unwrap_or(BlockSizes::DEFAULT),
            style: self.style,
            allocation: self.allocation,
        }
    }
}

/// Bytes consumed, and what was agreed on.
type Parsed = (usize, Option<Established>);
