//! The handshake: from a fresh connection to the transmission phase.

use std::io;

use nbd_net::stream::Stream;
use nbd_net::tls::{ClientTls, TlsError};
use nbd_proto::TransmissionFlags;
use nbd_proto::handshake::{
    ClientHandshake, ClientOptions, ClientProgress, Established, ListedExport,
};

use crate::connect::error::Cause;
use crate::connect::export_shape::ExportShape;
use crate::connect::negotiated::Negotiated;

/// A connection in the transmission phase.
pub(crate) struct NegotiatedStream {
    pub(crate) stream: Stream,
    /// What the server has sent beyond the handshake.
    pub(crate) rest: Vec<u8>,
    pub(crate) negotiated: Negotiated,
    pub(crate) shape: ExportShape,
}

/// Agrees with a server about one of its exports, within the stream's deadline. With `tls`, the
/// connection is secured first; the server's certificate has to be made out to the name.
pub(crate) fn negotiate(
    stream: Stream,
    export: &str,
    tls: Option<(&ClientTls, &str)>,
) -> Result<NegotiatedStream, Cause> {
    match talk(stream, ClientOptions::new(export), tls)? {
        (mut stream, rest, ClientProgress::Established(offer)) => {
            stream.set_deadline(None);
            let (negotiated, shape) = evaluate(&offer)?;
            Ok(NegotiatedStream { stream, rest, negotiated, shape })
        }
        _ => Err(Cause::UnexpectedEof),
    }
}

/// What a server has, within the stream's deadline.
pub(crate) fn list(
    stream: Stream,
    tls: Option<(&ClientTls, &str)>,
) -> Result<Vec<ListedExport>, Cause> {
    let options = ClientOptions { list: true, ..ClientOptions::new("") };
    match talk(stream, options, tls)? {
        (.., ClientProgress::Listed(exports)) => Ok(exports),
        _ => Err(Cause::UnexpectedEof),
    }
}

/// The handshake up to its end, and what the server has sent beyond it.
fn talk(
    mut stream: Stream,
    options: ClientOptions,
    tls: Option<(&ClientTls, &str)>,
) -> Result<(Stream, Vec<u8>, ClientProgress), Cause> {
    let mut handshake = ClientHandshake::new(ClientOptions { tls: tls.is_some(), ..options });
    let (mut input, mut output) = (Vec::new(), Vec::new());
    // With TLS 1.3 the server looks at our certificate when we are done, and may leave then.
    let mut is_doubtful = false;
    loop {
        let (consumed, progress) = handshake.handle(&input, &mut output)?;
        input.drain(..consumed);
        let doubt = |cause| match cause {
            Cause::UnexpectedEof if is_doubtful => TlsError::Closed.into(),
            cause => cause,
        };
        stream.write_all(&output).map_err(failed).map_err(doubt)?;
        output.clear();
        match progress {
            ClientProgress::More => {
                read_more(&mut stream, &mut input).map_err(doubt)?;
                is_doubtful = false;
            }
            ClientProgress::StartTls if !input.is_empty() => {
                return Err(Cause::PlaintextAfterStartTls);
            }
            ClientProgress::StartTls => {
                if let Some((tls, server)) = tls {
                    stream = stream.into_tls_client(tls, server)?;
                    is_doubtful = true;
                }
                handshake.secured();
            }
            end => return Ok((stream, input, end)),
        }
    }
}

fn evaluate(offer: &Established) -> Result<(Negotiated, ExportShape), Cause> {
    let allocation = offer.allocation;
    let shape = ExportShape::of(offer, allocation.is_some())?;
    let block = shape.geometry.block_size;
    let negotiated = Negotiated {
        style: offer.style,
        allocation,
        // A server's minimum is never above its maximum, so nothing is left of neither.
        max_payload: (offer.block_sizes.maximum / block * block).max(block),
        has_flush: offer.flags.contains(TransmissionFlags::SEND_FLUSH),
        has_cache: offer.flags.contains(TransmissionFlags::SEND_CACHE),
        is_multi: offer.flags.contains(TransmissionFlags::CAN_MULTI_CONN),
    };
    Ok((negotiated, shape))
}

fn read_more(stream: &mut Stream, input: &mut Vec<u8>) -> Result<(), Cause> {
    let have = input.len();
    input.resize(have + 4096, 0);
    let count = stream.read(&mut input[have..]).map_err(failed)?;
    input.truncate(have + count);
    if count == 0 { Err(Cause::UnexpectedEof) } else { Ok(()) }
}

fn failed(error: io::Error) -> Cause {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Cause::HandshakeTimeout,
        io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::UnexpectedEof => Cause::UnexpectedEof,
        // What TLS has to say comes wrapped.
        io::ErrorKind::InvalidData => Cause::Tls(error.into()),
        _ => Cause::Io(error),
    }
}
