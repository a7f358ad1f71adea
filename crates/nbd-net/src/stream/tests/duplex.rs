//! The transmission phase: both directions at once.

use super::*;

/// Bytes that each sender of the stress test sends.
const VOLUME: usize = 12 << 20;
const SENDERS: u8 = 2;

type End = (Receiver, Sender);

fn halves() -> Vec<(String, End, End)> {
    let split = |(kind, left, right): (String, Stream, Stream)| (kind, left.split(), right.split());
    all_kinds().into_iter().map(split).collect()
}

/// Sends a message as the crates above do: never waiting inside of the sender.
fn send_all(sender: &mut Sender, head: &[u8], body: &[u8]) {
    let total = head.len() + body.len();
    let mut sent = 0;
    let wait = |sender: &Sender, error: io::Error| {
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(sender.socket().wait_writable(Some(EVENT_TIMEOUT)).unwrap());
    };
    while sent < total {
        let parts = [
            IoSlice::new(&head[sent.min(head.len())..]),
            IoSlice::new(&body[sent.saturating_sub(head.len())..]),
        ];
        match sender.send(&parts) {
            Ok(count) => sent += count,
            Err(error) => wait(sender, error),
        }
    }
    while let Err(error) = sender.flush() {
        wait(sender, error);
    }
}

/// Messages of many lengths: who sends it, its number, its length, then its content.
fn send_messages(sender: &Mutex<Sender>, id: u8) {
    let (mut volume, mut number) = (0, 0u32);
    while volume < VOLUME {
        let length = [0, 1, 16, 4096, 16384, 70_000, 1 << 20][number as usize % 7];
        let body = vec![id ^ number as u8; length];
        let mut head = vec![id];
        head.extend_from_slice(&number.to_le_bytes());
        head.extend_from_slice(&(length as u32).to_le_bytes());
        send_all(&mut sender.lock().unwrap(), &head, &body);
        volume += length;
        number += 1;
    }
}

/// Receives until the end and checks everything.
fn check_messages(receiver: &mut Receiver, kind: &str) {
    receiver.set_timeout(Some(EVENT_TIMEOUT)).unwrap();
    let mut buffer = vec![0; 512 << 10];
    let mut bytes = Vec::new();
    let mut expected = [0u32; SENDERS as usize];
    let mut volume = 0;
    loop {
        let count = receiver.receive(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        bytes.extend_from_slice(&buffer[..count]);
        let mut rest = bytes.as_slice();
        while let Some((head, behind)) = rest.split_first_chunk::<9>() {
            let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
            let (id, number, length) = (head[0], word(1), word(5) as usize);
            if behind.len() < length {
                break;
            }
            assert_eq!(number, expected[id as usize], "{kind}");
            assert!(behind[..length].iter().all(|byte| *byte == id ^ number as u8), "{kind}");
            expected[id as usize] += 1;
            volume += length;
            rest = &behind[length..];
        }
        bytes = rest.to_vec();
    }
    assert!(bytes.is_empty() && volume >= usize::from(SENDERS) * VOLUME, "{kind}");
}

#[test]
fn many_senders_and_a_receiver_on_both_ends_do_not_disturb_each_other() {
    for (kind, left, right) in halves() {
        thread::scope(|scope| {
            for (mut receiver, sender) in [left, right] {
                let kind = &kind;
                scope.spawn(move || check_messages(&mut receiver, kind));
                scope.spawn(move || {
                    let sender = Mutex::new(sender);
                    thread::scope(|scope| {
                        for id in 0..SENDERS {
                            let sender = &sender;
                            scope.spawn(move || send_messages(sender, id));
                        }
                    });
                    close(&mut sender.lock().unwrap());
                });
            }
        });
    }
}

fn close(sender: &mut Sender) {
    while let Err(error) = sender.close() {
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(sender.socket().wait_writable(Some(EVENT_TIMEOUT)).unwrap());
    }
}

#[test]
fn a_peer_that_does_not_read_makes_nobody_wait() {
    for (kind, (_receiver, mut sender), (mut reader, _writer)) in halves() {
        let block = vec![1; 64 << 10];
        let mut taken = 0;
        let error = loop {
            match sender.send(&[IoSlice::new(&block)]) {
                Ok(count) => taken += count,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{kind}");
        let again = sender.send(&[IoSlice::new(&block)]).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::WouldBlock, "{kind}");
        assert!(taken < 64 << 20, "{kind}: {taken}");
        // All that was taken arrives, once there is room again.
        let reading = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            let mut total = 0;
            while total < taken {
                total += reader.receive(&mut buffer).unwrap();
            }
            total
        });
        send_all(&mut sender, &[], &[]);
        assert_eq!(reading.join().unwrap(), taken, "{kind}");
    }
}

