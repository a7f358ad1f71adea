//! A client hears whatever a server may say, cut wherever it may be.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd_proto::handshake::{
    ClientHandshake, ClientOptions, ClientProgress, Established, MAX_LISTED_EXPORTS,
};

fuzz_target!(|bytes: &[u8]| {
    let Some((how, said)) = bytes.split_first() else {
        return;
    };
    let wish = |bit: u8| how & (1 << bit) != 0;
    let wishes = ClientOptions {
        name: "disk".into(),
        tls: wish(0),
        structured: wish(1),
        extended: wish(2),
        allocation: wish(3),
        // None of the other three matters to a list.
        list: !wish(1) && wish(2) && wish(3),
    };
    let piece = usize::from(how >> 4) + 1;
    let whole = converse(&wishes, said, said.len().max(1));
    assert_eq!(converse(&wishes, said, piece), whole);
    if let (_, Ok(Some(established))) = whole {
        assert!(established.block_sizes.is_sound());
        assert!(established.allocation.is_none() || wishes.allocation);
    }
});

/// All that the client asks, and what it takes for agreed; nothing if it still waits.
fn converse(
    wishes: &ClientOptions,
    said: &[u8],
    piece: usize,
) -> (Vec<u8>, Result<Option<Established>, ()>) {
    let mut client = ClientHandshake::new(wishes.clone());
    let (mut heard, mut out) = (Vec::new(), Vec::new());
    for piece in said.chunks(piece) {
        heard.extend_from_slice(piece);
        loop {
            let Ok((used, progress)) = client.handle(&heard, &mut out) else {
                return (out, Err(()));
            };
            heard.drain(..used);
            match progress {
                ClientProgress::More => break,
                ClientProgress::StartTls => client.secured(),
                ClientProgress::Established(established) => return (out, Ok(Some(established))),
                ClientProgress::Listed(exports) => {
                    assert!(exports.len() <= MAX_LISTED_EXPORTS);
                    return (out, Ok(None));
                }
            }
        }
    }
    (out, Ok(None))
}
