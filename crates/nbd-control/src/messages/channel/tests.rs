use std::io::{Read, Write};

use super::*;

fn pair() -> (Channel, Channel) {
    let (left, right) = UnixStream::pair().unwrap();
    (Channel::new(left).unwrap(), Channel::new(right).unwrap())
}

/// Longer than any message takes.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(120);

#[test]
fn a_message_arrives_with_its_descriptors() {
    let (left, mut right) = pair();
    let (mut reader, writer) = std::io::pipe().unwrap();
    left.send(&("lane".to_string(), 7u32), &[writer.as_fd()]).unwrap();
    drop(writer);
    let received = right.receive_within::<(String, u32)>(MESSAGE_TIMEOUT).unwrap();
    assert_eq!(received.message, ("lane".to_string(), 7));
    std::fs::File::from(received.descriptors.into_iter().next().unwrap()).write_all(b"x").unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "x");
}

#[test]
fn messages_in_pieces_are_put_together() {
    let (left, mut right) = pair();
    left.send(&vec![1u8; 5000], &[]).unwrap();
    left.send(&vec![2u8; 100_000], &[]).unwrap();
    assert_eq!(right.receive_within::<Vec<u8>>(MESSAGE_TIMEOUT).unwrap().message, vec![1; 5000]);
    assert_eq!(right.receive_within::<Vec<u8>>(MESSAGE_TIMEOUT).unwrap().message.len(), 100_000);
    assert!(right.try_receive::<Vec<u8>>().unwrap().is_none());
}

#[test]
fn a_conversation_goes_on_where_it_was_left_at_rest() {
    let (left, mut right) = pair();
    assert!(!right.is_at_rest(), "the peer has not introduced itself");
    left.send(&1u32, &[]).unwrap();
    left.send(&2u32, &[]).unwrap();
    assert_eq!(right.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap().message, 1);
    assert!(right.is_at_rest(), "the second message is in the socket");
    assert_eq!(right.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap().message, 2);
    assert!(right.is_at_rest());

    let (mut left, right) = (Channel::resume(left.stream), Channel::resume(right.stream));
    right.send(&3u32, &[]).unwrap();
    // Its greeting was not read before.
    left.greeted = false;
    assert_eq!(left.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap().message, 3);
}

#[test]
fn garbage_instead_of_a_greeting_is_named() {
    let (mut left, right) = UnixStream::pair().unwrap();
    let mut right = Channel::new(right).unwrap();
    left.write_all(b"GET / HTTP/1.0\r\n").unwrap();
    let error = right.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap_err();
    assert!(matches!(error, ChannelError::NotOurs(_)), "{error}");
}

#[test]
fn another_version_is_named() {
    let (mut left, right) = UnixStream::pair().unwrap();
    let mut right = Channel::new(right).unwrap();
    left.write_all(b"nbd-hold\x63\0\0\0").unwrap();
    let error = right.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap_err();
    assert!(matches!(error, ChannelError::Version { found: 99 }), "{error}");
}

#[test]
fn a_frame_that_claims_too_much_is_refused() {
    let (mut left, right) = UnixStream::pair().unwrap();
    let mut right = Channel::new(right).unwrap();
    left.write_all(b"nbd-hold\x01\0\0\0\xff\xff\xff\x7f\0\0\0\0").unwrap();
    let error = right.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap_err();
    assert!(matches!(error, ChannelError::Malformed(_)), "{error}");
}

#[test]
fn a_closed_peer_is_told_from_a_silent_one() {
    let (left, mut right) = pair();
    let silent = right.receive_within::<u32>(Duration::from_millis(1)).unwrap_err();
    assert!(matches!(silent, ChannelError::TimedOut(_)), "{silent}");
    drop(left);
    let closed = right.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap_err();
    assert!(matches!(closed, ChannelError::Closed), "{closed}");
}

#[test]
fn the_kernel_names_the_sender() {
    let (left, mut right) = pair();
    right.identify_senders().unwrap();
    left.send(&1u32, &[]).unwrap();
    right.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap();
    assert_eq!(right.sender().unwrap().credentials.pid(), std::process::id() as i32);
}

/// A file that only one test knows.
fn strange_file(name: &str) -> OwnedFd {
    nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::empty()).unwrap()
}

/// How many descriptors this process has of it.
fn count_copies(name: &str) -> usize {
    let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let links = all.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.filter(|link| link.to_string_lossy().contains(name)).count()
}

/// Sends some bytes with this many copies of a descriptor, as no program of ours does.
fn send_with(stream: &UnixStream, bytes: &[u8], file: &OwnedFd, count: usize) {
    let raw = vec![file.as_raw_fd(); count];
    let rights = [ControlMessage::ScmRights(&raw)];
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], &rights, MsgFlags::empty(), None)
        .unwrap();
}

