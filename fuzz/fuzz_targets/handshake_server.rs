//! A server hears whatever a client may say, cut wherever it may be.
#![no_main]

#[path = "../shared/exports.rs"]
mod exports;

use exports::Exports;
use libfuzzer_sys::fuzz_target;
use nbd_proto::handshake::{OptionReplyHead, ServerHandshake, ServerProgress, TlsPolicy};

fuzz_target!(|bytes: &[u8]| {
    let Some((how, said)) = bytes.split_first() else {
        return;
    };
    let policy = [TlsPolicy::Off, TlsPolicy::Optional, TlsPolicy::Required][usize::from(how % 3)];
    let piece = usize::from(how / 3).max(1);
    let whole = converse(policy, said, said.len().max(1));
    // What it answers does not depend on how the bytes arrive.
    assert_eq!(converse(policy, said, piece), whole);
    let (mut answers, end) = (&whole.0[..], whole.1);
    while let Some((head, rest)) = answers.split_first_chunk() {
        let Some(head) = OptionReplyHead::decode(head) else {
            break;
        };
        answers = &rest[head.length as usize..];
    }
    // Only EXPORT_NAME is answered in another way.
    assert!(answers.is_empty() || (end == End::Transmission && matches!(answers.len(), 10 | 134)));
});

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    Transmission,
    Aborted,
    Failed,
}

/// All that the server has to say to what it hears, and how that ends.
fn converse(policy: TlsPolicy, said: &[u8], piece: usize) -> (Vec<u8>, End) {
    let mut server = ServerHandshake::new(policy);
    let (mut heard, mut out) = (Vec::new(), Vec::new());
    for piece in said.chunks(piece) {
        heard.extend_from_slice(piece);
        loop {
            let Ok((used, progress)) = server.handle(&heard, &Exports, &mut out) else {
                return (out, End::Failed);
            };
            heard.drain(..used);
            match progress {
                ServerProgress::More => break,
                ServerProgress::StartTls => server.secured(),
                ServerProgress::Aborted => return (out, End::Aborted),
                ServerProgress::Transmission(agreement) => {
                    assert!(agreement.offer.size == exports::SIZE);
                    return (out, End::Transmission);
                }
            }
        }
    }
    (out, End::Open)
}
