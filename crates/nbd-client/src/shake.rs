//! The handshake: from a fresh connection to terms.

use std::io;

use nbd_net::stream::Stream;
use nbd_net::tls::{ClientTls, TlsError};
use nbd_proto::TransmissionFlags;
use nbd_proto::handshake::{ClientHandshake, ClientOptions, ClientProgress, Established};

use crate::dial::Cause;
use crate::shape::Shape;
use crate::terms::Terms;

/// A connection in the transmission phase.
pub(crate) struct Agreed {
    pub(crate) stream: Stream,
    /// What the server has sent beyond the handshake.
    pub(crate) rest: Vec<u8>,
    pub(crate) terms: Terms,
    pub(crate) shape: Shape,
}

/// Agrees with a server about one of its exports, within the stream's deadline. With `tls`, the
/// connection is secured first; the server's certificate has to be made out to the name.
pub(crate) fn hands(
    mut stream: Stream,
    export: &str,
    tls: Option<(&ClientTls, &str)>,
) -> Result<Agreed, Cause> {
    let mut handshake =
        ClientHandshake::new(ClientOptions { tls: tls.is_some(), ..ClientOptions::new(export) });
    let (mut input, mut output) = (Vec::new(), Vec::new());
    // With TLS 1.3 the server looks at our certificate when we are done, and may leave then.
    let mut is_doubtful = false;
    loop {
        let (consumed, progress) = handshake.handle(&input, &mut output)?;
        input.drain(..consumed);
        let doubt = |cause| match cause {
            Cause::Torn if is_doubtful => TlsError::Closed.into(),
            cause => cause,
        };
        stream.write_all(&output).map_err(failed).map_err(doubt)?;
        output.clear();
        match progress {
            ClientProgress::More => {
                read_more(&mut stream, &mut input).map_err(doubt)?;
                is_doubtful = false;
            }
            ClientProgress::StartTls if !input.is_empty() => return Err(Cause::Impatient),
            ClientProgress::StartTls => {
                if let Some((tls, server)) = tls {
                    stream = stream.into_tls_client(tls, server)?;
                    is_doubtful = true;
                }
                handshake.secured();
            }
            ClientProgress::Established(offer) => {
                stream.set_deadline(None);
                let (terms, shape) = settle(&offer)?;
                return Ok(Agreed { stream, rest: input, terms, shape });
            }
        }
    }
}

fn settle(offer: &Established) -> Result<(Terms, Shape), Cause> {
    let allocation = offer.allocation;
    let shape = Shape::of(offer, allocation.is_some())?;
    let block = shape.geometry.block_size;
    let terms = Terms {
        style: offer.style,
        allocation,
        // A server's minimum is never above its maximum, so nothing is left of neither.
        max_payload: (offer.block_sizes.maximum / block * block).max(block),
        has_flush: offer.flags.contains(TransmissionFlags::SEND_FLUSH),
        has_cache: offer.flags.contains(TransmissionFlags::SEND_CACHE),
        is_multi: offer.flags.contains(TransmissionFlags::CAN_MULTI_CONN),
    };
    Ok((terms, shape))
}

fn read_more(stream: &mut Stream, input: &mut Vec<u8>) -> Result<(), Cause> {
    let have = input.len();
    input.resize(have + 4096, 0);
    let count = stream.read(&mut input[have..]).map_err(failed)?;
    input.truncate(have + count);
    if count == 0 { Err(Cause::Torn) } else { Ok(()) }
}

fn failed(error: io::Error) -> Cause {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Cause::Slow,
        io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::UnexpectedEof => Cause::Torn,
        // What TLS has to say comes wrapped.
        io::ErrorKind::InvalidData => Cause::Tls(error.into()),
        _ => Cause::Io(error),
    }
}