#[test]
fn descriptors_that_may_not_be_sent_are_refused_and_none_is_left() {
    const GOOD: &[u8] = b"nbd-hold\x01\0\0\0";
    let frame = |count: u8| [&[4, 0, 0, 0, count, 0, 0, 0][..], &7u32.to_le_bytes()].concat();
    let file = strange_file("sent");
    for (limit, announced, sent) in [
        // More than a frame may have, so many that earlier programs lost track of them …
        (MAX_FRAME_DESCRIPTORS, 32, 33),
        (MAX_FRAME_DESCRIPTORS, 32, 253),
        // … more or fewer than are announced, any where none may be sent, or too many.
        (MAX_FRAME_DESCRIPTORS, 1, 2),
        (MAX_FRAME_DESCRIPTORS, 2, 1),
        (0, 0, 1),
        (0, 1, 1),
        (1, 2, 2),
    ] {
        for at_greeting in [false, true] {
            let (left, right) = UnixStream::pair().unwrap();
            let mut right = Channel::new(right).unwrap();
            right.set_max_descriptors(limit);
            if at_greeting {
                send_with(&left, GOOD, &file, sent);
                (&left).write_all(&frame(0)).unwrap();
            } else {
                (&left).write_all(GOOD).unwrap();
                send_with(&left, &frame(announced), &file, sent);
            }
            let error = right.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap_err();
            let is_refused =
                matches!(error, ChannelError::Malformed(_) | ChannelError::Descriptors);
            assert!(is_refused, "{limit} {sent}: {error}");
            drop(right);
            assert_eq!(count_copies("memfd:sent"), 1, "{limit} {announced} {sent}");
        }
    }
}

/// Whether the kernel hands out senders' processes.
fn knows_pidfd() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(5))
}

/// Sends a byte that a look passes over, with a copy of a descriptor; false if this kernel knows none.
fn send_past_the_others(stream: &UnixStream, file: &OwnedFd) -> bool {
    let rights = [file.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&rights)];
    let bytes = [IoSlice::new(b"x")];
    sendmsg::<()>(stream.as_raw_fd(), &bytes, &rights, MsgFlags::MSG_OOB, None).is_ok()
}

#[test]
fn no_descriptor_gets_in_past_the_others_or_while_it_is_looked() {
    let file = strange_file("past");
    for identified in [false, true] {
        let (left, right) = UnixStream::pair().unwrap();
        let mut right = Channel::new(right).unwrap();
        if identified {
            right.identify_senders().unwrap();
        }
        right.never_wait().unwrap();
        right.set_max_descriptors(0);
        if send_past_the_others(&left, &file) {
            (&left).write_all(b"nbd-hold\x01\0\0\0").unwrap();
            let error = right.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap_err();
            assert!(matches!(error, ChannelError::Descriptors), "{error}");
        }
        // With room for the process of the sender there would be room for two.
        let (left, right) = UnixStream::pair().unwrap();
        setsockopt(&right, sockopt::PassCred, &identified).unwrap();
        send_with(&left, b"x", &file, 3);
        let found = ancillary::peek(right.as_fd(), &mut [0]).unwrap();
        assert!(matches!(found, ancillary::Peeked::Descriptors));
        assert_eq!(count_copies("memfd:past"), 1, "{identified}");
    }
}

#[test]
fn senders_are_named_where_no_descriptors_may_come() {
    let (left, mut right) = pair();
    right.identify_senders().unwrap();
    right.never_wait().unwrap();
    right.set_max_descriptors(0);
    left.send(&1u32, &[]).unwrap();
    assert_eq!(right.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap().message, 1);
    let sender = right.sender().unwrap();
    assert!(sender.process.is_some() || !knows_pidfd());
    assert_eq!(sender.credentials.pid(), std::process::id() as i32);
}

#[test]
fn a_later_message_stays_in_the_socket() {
    let (left, mut right) = pair();
    left.send(&1u32, &[]).unwrap();
    left.send(&2u32, &[]).unwrap();
    assert_eq!(right.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap().message, 1);
    let mut socket = [PollFd::new(right.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut socket, PollTimeout::ZERO), Ok(1));
    assert_eq!(right.receive_within::<u32>(MESSAGE_TIMEOUT).unwrap().message, 2);
}

#[test]
fn a_peer_that_does_not_read_is_given_up_at_once() {
    let (mut left, right) = pair();
    left.never_wait().unwrap();
    let flood = std::iter::repeat_with(|| left.send(&vec![0u8; 50_000], &[]));
    let error = flood.take(1000).find_map(Result::err).expect("an end of the room");
    assert!(matches!(error, ChannelError::Unread), "{error}");
    drop(right);
}

#[test]
fn the_longest_message_finds_room_at_once() {
    let (mut left, mut right) = pair();
    left.never_wait().unwrap();
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let longest = vec![7u8; wire::MAX_MESSAGE_BYTES - 8];
    left.send(&longest, &[]).unwrap();
    assert_eq!(right.receive_within::<Vec<u8>>(MESSAGE_TIMEOUT).unwrap().message, longest);
    let error = left.send(&vec![7u8; wire::MAX_MESSAGE_BYTES], &[]).unwrap_err();
    assert!(matches!(error, ChannelError::Malformed(_)), "{error}");
}
