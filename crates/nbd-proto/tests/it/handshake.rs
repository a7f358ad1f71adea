//! What the tests of the handshake share: exports, and messages by hand.

use nbd_proto::handshake::{
    BASE_ALLOCATION, ExportList, GREETING_LEN, HandshakeError, Offer, OptionHead, OptionReplyHead,
    OptionReplyType, OptionType, Refusal, ServerHandshake, ServerProgress, TlsPolicy,
};
use nbd_proto::{BlockSizes, TransmissionFlags};

pub(crate) const FLAGS: TransmissionFlags =
    TransmissionFlags::HAS_FLAGS.union(TransmissionFlags::SEND_FLUSH);
pub(crate) const SIZES: BlockSizes = BlockSizes { minimum: 512, preferred: 4096, maximum: 1 << 20 };

/// The default export and `disk`; `plain` that knows no extents; and two that are refused.
pub(crate) struct Exports;

impl ExportList for Exports {
    fn find(&self, name: &str) -> Result<Offer, Refusal> {
        let offer = Offer::new(name, 1 << 30, FLAGS);
        match name {
            "" | "disk" => Ok(Offer {
                description: Some("a disk".into()),
                block_sizes: SIZES,
                allocation: true,
                ..offer
            }),
            "plain" => Ok(offer),
            "secret" => Err(Refusal::Policy),
            "closing" => Err(Refusal::Shutdown),
            _ => Err(Refusal::Unknown),
        }
    }

    fn list(&self) -> Result<Vec<(String, Option<String>)>, Refusal> {
        Ok(vec![("disk".into(), Some("a disk".into())), ("plain".into(), None)])
    }
}

pub(crate) fn option(option: OptionType, data: &[u8]) -> Vec<u8> {
    let length = data.len() as u32;
    [&OptionHead { option, length }.encode()[..], data].concat()
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

/// The data of INFO and GO.
pub(crate) fn info(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((infos.len() as u16).to_be_bytes());
    data.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    data
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(crate) fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((queries.len() as u32).to_be_bytes());
    data.extend(queries.iter().flat_map(|query| string(query)));
    data
}

pub(crate) fn allocation(name: &str) -> Vec<u8> {
    queries(name, &[BASE_ALLOCATION])
}

/// An answer to an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) option: OptionType,
    pub(crate) reply: OptionReplyType,
    pub(crate) data: Vec<u8>,
}

/// Takes answers apart; what is left must be no answer.
pub(crate) fn answers(mut bytes: &[u8]) -> (Vec<Answer>, &[u8]) {
    let mut answers = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk() {
        let Some(OptionReplyHead { option, reply, length }) = OptionReplyHead::decode(head) else {
            break;
        };
        let (data, rest) = rest.split_at(length as usize);
        answers.push(Answer { option, reply, data: data.into() });
        bytes = rest;
    }
    (answers, bytes)
}

/// A server that a client has greeted with these flags.
pub(crate) struct Peer {
    pub(crate) server: ServerHandshake,
    pub(crate) out: Vec<u8>,
}

impl Peer {
    pub(crate) fn greeted(policy: TlsPolicy, flags: u32) -> Self {
        let server = ServerHandshake::new(policy);
        let mut out = Vec::new();
        server.greet(&mut out);
        assert_eq!(out.len(), GREETING_LEN);
        out.clear();
        let mut peer = Self { server, out };
        assert_eq!(peer.send(&flags.to_be_bytes()), Ok(ServerProgress::More));
        peer
    }

    pub(crate) fn new(policy: TlsPolicy) -> Self {
        Self::greeted(policy, 3)
    }

    /// Sends bytes, all of which must be used up.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<ServerProgress, HandshakeError> {
        let (used, progress) = self.server.handle(bytes, &Exports, &mut self.out)?;
        assert_eq!(used, bytes.len(), "not all was used up");
        Ok(progress)
    }

    /// Asks, and goes on haggling.
    pub(crate) fn ask(&mut self, asked: OptionType, data: &[u8]) -> Vec<Answer> {
        assert_eq!(self.send(&option(asked, data)), Ok(ServerProgress::More), "{asked}");
        self.answers(asked)
    }

    pub(crate) fn answers(&mut self, asked: OptionType) -> Vec<Answer> {
        let out = std::mem::take(&mut self.out);
        let (answers, rest) = answers(&out);
        assert!(rest.is_empty(), "{rest:?}");
        assert!(answers.iter().all(|answer| answer.option == asked), "{answers:?}");
        answers
    }

    /// Asks for something that is answered with one word.
    pub(crate) fn verdict(&mut self, asked: OptionType, data: &[u8]) -> OptionReplyType {
        match &self.ask(asked, data)[..] {
            [answer] => answer.reply,
            answers => panic!("{asked}: {answers:?}"),
        }
    }
}
