//! The server's side of the handshake: each option, and each refusal by the party at fault.

use nbd_proto::TransmissionFlags;
use nbd_proto::handshake::{
    Agreement, HandshakeError, OptionReplyType as Reply, OptionType as Opt, ReplyStyle,
    ServerHandshake, ServerProgress, TlsPolicy,
};

use crate::handshake::{
    Answer, Exports, FLAGS, Peer, SIZES, allocation, info, option, queries, string,
};

fn off() -> Peer {
    Peer::new(TlsPolicy::Off)
}

/// Ends the handshake with GO.
fn go(peer: &mut Peer, name: &str) -> Agreement {
    match peer.send(&option(Opt::GO, &info(name, &[]))) {
        Ok(ServerProgress::Transmission(agreement)) => agreement,
        other => panic!("{other:?}"),
    }
}

fn replies(answers: &[Answer]) -> Vec<Reply> {
    answers.iter().map(|answer| answer.reply).collect()
}

#[test]
fn the_greeting_is_fixed_newstyle() {
    let mut out = Vec::new();
    ServerHandshake::new(TlsPolicy::Off).greet(&mut out);
    assert_eq!(out, *b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn export_name_is_answered_with_the_export_alone() {
    for (client_flags, zeroes) in [(1, 124), (3, 0)] {
        let mut peer = Peer::greeted(TlsPolicy::Off, client_flags);
        let progress = peer.send(&option(Opt::EXPORT_NAME, b"disk"));
        let Ok(ServerProgress::Transmission(agreement)) = progress else {
            panic!("{progress:?}");
        };
        assert_eq!((agreement.style, agreement.allocation), (ReplyStyle::Simple, None));
        let mut expected = (1_u64 << 30).to_be_bytes().to_vec();
        expected.extend(FLAGS.bits().to_be_bytes());
        expected.extend(vec![0; zeroes]);
        assert_eq!(peer.out, expected);
    }
}

#[test]
fn export_name_keeps_what_was_negotiated() {
    let mut peer = off();
    assert_eq!(peer.verdict(Opt::STRUCTURED_REPLY, &[]), Reply::ACK);
    let progress = peer.send(&option(Opt::EXPORT_NAME, b""));
    let Ok(ServerProgress::Transmission(agreement)) = progress else {
        panic!("{progress:?}");
    };
    assert_eq!(agreement.style, ReplyStyle::Structured);
    assert!(agreement.offer.flags.contains(TransmissionFlags::SEND_DF));
}

#[test]
fn a_refused_export_name_ends_the_connection() {
    for (name, reply) in [
        (&b"none"[..], Reply::ERR_UNKNOWN),
        (b"secret", Reply::ERR_POLICY),
        (b"closing", Reply::ERR_SHUTDOWN),
        (b"\xff", Reply::ERR_INVALID),
    ] {
        let mut peer = off();
        let end = peer.send(&option(Opt::EXPORT_NAME, name));
        assert_eq!(end, Err(HandshakeError::Dropped(reply)));
        assert!(peer.out.is_empty());
    }
    let mut peer = off();
    assert_eq!(peer.verdict(Opt::EXTENDED_HEADERS, &[]), Reply::ACK);
    let end = peer.send(&option(Opt::EXPORT_NAME, b"disk"));
    assert_eq!(end, Err(HandshakeError::Dropped(Reply::ERR_INVALID)));
}

#[test]
fn abort_is_acknowledged_whatever_comes_with_it() {
    for data in [&b""[..], b"so long"] {
        let mut peer = off();
        assert_eq!(peer.send(&option(Opt::ABORT, data)), Ok(ServerProgress::Aborted));
        assert_eq!(replies(&peer.answers(Opt::ABORT)), [Reply::ACK]);
    }
}

#[test]
fn list_names_the_exports() {
    let answers = off().ask(Opt::LIST, &[]);
    assert_eq!(replies(&answers), [Reply::SERVER, Reply::SERVER, Reply::ACK]);
    assert_eq!(answers[0].data, [string("disk"), b"a disk".to_vec()].concat());
    assert_eq!(answers[1].data, string("plain"));
}

#[test]
fn info_tells_what_is_asked_and_haggling_goes_on() {
    let mut peer = off();
    // EXPORT, NAME, DESCRIPTION, BLOCK_SIZE, and an unknown one.
    let answers = peer.ask(Opt::INFO, &info("disk", &[0, 1, 2, 3, 99]));
    let expected: Vec<Vec<u8>> = vec![
        [&[0, 0][..], &(1_u64 << 30).to_be_bytes(), &FLAGS.bits().to_be_bytes()].concat(),
        [&[0, 1][..], b"disk"].concat(),
        [&[0, 2][..], b"a disk"].concat(),
        [
            &[0, 3][..],
            &SIZES.minimum.to_be_bytes(),
            &SIZES.preferred.to_be_bytes(),
            &SIZES.maximum.to_be_bytes(),
        ]
        .concat(),
    ];
    let (last, infos) = answers.split_last().unwrap();
    assert_eq!(last.reply, Reply::ACK);
    assert!(infos.iter().all(|answer| answer.reply == Reply::INFO));
    let data: Vec<_> = infos.iter().map(|answer| answer.data.clone()).collect();
    assert_eq!(data, expected);
    assert_eq!(go(&mut peer, "disk").offer.size, 1 << 30);
}

#[test]
fn a_minimum_block_size_is_sent_unasked() {
    let infos = |name| replies(&off().ask(Opt::INFO, &info(name, &[])));
    assert_eq!(infos("disk"), [Reply::INFO, Reply::INFO, Reply::ACK]);
    assert_eq!(infos("plain"), [Reply::INFO, Reply::ACK]);
    // There are no words about it.
    let answers = off().ask(Opt::INFO, &info("plain", &[2]));
    assert_eq!(replies(&answers), [Reply::INFO, Reply::ACK]);
}

#[test]
fn the_last_style_option_decides() {
    assert_eq!(go(&mut off(), "disk").style, ReplyStyle::Simple);
    let mut peer = off();
    assert_eq!(peer.verdict(Opt::STRUCTURED_REPLY, &[]), Reply::ACK);
    assert_eq!(peer.verdict(Opt::STRUCTURED_REPLY, &[]), Reply::ACK);
    let agreement = go(&mut peer, "disk");
    assert_eq!(agreement.style, ReplyStyle::Structured);
    assert!(agreement.offer.flags.contains(TransmissionFlags::SEND_DF));
    let mut peer = off();
    assert_eq!(peer.verdict(Opt::STRUCTURED_REPLY, &[]), Reply::ACK);
    assert_eq!(peer.verdict(Opt::EXTENDED_HEADERS, &[]), Reply::ACK);
    // There is no way back.
    assert_eq!(peer.verdict(Opt::STRUCTURED_REPLY, &[]), Reply::ERR_EXT_HEADER_REQD);
    assert_eq!(go(&mut peer, "disk").style, ReplyStyle::Extended);
}

#[test]
fn contexts_are_listed_by_name_and_by_namespace() {
    for (asked, count) in [
        (&[][..], 1),
        (&["base:"], 1),
        (&["base:allocation"], 1),
        (&["base:other", "base:allocation"], 1),
        (&["base:other"], 0),
        (&["qemu:"], 0),
    ] {
        let mut peer = off();
        assert_eq!(peer.verdict(Opt::STRUCTURED_REPLY, &[]), Reply::ACK);
        let answers = peer.ask(Opt::LIST_META_CONTEXT, &queries("disk", asked));
        let context = Answer {
            option: Opt::LIST_META_CONTEXT,
            reply: Reply::META_CONTEXT,
            data: b"\0\0\0\0base:allocation".into(),
        };
        assert_eq!(answers[..answers.len() - 1], vec![context; count], "{asked:?}");
        assert_eq!(answers.last().unwrap().reply, Reply::ACK);
        // Looking is not choosing.
        assert_eq!(go(&mut peer, "disk").allocation, None);
    }
}

#[test]
fn contexts_are_set_by_full_name_for_one_export() {
    for (set, name, is_granted) in [
        (&["base:allocation"][..], "disk", true),
        (&["base:other", "base:allocation"], "disk", true),
        (&["base:"], "disk", false),
        (&[], "disk", false),
        (&["base:allocation"], "", false),
    ] {
        let mut peer = off();
        assert_eq!(peer.verdict(Opt::EXTENDED_HEADERS, &[]), Reply::ACK);
        let answers = peer.ask(Opt::SET_META_CONTEXT, &queries("disk", set));
        assert_eq!(answers.last().unwrap().reply, Reply::ACK);
        let agreement = go(&mut peer, name);
        let number = agreement.allocation;
        assert_eq!(number.is_some(), is_granted, "{set:?} for {name:?}");
        let payload = TransmissionFlags::BLOCK_STATUS_PAYLOAD;
        assert_eq!(agreement.offer.flags.contains(payload), is_granted);
        if let Some(number) = number {
            assert_eq!(answers[0].data[..4], number.to_be_bytes());
            assert_eq!(answers[0].data[4..], *b"base:allocation");
        }
    }
}

#[test]
fn setting_contexts_again_replaces_them() {
    let mut peer = off();
    assert_eq!(peer.verdict(Opt::STRUCTURED_REPLY, &[]), Reply::ACK);
    assert_eq!(peer.ask(Opt::SET_META_CONTEXT, &allocation("disk")).len(), 2);
    assert_eq!(peer.ask(Opt::SET_META_CONTEXT, &queries("disk", &["x:y"])).len(), 1);
    assert_eq!(go(&mut peer, "disk").allocation, None);
    let mut peer = off();
    assert_eq!(peer.verdict(Opt::STRUCTURED_REPLY, &[]), Reply::ACK);
    assert_eq!(peer.ask(Opt::SET_META_CONTEXT, &allocation("disk")).len(), 2);
    // A failed attempt leaves none.
    assert_eq!(peer.verdict(Opt::SET_META_CONTEXT, &allocation("none")), Reply::ERR_UNKNOWN);
    assert_eq!(go(&mut peer, "disk").allocation, None);
}

#[test]
fn an_export_without_extents_has_no_context() {
    let mut peer = off();
    assert_eq!(peer.verdict(Opt::STRUCTURED_REPLY, &[]), Reply::ACK);
    assert_eq!(replies(&peer.ask(Opt::SET_META_CONTEXT, &allocation("plain"))), [Reply::ACK]);
    assert_eq!(replies(&peer.ask(Opt::LIST_META_CONTEXT, &queries("plain", &[]))), [Reply::ACK]);
    assert_eq!(go(&mut peer, "plain").allocation, None);
}

#[test]
fn tls_voids_what_was_negotiated_before() {
    let mut peer = Peer::new(TlsPolicy::Optional);
    assert_eq!(peer.verdict(Opt::EXTENDED_HEADERS, &[]), Reply::ACK);
    peer.ask(Opt::SET_META_CONTEXT, &allocation("disk"));
    assert_eq!(peer.send(&option(Opt::STARTTLS, &[])), Ok(ServerProgress::StartTls));
    assert_eq!(replies(&peer.answers(Opt::STARTTLS)), [Reply::ACK]);
    peer.server.secured();
    assert_eq!(peer.verdict(Opt::STARTTLS, &[]), Reply::ERR_INVALID);
    let agreement = go(&mut peer, "disk");
    assert_eq!((agreement.style, agreement.allocation), (ReplyStyle::Simple, None));
}

#[test]
fn what_comes_behind_starttls_is_left_to_the_caller() {
    let mut server = ServerHandshake::new(TlsPolicy::Optional);
    let mut out = Vec::new();
    let start = [&3_u32.to_be_bytes()[..], &option(Opt::STARTTLS, &[])].concat();
    let input = [&start[..], &option(Opt::LIST, &[])].concat();
    let progress = server.handle(&input, &Exports, &mut out);
    assert_eq!(progress, Ok((start.len(), ServerProgress::StartTls)));
}

#[test]
fn without_tls_nothing_is_served_where_it_is_required() {
    let mut peer = Peer::new(TlsPolicy::Required);
    for (asked, data) in [
        (Opt::LIST, vec![]),
        (Opt::INFO, info("disk", &[])),
        (Opt::GO, info("disk", &[])),
        (Opt::STRUCTURED_REPLY, vec![]),
        (Opt::EXTENDED_HEADERS, vec![]),
        (Opt::LIST_META_CONTEXT, queries("disk", &[])),
        (Opt::SET_META_CONTEXT, allocation("disk")),
        (Opt(77), vec![]),
    ] {
        assert_eq!(peer.verdict(asked, &data), Reply::ERR_TLS_REQD, "{asked}");
    }
    assert_eq!(peer.send(&option(Opt::STARTTLS, &[])), Ok(ServerProgress::StartTls));
    peer.answers(Opt::STARTTLS);
    peer.server.secured();
    assert_eq!(go(&mut peer, "disk").offer.size, 1 << 30);
    let mut peer = Peer::new(TlsPolicy::Required);
    let end = peer.send(&option(Opt::EXPORT_NAME, b"disk"));
    assert_eq!(end, Err(HandshakeError::Dropped(Reply::ERR_TLS_REQD)));
    let mut peer = Peer::new(TlsPolicy::Required);
    assert_eq!(peer.send(&option(Opt::ABORT, &[])), Ok(ServerProgress::Aborted));
}

#[test]
fn client_asks_for_tls_that_is_off() {
    assert_eq!(off().verdict(Opt::STARTTLS, &[]), Reply::ERR_POLICY);
}

#[test]
fn client_with_unknown_flags() {
    let mut server = ServerHandshake::new(TlsPolicy::Off);
    let end = server.handle(&4_u32.to_be_bytes(), &Exports, &mut Vec::new());
    assert_eq!(end, Err(HandshakeError::UnknownClientFlags(4)));
}

#[test]
fn client_with_wrong_magic() {
    let mut peer = off();
    let end = peer.send(b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(end, Err(HandshakeError::WrongMagic(0x4745_5420_2f20_4854)));
}

#[test]
fn client_sends_an_unknown_option() {
    let mut peer = off();
    assert_eq!(peer.verdict(Opt::PEEK_EXPORT, &[]), Reply::ERR_UNSUP);
    assert_eq!(peer.verdict(Opt(12345), b"with data"), Reply::ERR_UNSUP);
    assert_eq!(go(&mut peer, "disk").offer.size, 1 << 30);
}

#[test]
fn client_names_an_export_that_it_does_not_get() {
    for (name, reply) in [
        ("none", Reply::ERR_UNKNOWN),
        ("secret", Reply::ERR_POLICY),
        ("closing", Reply::ERR_SHUTDOWN),
    ] {
        let mut peer = off();
        assert_eq!(peer.verdict(Opt::STRUCTURED_REPLY, &[]), Reply::ACK);
        assert_eq!(peer.verdict(Opt::INFO, &info(name, &[])), reply);
        assert_eq!(peer.verdict(Opt::GO, &info(name, &[])), reply);
        assert_eq!(peer.verdict(Opt::LIST_META_CONTEXT, &queries(name, &[])), reply);
        assert_eq!(peer.verdict(Opt::SET_META_CONTEXT, &allocation(name)), reply);
        // It may try again.
        assert_eq!(go(&mut peer, "disk").style, ReplyStyle::Structured);
    }
}

#[test]
fn client_sends_data_with_an_option_that_has_none() {
    let mut peer = Peer::new(TlsPolicy::Optional);
    for asked in [Opt::LIST, Opt::STARTTLS, Opt::STRUCTURED_REPLY, Opt::EXTENDED_HEADERS] {
        assert_eq!(peer.verdict(asked, b"x"), Reply::ERR_INVALID, "{asked}");
    }
    assert_eq!(go(&mut peer, "disk").style, ReplyStyle::Simple);
}

#[test]
fn client_sends_malformed_info() {
    let good = info("disk", &[3]);
    let long = "a".repeat(4097);
    for data in [
        vec![],
        vec![0; 5],
        good[..good.len() - 1].to_vec(),
        [&good[..], &[0]].concat(),
        [&u32::MAX.to_be_bytes()[..], &good[4..]].concat(),
        [&4_u32.to_be_bytes()[..], b"\xff\xff\xff\xff\0\0"].concat(),
        info(&long, &[]),
    ] {
        let mut peer = off();
        assert_eq!(peer.verdict(Opt::INFO, &data), Reply::ERR_INVALID, "{data:?}");
        assert_eq!(peer.verdict(Opt::GO, &data), Reply::ERR_INVALID, "{data:?}");
    }
}

#[test]
fn client_sends_malformed_queries() {
    let good = allocation("disk");
    let long = format!("base:{}", "a".repeat(4097));
    for data in [
        vec![],
        good[..good.len() - 1].to_vec(),
        [&good[..], &[0]].concat(),
        [&string("disk")[..], &u32::MAX.to_be_bytes()].concat(),
        queries("disk", &["allocation"]),
        queries("disk", &[&long]),
        queries(&long, &[]),
    ] {
        let mut peer = off();
        assert_eq!(peer.verdict(Opt::STRUCTURED_REPLY, &[]), Reply::ACK);
        assert_eq!(peer.verdict(Opt::SET_META_CONTEXT, &data), Reply::ERR_INVALID, "{data:?}");
        assert_eq!(peer.verdict(Opt::LIST_META_CONTEXT, &data), Reply::ERR_INVALID, "{data:?}");
    }
}

#[test]
fn client_asks_for_contexts_without_structured_replies() {
    let mut peer = off();
    assert_eq!(peer.verdict(Opt::SET_META_CONTEXT, &allocation("disk")), Reply::ERR_INVALID);
    assert_eq!(peer.verdict(Opt::LIST_META_CONTEXT, &queries("disk", &[])), Reply::ERR_INVALID);
}

#[test]
fn client_sends_an_option_that_is_too_long() {
    let mut peer = off();
    for length in [(64 << 10) + 1, 1 << 20, 16 << 20] {
        let answer = peer.verdict(Opt::INFO, &vec![0; length]);
        assert_eq!(answer, Reply::ERR_TOO_BIG, "{length}");
    }
    // A length that is allowed, of nonsense.
    assert_eq!(peer.verdict(Opt::INFO, &vec![0; 64 << 10]), Reply::ERR_INVALID);
    assert_eq!(go(&mut peer, "disk").offer.size, 1 << 30);
    for (asked, length) in
        [(Opt::GO, (16 << 20) + 1), (Opt(99), u32::MAX), (Opt::EXPORT_NAME, 65537)]
    {
        let mut head = option(asked, &[]);
        head[12..].copy_from_slice(&length.to_be_bytes());
        let end = off().send(&head);
        assert_eq!(end, Err(HandshakeError::TooLong { option: asked, length }));
    }
}
