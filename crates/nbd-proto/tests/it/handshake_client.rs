//! The client's side of the handshake, against scripted servers: each answer, and each failure by
//! the party at fault.

use nbd_proto::BlockSizes;
use nbd_proto::handshake::{
    ClientHandshake, ClientOptions, ClientProgress, Established, HandshakeError, ListedExport,
    MAX_LISTED_EXPORTS, OptionHead, OptionReplyHead, OptionReplyType as Reply, OptionType as Opt,
    ReplyStyle,
};

use crate::handshake::{FLAGS, allocation, info, string};

/// A client, and what it has said.
struct Peer {
    client: ClientHandshake,
    said: Vec<u8>,
}

impl Peer {
    /// A client that has heard the greeting of a server with these handshake flags.
    fn greeted(options: ClientOptions, flags: u16) -> Self {
        let mut peer = Self { client: ClientHandshake::new(options), said: Vec::new() };
        let greeting = [&b"NBDMAGICIHAVEOPT"[..], &flags.to_be_bytes()].concat();
        assert_eq!(peer.hear(&greeting), Ok(ClientProgress::More));
        let client_flags = u32::from(flags & 3).to_be_bytes();
        assert_eq!(peer.said.drain(..4).collect::<Vec<_>>(), client_flags);
        peer
    }

