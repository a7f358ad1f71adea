//! The shortest way into the transmission phase: `NBD_OPT_EXPORT_NAME`.

use std::io::{self, Read, Write};

const MAGIC: &[u8; 8] = b"NBDMAGIC";
const OPTION: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// `NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES`, and the client's counterparts.
const FLAGS: u16 = 3;
const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const REPLY_ACK: u32 = 1;
const REPLY_ERR_UNSUP: u32 = 1 << 31 | 1;

/// A client's part. Returns the size of the export.
///
/// # Errors
///
/// The server is of another kind than fixed newstyle without zeroes, or the connection fails or ends
/// before the size of the export has come.
pub fn join(end: &mut (impl Read + Write), export: &str) -> io::Result<u64> {
    let mut greeting = [0; 18];
    end.read_exact(&mut greeting)?;
    if &greeting[..8] != MAGIC || &greeting[8..16] != OPTION || greeting[17] & 3 != 3 {
        return Err(io::Error::other("not a server of fixed newstyle without zeroes"));
    }
    let mut words = Vec::new();
    words.extend_from_slice(&u32::from(FLAGS).to_be_bytes());
    words.extend_from_slice(OPTION);
    words.extend_from_slice(&EXPORT_NAME.to_be_bytes());
    words.extend_from_slice(&(export.len() as u32).to_be_bytes());
    words.extend_from_slice(export.as_bytes());
    end.write_all(&words)?;
    let mut answer = [0; 10];
    end.read_exact(&mut answer)?;
    Ok(answer.first_chunk().copied().map_or(0, u64::from_be_bytes))
}

/// A server's part: knows nothing but the default way. `false` if the client wants no more.
///
/// # Errors
///
/// The connection fails, or ends in the middle of the handshake.
pub fn accept(end: &mut (impl Read + Write), size: u64, transmission: u16) -> io::Result<bool> {
    let mut greeting = [0; 18];
    greeting[..8].copy_from_slice(MAGIC);
    greeting[8..16].copy_from_slice(OPTION);
    greeting[16..].copy_from_slice(&FLAGS.to_be_bytes());
    end.write_all(&greeting)?;
    let mut client = [0; 4];
    end.read_exact(&mut client)?;
    loop {
        let mut header = [0; 16];
        end.read_exact(&mut header)?;
        let word = |at: usize| {
            let bytes = [header[at], header[at + 1], header[at + 2], header[at + 3]];
            u32::from_be_bytes(bytes)
        };
        let (option, length) = (word(8), word(12));
        io::copy(&mut Read::by_ref(end).take(length.into()), &mut io::sink())?;
        if option == EXPORT_NAME {
            let mut answer = [0; 10 + 124];
            answer[..8].copy_from_slice(&size.to_be_bytes());
            answer[8..10].copy_from_slice(&transmission.to_be_bytes());
            let no_zeroes = client[3] & 2 != 0;
            end.write_all(&answer[..if no_zeroes { 10 } else { answer.len() }])?;
            return Ok(true);
        }
        let kind = if option == ABORT { REPLY_ACK } else { REPLY_ERR_UNSUP };
        let mut reply = Vec::new();
        reply.extend_from_slice(&OPTION_REPLY.to_be_bytes());
        reply.extend_from_slice(&option.to_be_bytes());
        reply.extend_from_slice(&kind.to_be_bytes());
        reply.extend_from_slice(&0u32.to_be_bytes());
        end.write_all(&reply)?;
        if option == ABORT {
            return Ok(false);
        }
    }
}