#[test]
fn a_direction_can_end_alone() {
    for (kind, (mut receiver, mut sender), (mut other_receiver, mut other_sender)) in halves() {
        send_all(&mut sender, b"last ", b"words");
        close(&mut sender);
        let mut buffer = [0; 64];
        assert_eq!(other_receiver.receive(&mut buffer).unwrap(), 10, "{kind}");
        assert_eq!(other_receiver.receive(&mut buffer).unwrap(), 0, "{kind}");
        assert_eq!(other_receiver.receive(&mut buffer).unwrap(), 0, "{kind}");
        assert!(sender.send(&[IoSlice::new(b"more")]).is_err(), "{kind}");
        send_all(&mut other_sender, b"reply", b"");
        assert_eq!(receiver.receive(&mut buffer).unwrap(), 5, "{kind}");
    }
}

#[test]
fn the_end_of_the_connection_is_the_end_of_the_stream() {
    for (kind, (mut receiver, mut sender), other) in halves() {
        let socket = Arc::clone(receiver.socket());
        other.1.socket().shutdown();
        assert_eq!(receiver.receive(&mut [0; 8]).unwrap(), 0, "{kind}");
        socket.shutdown();
        assert!(sender.send(&[IoSlice::new(b"x")]).is_err(), "{kind}");
    }
}

#[test]
fn a_silent_peer_is_told_from_one_that_left() {
    for (kind, (mut receiver, _sender), other) in halves() {
        receiver.set_timeout(Some(MOMENT)).unwrap();
        let error = receiver.receive(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{kind}");
        drop(other);
        assert_eq!(receiver.receive(&mut [0; 8]).unwrap(), 0, "{kind}");
    }
}

/// A connection of ours to a client that is plain rustls.
fn with_raw_client() -> (End, rustls::StreamOwned<ClientConnection, UnixStream>) {
    let scratch = Scratch::new();
    certificates(scratch.path()).unwrap();
    let server = ServerTls::load(scratch.path(), true).unwrap();
    let client = ClientTls::load(Some(scratch.path()), true).unwrap();
    let (left, right) = UnixStream::pair().unwrap();
    let serving = thread::spawn(move || {
        patient(Socket::from_fd(left.into()).unwrap()).into_tls_server(&server).unwrap()
    });
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(client.config, name).unwrap();
    let mut raw = rustls::StreamOwned::new(connection, right);
    raw.write_all(b"hello").unwrap();
    let (mut receiver, sender) = serving.join().unwrap().split();
    assert_eq!(receiver.receive(&mut [0; 8]).unwrap(), 5);
    ((receiver, sender), raw)
}

#[test]
fn keys_are_changed_when_the_peer_asks_for_it() {
    let ((mut receiver, mut sender), mut raw) = with_raw_client();
    for _ in 0..10 {
        raw.conn.refresh_traffic_keys().unwrap();
        raw.write_all(b"fresh").unwrap();
        let mut buffer = [0; 8];
        assert_eq!(receiver.receive(&mut buffer).unwrap(), 5);
        send_all(&mut sender, b"re", b"ply");
        raw.read_exact(&mut buffer[..5]).unwrap();
        assert_eq!(&buffer[..5], b"reply");
    }
}

#[test]
fn forged_bytes_end_the_connection_and_the_peer_is_told() {
    let ((mut receiver, mut sender), mut raw) = with_raw_client();
    raw.write_all(b"genuine").unwrap();
    // A record that was never encrypted.
    raw.sock.write_all(b"\x17\x03\x03\x00\x20forged forged forged forged forge").unwrap();
    let mut buffer = [0; 64];
    assert_eq!(receiver.receive(&mut buffer).unwrap(), 7);
    for _ in 0..2 {
        let error = receiver.receive(&mut buffer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        let error = sender.send(&[IoSlice::new(b"secret")]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
    let error = raw.read(&mut buffer).unwrap_err();
    assert!(error.to_string().contains("alert"), "{error}");
}
