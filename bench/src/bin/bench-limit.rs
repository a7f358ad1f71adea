//! The limit: an NBD server that answers from memory, or from a file, with no bookkeeping at all.
//!
//! It trusts its clients, survives nothing and offers nothing. What is faster than this does
//! something cleverer; what is slower pays for something.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Parser;
use nbd_bench::end::{End, Listener};
use nbd_bench::handshake;
use nbd_proto::{CommandType, NbdError, Request, SimpleReply, TransmissionFlags};

/// Room for requests; the longest one must fit.
const WINDOW: usize = 40 << 20;
/// Bytes to receive at once.
const MOST: usize = 512 << 10;
/// Where the rest of a window moves to its beginning, so that it stays in the caches …
const FAR: usize = 1 << 20;
/// … and how long a rest always does.
const SMALL: usize = 4096;
/// Memory that is locked at once. So many locks that nobody meets at one.
const STRIPE: u64 = 1 << 20;

/// Answers NBD clients from memory, or from a file.
#[derive(Debug, Parser)]
#[command(name = "bench-limit")]
struct Cli {
    /// `unix:PATH` or `tcp:HOST:PORT`.
    address: String,
    /// Size of the memory in MiB.
    #[arg(long, default_value_t = 64)]
    size: u64,
    /// Serve this file instead.
    #[arg(long)]
    file: Option<PathBuf>,
}

enum Storage {
    Memory(Vec<Mutex<Vec<u8>>>),
    File(File),
}

impl Storage {
    /// The parts of a range: index of the stripe, where in it, how much.
    fn parts(mut offset: u64, length: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let end = offset + length as u64;
        std::iter::from_fn(move || {
            (offset < end).then(|| {
                let (stripe, at) = (offset / STRIPE, offset % STRIPE);
                let count = (STRIPE - at).min(end - offset);
                offset += count;
                (stripe as usize, at as usize, count as usize)
            })
        })
    }

    fn read(&self, mut buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let stripes = match self {
            Self::Memory(stripes) => stripes,
            Self::File(file) => return file.read_exact_at(buffer, offset),
        };
        for (stripe, at, count) in Self::parts(offset, buffer.len()) {
            let memory = stripes[stripe].lock().unwrap_or_else(PoisonError::into_inner);
            let (now, later) = buffer.split_at_mut(count);
            now.copy_from_slice(&memory[at..at + count]);
            buffer = later;
        }
        Ok(())
    }

    fn write(&self, mut data: &[u8], offset: u64) -> io::Result<()> {
        let stripes = match self {
            Self::Memory(stripes) => stripes,
            Self::File(file) => return file.write_all_at(data, offset),
        };
        for (stripe, at, count) in Self::parts(offset, data.len()) {
            let mut memory = stripes[stripe].lock().unwrap_or_else(PoisonError::into_inner);
            let (now, later) = data.split_at(count);
            memory[at..at + count].copy_from_slice(now);
            data = later;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::File(file) => file.sync_data(),
        }
    }
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-limit: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), Box<dyn Error>> {
    let (storage, size) = match &cli.file {
        Some(path) => {
            let file = File::options().read(true).write(true).open(path);
            let file = file.map_err(|error| format!("{}: {error}", path.display()))?;
            let size = file.metadata()?.len();
            (Storage::File(file), size)
        }
        None => {
            let stripe = || Mutex::new(vec![1; STRIPE as usize]);
            (Storage::Memory((0..cli.size).map(|_| stripe()).collect()), cli.size * STRIPE)
        }
    };
    let storage = Arc::new(storage);
    let listener = Listener::bind(&cli.address);
    let listener = listener.map_err(|error| format!("{}: {error}", cli.address))?;
    loop {
        let end = listener.accept()?;
        let storage = Arc::clone(&storage);
        std::thread::spawn(move || serve(end, &storage, size));
    }
}

/// Serves one connection; whatever ends it is the client's business.
fn serve(mut end: End, storage: &Storage, size: u64) -> io::Result<()> {
    let flags = TransmissionFlags::HAS_FLAGS
        | TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_TRIM
        | TransmissionFlags::CAN_MULTI_CONN;
    if !handshake::accept(&mut end, size, flags.bits())? {
        return Ok(());
    }
    let mut window = vec![0; WINDOW];
    let mut replies = vec![0; WINDOW];
    let mut staged = 0;
    let (mut start, mut filled) = (0, 0);
    loop {
        while let Some(header) = window[start..filled].first_chunk() {
            let request = Request::decode(header).map_err(|_| io::ErrorKind::InvalidData)?;
            let data = start + Request::LEN;
            let next = data + request.payload_len() as usize;
            if next > filled {
                break;
            }
            if request.command == CommandType::DISC {
                return Ok(());
            }
            staged += answer(storage, &request, &window[data..next], &mut replies[staged..])?;
            start = next;
            if staged > MOST {
                end.write_all(&replies[..staged])?;
                staged = 0;
            }
        }
        if staged > 0 {
            end.write_all(&replies[..staged])?;
            staged = 0;
        }
        if start == filled {
            (start, filled) = (0, 0);
        } else if start > FAR || filled - start < SMALL {
            window.copy_within(start..filled, 0);
            (start, filled) = (0, filled - start);
        }
        let most = (filled + MOST).min(WINDOW);
        match end.read(&mut window[filled..most])? {
            0 => return Ok(()),
            count => filled += count,
        }
    }
}

/// Puts the reply into `room`, and says how long it is.
fn answer(storage: &Storage, request: &Request, data: &[u8], room: &mut [u8]) -> io::Result<usize> {
    let (error, cookie) = (NbdError::SUCCESS, request.cookie);
    let (header, room) = room.split_at_mut(SimpleReply::LEN);
    header.copy_from_slice(&SimpleReply { error, cookie }.encode());
    let mut length = 0;
    match request.command {
        CommandType::READ => {
            length = request.length as usize;
            storage.read(&mut room[..length], request.offset)?;
        }
        CommandType::WRITE => storage.write(data, request.offset)?,
        CommandType::FLUSH => storage.flush()?,
        _ => {}
    }
    Ok(SimpleReply::LEN + length)
}
