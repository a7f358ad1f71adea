//! Both sides of the handshake with each other, cut at every byte; and with anything at all.

use nbd_proto::handshake::{
    Agreement, ClientHandshake, ClientOptions, ClientProgress, Established, HandshakeError,
    OptionReplyType, OptionType, ReplyStyle, ServerHandshake, ServerProgress, TlsPolicy,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::handshake::{Exports, SIZES, allocation, answers, info, option, queries};

/// A conversation of which each side hears at most so many bytes at a time.
fn converse(
    policy: TlsPolicy,
    options: ClientOptions,
    at_a_time: usize,
) -> Result<(Agreement, Established), HandshakeError> {
    let (mut server, mut client) = (ServerHandshake::new(policy), ClientHandshake::new(options));
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    let (mut heard_by_client, mut heard_by_server) = (Vec::new(), Vec::new());
    let (mut agreement, mut is_secure) = (None, false);
    server.greet(&mut to_client);
    loop {
        let count = at_a_time.min(to_client.len());
        heard_by_client.extend(to_client.drain(..count));
        let (used, progress) = client.handle(&heard_by_client, &mut to_server)?;
        heard_by_client.drain(..used);
        match progress {
            ClientProgress::Established(established) => {
                assert!(to_client.is_empty() && heard_by_client.is_empty());
                return Ok((agreement.expect("the server knows as well"), established));
            }
            ClientProgress::StartTls => {
                assert!(is_secure, "the server was asked");
                assert!(to_client.is_empty() && heard_by_client.is_empty());
                client.secured();
            }
            ClientProgress::More => {}
            ClientProgress::Listed(_) => panic!("no list was asked for"),
        }
        let count = at_a_time.min(to_server.len());
        heard_by_server.extend(to_server.drain(..count));
        let (used, progress) = server.handle(&heard_by_server, &Exports, &mut to_client)?;
        heard_by_server.drain(..used);
        match progress {
            ServerProgress::More => {}
            ServerProgress::StartTls => {
                assert!(to_server.is_empty() && heard_by_server.is_empty());
                is_secure = true;
                server.secured();
            }
            ServerProgress::Transmission(agreed) => agreement = Some(agreed),
            ServerProgress::Aborted => panic!("no side has aborted"),
        }
    }
}

#[test]
fn both_sides_agree_however_the_bytes_arrive() {
    for at_a_time in [1, 2, 3, 7, 16, 17, usize::MAX] {
        for bits in 0..16 {
            let options = ClientOptions {
                name: "disk".into(),
                tls: bits & 1 != 0,
                structured: bits & 2 != 0,
                extended: bits & 4 != 0,
                allocation: bits & 8 != 0,
                list: false,
            };
            let expected = match (options.extended, options.structured) {
                (true, _) => ReplyStyle::Extended,
                (false, true) => ReplyStyle::Structured,
                (false, false) => ReplyStyle::Simple,
            };
            let has_context = options.allocation && expected != ReplyStyle::Simple;
            let result = converse(TlsPolicy::Optional, options.clone(), at_a_time);
            let (agreement, established) = result.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((agreement.style, established.style), (expected, expected), "{options:?}");
            assert_eq!(agreement.allocation.is_some(), has_context, "{options:?}");
            assert_eq!(established.allocation, agreement.allocation);
            assert_eq!(established.flags, agreement.offer.flags);
            assert_eq!((established.size, established.block_sizes), (1 << 30, SIZES));
        }
    }
}

#[test]
fn every_tls_policy_meets_every_client() {
    for (policy, tls, is_served) in [
        (TlsPolicy::Off, false, true),
        (TlsPolicy::Off, true, false),
        (TlsPolicy::Optional, false, true),
        (TlsPolicy::Optional, true, true),
        (TlsPolicy::Required, false, false),
        (TlsPolicy::Required, true, true),
    ] {
        let result =
            converse(policy, ClientOptions { tls, ..ClientOptions::new("disk") }, usize::MAX);
        assert_eq!(result.is_ok(), is_served, "{policy:?} and {tls}: {result:?}");
    }
}

/// A client's script: every option, once.
fn script() -> Vec<u8> {
    [
        3_u32.to_be_bytes().to_vec(),
        option(OptionType::LIST, &[]),
        option(OptionType(77), b"unknown"),
        option(OptionType::STRUCTURED_REPLY, &[]),
        option(OptionType::LIST_META_CONTEXT, &queries("disk", &["base:"])),
        option(OptionType::SET_META_CONTEXT, &allocation("disk")),
        option(OptionType::INFO, &vec![0; 70 << 10]),
        option(OptionType::INFO, &info("disk", &[0, 1, 2, 3])),
        option(OptionType::GO, &info("disk", &[3])),
    ]
    .concat()
}

#[test]
fn a_server_answers_the_same_wherever_the_bytes_are_cut() {
    let hear = |pieces: &[&[u8]]| {
        let mut server = ServerHandshake::new(TlsPolicy::Off);
        let (mut input, mut out) = (Vec::new(), Vec::new());
        let mut last = ServerProgress::More;
        for piece in pieces {
            input.extend_from_slice(piece);
            let (used, progress) = server.handle(&input, &Exports, &mut out).unwrap();
            input.drain(..used);
            last = progress;
        }
        assert!(input.is_empty());
        (out, last)
    };
    let script = script();
    let whole = hear(&[&script]);
    assert!(matches!(whole.1, ServerProgress::Transmission(_)));
    assert!(answers(&whole.0).1.is_empty());
    // Within the long option, which is skipped, one cut is like the next.
    let long = script.len() - (70 << 10) - 200..script.len() - 200;
    for at in (0..script.len()).filter(|at| !long.contains(at) || at % 997 == 0) {
        assert_eq!(hear(&[&script[..at], &script[at..]]), whole, "cut at {at}");
    }
}

#[test]
fn bytes_behind_the_handshake_are_not_consumed() {
    let script = [script(), b"a request".to_vec()].concat();
    let mut server = ServerHandshake::new(TlsPolicy::Off);
    let (used, progress) = server.handle(&script, &Exports, &mut Vec::new()).unwrap();
    assert!(matches!(progress, ServerProgress::Transmission(_)));
    assert_eq!(&script[used..], b"a request");
}

/// Messages that look right and have anything in them.
fn options() -> impl Strategy<Value = Vec<u8>> {
    let data = prop_oneof![
        vec(any::<u8>(), 0..40),
        Just(info("disk", &[3])),
        Just(allocation("disk")),
        Just(queries("disk", &[])),
    ];
    let damaged = (data, any::<prop::sample::Index>(), any::<Option<u8>>()).prop_map(
        |(mut data, index, byte)| {
            if let (Some(byte), false) = (byte, data.is_empty()) {
                let at = index.index(data.len());
                data[at] = byte;
            }
            data
        },
    );
    let one = (0..14_u32, damaged).prop_map(|(number, data)| option(OptionType(number), &data));
    vec(one, 0..12).prop_map(|options| options.concat())
}

fn replies() -> impl Strategy<Value = Vec<u8>> {
    let reply = prop_oneof![1..5_u32, (1..12_u32).prop_map(|number| number | 1 << 31)];
    let one = (1..12_u32, reply, vec(any::<u8>(), 0..20)).prop_map(|(asked, reply, data)| {
        let (option, reply) = (OptionType(asked), OptionReplyType(reply));
        let length = data.len() as u32;
        let head = nbd_proto::handshake::OptionReplyHead { option, reply, length };
        [&head.encode()[..], &data].concat()
    });
    vec(one, 0..12).prop_map(|replies| replies.concat())
}

fn policy() -> impl Strategy<Value = TlsPolicy> {
    prop::sample::select(vec![TlsPolicy::Off, TlsPolicy::Optional, TlsPolicy::Required])
}

proptest! {
    /// A server survives any client, uses up no more than it was given, and answers in whole
    /// messages.
    #[test]
    fn hostile_clients_do_no_harm(
        policy in policy(),
        flags in prop_oneof![9 => 0..4_u32, 1 => any::<u32>()],
        said in options(),
        noise in vec(any::<u8>(), 0..40),
    ) {
        let mut input = [&flags.to_be_bytes()[..], &said, &noise].concat();
        let mut server = ServerHandshake::new(policy);
        let mut out = Vec::new();
        while let Ok((used, progress)) = server.handle(&input, &Exports, &mut out) {
            prop_assert!(used <= input.len());
            input.drain(..used);
            match progress {
                ServerProgress::StartTls => server.secured(),
                ServerProgress::More | ServerProgress::Aborted | ServerProgress::Transmission(_) => break,
            }
        }
        // Behind an answer to export name there is none.
        let (_, rest) = answers(&out);
        prop_assert!(rest.is_empty() || rest.len() == 10 || rest.len() == 134);
    }

    /// A client survives any server, and uses up no more than it was given.
    #[test]
    fn hostile_servers_do_no_harm(
        options in any::<[bool; 5]>(),
        flags in 0..4_u16,
        said in replies(),
        noise in vec(any::<u8>(), 0..40),
    ) {
        let [tls, structured, extended, allocation, list] = options;
        let name = "disk".into();
        let options = ClientOptions { name, tls, structured, extended, allocation, list };
        let mut input = [&b"NBDMAGICIHAVEOPT"[..], &flags.to_be_bytes(), &said, &noise].concat();
        let mut client = ClientHandshake::new(options);
        let mut out = Vec::new();
        while let Ok((used, progress)) = client.handle(&input, &mut out) {
            prop_assert!(used <= input.len());
            input.drain(..used);
            match progress {
                ClientProgress::StartTls => client.secured(),
                ClientProgress::More
                | ClientProgress::Established(_)
                | ClientProgress::Listed(_) => break,
            }
        }
    }

    /// Noise from the first byte on.
    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..200)) {
        let _ = ServerHandshake::new(TlsPolicy::Off).handle(&bytes, &Exports, &mut Vec::new());
        let _ = ClientHandshake::new(ClientOptions::new("")).handle(&bytes, &mut Vec::new());
    }
}
