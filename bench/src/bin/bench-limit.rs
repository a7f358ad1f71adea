//! The limit: an NBD server with no bookkeeping at all.
//!
//! It answers from mapped memory, or from a mapped file, with one system call to receive what there
//! is and one to send all answers, without a copy of its own where that is less work; and it looks for
//! the next request without sleeping, if it has a processor to itself. It trusts its clients,
//! survives nothing and offers nothing. What is slower than this pays for something.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Parser;
use nbd_bench::end::{End, Listener};
use nbd_bench::handshake;
use nbd_bench::mapped::{Mapped, Message};
use nbd_proto::{CommandType, NbdError, Request, SimpleReply, TransmissionFlags};

/// Bytes to receive at once.
const WINDOW: usize = 512 << 10;
/// A write of more than this, of which something is still to come, is received where it belongs.
const DIRECT: usize = 16 << 10;

/// Answers NBD clients from memory, or from a file.
#[derive(Debug, Parser)]
#[command(name = "bench-limit")]
struct Cli {
    /// `unix:PATH` or `tcp:HOST:PORT`.
    address: String,
    /// Size of the memory in MiB.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Serve this file instead.
    #[arg(long)]
    file: Option<PathBuf>,
}

struct Storage {
    mapped: Mapped,
    file: Option<File>,
}

/// Connections that are served.
static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

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
    let storage = match &cli.file {
        Some(path) => {
            let opened = File::options().read(true).write(true).open(path);
            let mapped = opened.and_then(|file| Ok((Mapped::file(&file)?, file)));
            let (mapped, file) = mapped.map_err(|error| format!("{}: {error}", path.display()))?;
            Storage { mapped, file: Some(file) }
        }
        None => Storage { mapped: Mapped::memory(cli.size << 20)?, file: None },
    };
    let storage = Arc::new(storage);
    let listener = Listener::bind(&cli.address);
    let listener = listener.map_err(|error| format!("{}: {error}", cli.address))?;
    let processors = std::thread::available_parallelism()?.get();
    loop {
        let end = listener.accept()?;
        let storage = Arc::clone(&storage);
        std::thread::spawn(move || {
            CONNECTIONS.fetch_add(1, Ordering::Relaxed);
            let served = serve(end, &storage, processors);
            CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
            served
        });
    }
}

/// Serves one connection; whatever ends it is the client's business.
fn serve(mut end: End, storage: &Storage, processors: usize) -> io::Result<()> {
    let flags = TransmissionFlags::HAS_FLAGS
        | TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_TRIM
        | TransmissionFlags::CAN_MULTI_CONN;
    if !handshake::accept(&mut end, storage.mapped.size(), flags.bits())? {
        return Ok(());
    }
    let mut window = vec![0; WINDOW];
    let (mut headers, mut message) = (Vec::new(), Message::default());
    let mut filled = 0;
    loop {
        let mut start = 0;
        while let Some(header) = window[start..filled].first_chunk() {
            let request = Request::decode(header).map_err(|_| io::ErrorKind::InvalidData)?;
            let data = start + Request::LEN;
            let next = data + request.payload_len() as usize;
            if request.command == CommandType::DISC {
                return Ok(());
            }
            if next > filled && next - data <= DIRECT {
                break;
            }
            let received = &window[data..next.min(filled)];
            execute(storage, &request, received, &end)?;
            reply(storage, &request, &mut headers, &mut message)?;
            start = next.min(filled);
            if message.parts() + 2 > Message::MOST {
                message.send(end.as_fd(), &headers)?;
                headers.clear();
            }
        }
        message.send(end.as_fd(), &headers)?;
        headers.clear();
        window.copy_within(start..filled, 0);
        filled -= start;
        // The client needs a processor, too.
        if CONNECTIONS.load(Ordering::Relaxed) < processors {
            end.look()?;
        }
        match end.read(&mut window[filled..])? {
            0 => return Ok(()),
            count => filled += count,
        }
    }
}

/// Executes what changes something. `data` is what has come of a write.
fn execute(storage: &Storage, request: &Request, data: &[u8], end: &End) -> io::Result<()> {
    match (request.command, &storage.file) {
        (CommandType::WRITE, _) => {
            storage.mapped.store(data, request.offset)?;
            let (at, rest) =
                (request.offset + data.len() as u64, request.length as usize - data.len());
            storage.mapped.receive(end.as_fd(), at, rest)
        }
        (CommandType::FLUSH, Some(file)) => file.sync_data(),
        _ => Ok(()),
    }
}

/// Appends the reply.
fn reply(
    storage: &Storage,
    request: &Request,
    headers: &mut Vec<u8>,
    message: &mut Message,
) -> io::Result<()> {
    let header = SimpleReply { error: NbdError::SUCCESS, cookie: request.cookie }.encode();
    headers.extend_from_slice(&header);
    message.push_bytes(header.len());
    if request.command == CommandType::READ {
        message.push_range(&storage.mapped, request.offset, request.length as usize)?;
    }
    Ok(())
}