    fn new(options: ClientOptions) -> Self {
        Self::greeted(options, 3)
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<ClientProgress, HandshakeError> {
        let (used, progress) = self.client.handle(bytes, &mut self.said)?;
        assert_eq!(used, bytes.len(), "not all was used up");
        Ok(progress)
    }

    /// Checks that the client has asked this and nothing more.
    fn asked(&mut self, option: Opt, data: &[u8]) {
        let head = OptionHead { option, length: data.len() as u32 };
        assert_eq!(self.said, [&head.encode()[..], data].concat(), "instead of {option}");
        self.said.clear();
    }

    fn answer(
        &mut self,
        option: Opt,
        reply: Reply,
        data: &[u8],
    ) -> Result<ClientProgress, HandshakeError> {
        let head = OptionReplyHead { option, reply, length: data.len() as u32 };
        self.hear(&[&head.encode()[..], data].concat())
    }

    fn more(&mut self, option: Opt, reply: Reply, data: &[u8]) {
        assert_eq!(self.answer(option, reply, data), Ok(ClientProgress::More));
    }

    /// Refuses all that comes before GO.
    fn at_go(options: ClientOptions) -> Self {
        let name = options.name.clone();
        let mut peer = Self::new(options);
        peer.asked(Opt::EXTENDED_HEADERS, &[]);
        peer.more(Opt::EXTENDED_HEADERS, Reply::ERR_UNSUP, b"");
        peer.asked(Opt::STRUCTURED_REPLY, &[]);
        peer.more(Opt::STRUCTURED_REPLY, Reply::ERR_UNSUP, b"");
        peer.asked(Opt::GO, &info(&name, &[3]));
        peer
    }
}

fn export_info() -> Vec<u8> {
    [&[0, 0][..], &4096_u64.to_be_bytes(), &FLAGS.bits().to_be_bytes()].concat()
}

fn block_sizes(minimum: u32, preferred: u32, maximum: u32) -> Vec<u8> {
    let sizes = [minimum, preferred, maximum].into_iter().flat_map(u32::to_be_bytes);
    [0, 3].into_iter().chain(sizes).collect()
}

fn established(style: ReplyStyle, allocation: Option<u32>) -> Established {
    let block_sizes = BlockSizes::DEFAULT;
    Established { size: 4096, flags: FLAGS, block_sizes, style, allocation }
}

#[test]
fn a_server_that_knows_all_options_grants_them() {
    let mut peer = Peer::new(ClientOptions::new("disk"));
    peer.asked(Opt::EXTENDED_HEADERS, &[]);
    peer.more(Opt::EXTENDED_HEADERS, Reply::ACK, b"");
    peer.asked(Opt::SET_META_CONTEXT, &allocation("disk"));
    peer.more(Opt::SET_META_CONTEXT, Reply::META_CONTEXT, b"\0\0\0\x2abase:allocation");
    peer.more(Opt::SET_META_CONTEXT, Reply::ACK, b"");
    peer.asked(Opt::GO, &info("disk", &[3]));
    peer.more(Opt::GO, Reply::INFO, &export_info());
    // Names, descriptions and what is yet to be invented are not asked for and do no harm.
    peer.more(Opt::GO, Reply::INFO, b"\0\x01disk");
    peer.more(Opt::GO, Reply::INFO, b"\0\x63whatever");
    peer.more(Opt::GO, Reply::INFO, &block_sizes(512, 4096, 1 << 20));
    let block_sizes = BlockSizes { minimum: 512, preferred: 4096, maximum: 1 << 20 };
    let expected = Established { block_sizes, ..established(ReplyStyle::Extended, Some(42)) };
    let progress = peer.answer(Opt::GO, Reply::ACK, b"");
    assert_eq!(progress, Ok(ClientProgress::Established(expected)));
    assert!(peer.said.is_empty());
}

#[test]
fn unknown_options_are_done_without() {
    let mut peer = Peer::new(ClientOptions::new("disk"));
    peer.more(Opt::EXTENDED_HEADERS, Reply::ERR_UNSUP, b"");
    peer.more(Opt::STRUCTURED_REPLY, Reply::ACK, b"");
    peer.more(Opt::SET_META_CONTEXT, Reply::ERR_UNSUP, b"never heard of");
    peer.more(Opt::GO, Reply::INFO, &export_info());
    let progress = peer.answer(Opt::GO, Reply::ACK, b"");
    let expected = established(ReplyStyle::Structured, None);
    assert_eq!(progress, Ok(ClientProgress::Established(expected)));

    let mut peer = Peer::at_go(ClientOptions::new("disk"));
    peer.more(Opt::GO, Reply::ERR_UNSUP, b"");
    peer.asked(Opt::EXPORT_NAME, b"disk");
    let export = export_info()[2..].to_vec();
    let progress = peer.hear(&export);
    let expected = established(ReplyStyle::Simple, None);
    assert_eq!(progress, Ok(ClientProgress::Established(expected)));
}

#[test]
fn a_server_that_does_not_negotiate_is_asked_for_the_export() {
    for (flags, zeroes) in [(0, 124), (2, 0)] {
        let mut peer = Peer::greeted(ClientOptions::new("disk"), flags);
        peer.asked(Opt::EXPORT_NAME, b"disk");
        let mut export = export_info()[2..].to_vec();
        export.extend(vec![0; zeroes]);
        let progress = peer.hear(&export);
        let expected = established(ReplyStyle::Simple, None);
        assert_eq!(progress, Ok(ClientProgress::Established(expected)));
    }
}

#[test]
fn an_option_that_is_not_wanted_is_not_sent() {
    let options = ClientOptions { structured: false, extended: false, ..ClientOptions::new("") };
    Peer::new(options.clone()).asked(Opt::GO, &info("", &[3]));
    let options = ClientOptions { structured: true, allocation: false, ..options };
    let mut peer = Peer::new(options);
    peer.asked(Opt::STRUCTURED_REPLY, &[]);
    peer.more(Opt::STRUCTURED_REPLY, Reply::ACK, b"");
    peer.asked(Opt::GO, &info("", &[3]));
}

#[test]
fn tls_is_negotiated_before_anything_else() {
    let mut peer = Peer::new(ClientOptions { tls: true, ..ClientOptions::new("disk") });
    peer.asked(Opt::STARTTLS, &[]);
    let progress = peer.answer(Opt::STARTTLS, Reply::ACK, b"");
    assert_eq!(progress, Ok(ClientProgress::StartTls));
    // Nothing is said in the clear.
    assert!(peer.said.is_empty());
    peer.client.secured();
    assert_eq!(peer.hear(b""), Ok(ClientProgress::More));
    peer.asked(Opt::EXTENDED_HEADERS, &[]);
}

#[test]
fn bytes_behind_the_promise_of_tls_are_left_to_the_caller() {
    let mut client =
        ClientHandshake::new(ClientOptions { tls: true, ..ClientOptions::new("disk") });
    let head = OptionReplyHead { option: Opt::STARTTLS, reply: Reply::ACK, length: 0 };
    let promise = [&b"NBDMAGICIHAVEOPT\0\x03"[..], &head.encode()].concat();
    let input = [&promise[..], b"injected"].concat();
    let progress = client.handle(&input, &mut Vec::new());
    assert_eq!(progress, Ok((promise.len(), ClientProgress::StartTls)));
}

#[test]
fn refused_tls_ends_the_handshake() {
    let options = ClientOptions { tls: true, ..ClientOptions::new("disk") };
    let mut peer = Peer::new(options.clone());
    let end = peer.answer(Opt::STARTTLS, Reply::ERR_POLICY, b"no certificate");
    let words = "no certificate".into();
    let refused =
        HandshakeError::Refused { option: Opt::STARTTLS, reply: Reply::ERR_POLICY, words };
    assert_eq!(end, Err(refused));
    let mut client = ClientHandshake::new(options);
    let end = client.handle(b"NBDMAGICIHAVEOPT\0\0", &mut Vec::new());
    assert_eq!(end, Err(HandshakeError::NoTls));
}

#[test]
fn server_demands_tls() {
    let mut peer = Peer::new(ClientOptions::new("disk"));
    let end = peer.answer(Opt::EXTENDED_HEADERS, Reply::ERR_TLS_REQD, b"");
    assert!(matches!(end, Err(HandshakeError::Refused { .. })), "{end:?}");
}

#[test]
fn server_lacks_the_export() {
    let end = Peer::at_go(ClientOptions::new("disk")).answer(Opt::GO, Reply::ERR_UNKNOWN, b"");
    assert_eq!(end, Err(HandshakeError::UnknownExport("disk".into())));
}

#[test]
fn server_refuses_the_export() {
    for reply in
        [Reply::ERR_POLICY, Reply::ERR_SHUTDOWN, Reply::ERR_BLOCK_SIZE_REQD, Reply(1 << 31)]
    {
        let end = Peer::at_go(ClientOptions::new("disk")).answer(Opt::GO, reply, b"words");
        let words = "words".into();
        assert_eq!(end, Err(HandshakeError::Refused { option: Opt::GO, reply, words }));
    }
}

#[test]
fn server_acknowledges_extended_headers_and_does_not_know_go() {
    let mut peer = Peer::new(ClientOptions { allocation: false, ..ClientOptions::new("disk") });
    peer.more(Opt::EXTENDED_HEADERS, Reply::ACK, b"");
    let end = peer.answer(Opt::GO, Reply::ERR_UNSUP, b"");
    assert!(matches!(end, Err(HandshakeError::Refused { .. })), "{end:?}");
}

#[test]
fn server_speaks_another_protocol() {
    let hear =
        |bytes: &[u8]| ClientHandshake::new(ClientOptions::new("")).handle(bytes, &mut Vec::new());
    let ssh = u64::from_be_bytes(*b"SSH-2.0-");
    assert_eq!(hear(b"SSH-2.0-OpenSSH"), Err(HandshakeError::NotNbd(ssh)));
    assert_eq!(hear(b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53"), Err(HandshakeError::Oldstyle));
    assert_eq!(hear(b"NBDMAGICNBDMAGIC"), Err(HandshakeError::WrongMagic(0x4e42_444d_4147_4943)));
}

#[test]
fn server_answers_with_wrong_magic() {
    let end = Peer::new(ClientOptions::new("")).hear(&[0x55; 20]);
    assert_eq!(end, Err(HandshakeError::WrongMagic(0x5555_5555_5555_5555)));
}

#[test]
fn server_answers_what_was_not_asked() {
    let mut peer = Peer::new(ClientOptions::new(""));
    let end = peer.answer(Opt::LIST, Reply::ACK, b"");
    assert_eq!(end, Err(HandshakeError::Unexpected { option: Opt::LIST, reply: Reply::ACK }));
    for reply in [Reply::SERVER, Reply::INFO, Reply(5)] {
        let end = Peer::new(ClientOptions::new("")).answer(Opt::EXTENDED_HEADERS, reply, b"");
        let option = Opt::EXTENDED_HEADERS;
        assert_eq!(end, Err(HandshakeError::Unexpected { option, reply }));
    }
}

#[test]
fn server_sends_a_reply_that_is_too_long() {
    let option = Opt::EXTENDED_HEADERS;
    let length = (64 << 10) + 1;
    let head = OptionReplyHead { option, reply: Reply::ERR_UNSUP, length };
    let end = Peer::new(ClientOptions::new("")).hear(&head.encode());
    assert_eq!(end, Err(HandshakeError::TooLong { option, length }));
}

#[test]
fn server_sends_malformed_information() {
    let long = [&export_info()[..], &[0]].concat();
    for data in [
        vec![],
        vec![0],
        export_info()[..11].to_vec(),
        long,
        block_sizes(3, 4096, 1 << 20),
        block_sizes(512, 256, 1 << 20),
        block_sizes(512, 4096, 0),
        block_sizes(0, 0, 0),
        block_sizes(1 << 17, 1 << 17, 1 << 20),
    ] {
        let end = Peer::at_go(ClientOptions::new("")).answer(Opt::GO, Reply::INFO, &data);
        let malformed = HandshakeError::Malformed { option: Opt::GO, reply: Reply::INFO };
        assert_eq!(end, Err(malformed), "{data:?}");
    }
}

#[test]
fn server_begins_without_having_told_the_size() {
    let end = Peer::at_go(ClientOptions::new("")).answer(Opt::GO, Reply::ACK, b"");
    assert_eq!(end, Err(HandshakeError::Malformed { option: Opt::GO, reply: Reply::ACK }));
}

#[test]
fn server_names_a_context_in_malformed_data() {
    let at_context = || {
        let mut peer = Peer::new(ClientOptions::new(""));
        peer.more(Opt::EXTENDED_HEADERS, Reply::ACK, b"");
        peer
    };
    let (option, reply) = (Opt::SET_META_CONTEXT, Reply::META_CONTEXT);
    let end = at_context().answer(option, reply, b"\0\0");
    assert_eq!(end, Err(HandshakeError::Malformed { option, reply }));
    // One that was not asked for is not taken for ours.
    let mut peer = at_context();
    peer.more(option, reply, &[&7_u32.to_be_bytes()[..], &string("x:y")[4..]].concat());
    peer.more(option, Reply::ACK, b"");
    peer.more(Opt::GO, Reply::INFO, &export_info());
    let progress = peer.answer(Opt::GO, Reply::ACK, b"");
    let expected = established(ReplyStyle::Extended, None);
    assert_eq!(progress, Ok(ClientProgress::Established(expected)));
}

fn listing() -> ClientOptions {
    ClientOptions { list: true, ..ClientOptions::new("") }
}

/// The data of `NBD_REP_SERVER`.
fn listed(name: &str, description: &str) -> Vec<u8> {
    [&string(name)[..], description.as_bytes()].concat()
}

#[test]
fn exports_are_listed_with_what_the_server_tells_of_each() {
    let mut peer = Peer::new(listing());
    peer.asked(Opt::LIST, b"");
    peer.more(Opt::LIST, Reply::SERVER, &listed("", "the default one"));
    peer.more(Opt::LIST, Reply::SERVER, &listed("secret", ""));
    peer.more(Opt::LIST, Reply::ACK, b"");
    peer.asked(Opt::INFO, &info("", &[]));
    peer.more(Opt::INFO, Reply::INFO, &export_info());
    peer.more(Opt::INFO, Reply::ACK, b"");
    peer.asked(Opt::INFO, &info("secret", &[]));
    let progress = peer.answer(Opt::INFO, Reply::ERR_POLICY, b"not for you");
    let export = |name: &str, description: &str, shape| ListedExport {
        name: name.into(),
        description: description.into(),
        shape,
    };
    let expected =
        vec![export("", "the default one", Some((4096, FLAGS))), export("secret", "", None)];
    assert_eq!(progress, Ok(ClientProgress::Listed(expected)));
    peer.asked(Opt::ABORT, b"");
}

#[test]
fn a_server_without_exports_has_an_empty_list() {
    let mut peer = Peer::new(listing());
    peer.asked(Opt::LIST, b"");
    assert_eq!(peer.answer(Opt::LIST, Reply::ACK, b""), Ok(ClientProgress::Listed(Vec::new())));
}

#[test]
fn a_list_that_cannot_be_is_refused() {
    let mut peer = Peer::new(listing());
    let refused = peer.answer(Opt::LIST, Reply::ERR_POLICY, b"no");
    assert!(
        matches!(refused, Err(HandshakeError::Refused { option: Opt::LIST, .. })),
        "{refused:?}"
    );
    for data in [&b"\0\0"[..], b"\0\0\0\x05disk", b"\0\0\0\x01\xff", &listed("", &"x".repeat(4097))]
    {
        let malformed = Peer::new(listing()).answer(Opt::LIST, Reply::SERVER, data);
        assert!(matches!(malformed, Err(HandshakeError::Malformed { .. })), "{malformed:?}");
    }
    let mut peer = Peer::new(listing());
    for _ in 0..MAX_LISTED_EXPORTS {
        peer.more(Opt::LIST, Reply::SERVER, &listed("one", "too many"));
    }
    let endless = peer.answer(Opt::LIST, Reply::SERVER, &listed("one", "too many"));
    assert_eq!(endless, Err(HandshakeError::TooManyExports));
    // A server that is not fixed newstyle answers no option.
    let greeting = [&b"NBDMAGICIHAVEOPT"[..], &2_u16.to_be_bytes()].concat();
    let old = ClientHandshake::new(listing()).handle(&greeting, &mut Vec::new());
    assert_eq!(old, Err(HandshakeError::NoOptions));
}
