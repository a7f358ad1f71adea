//! How not to do it: a block device that is served by the very process one thread of which sits in
//! `NBD_DO_IT`. `docs/design/the-wedge.md` tells what came of that. To see it, in the machine of
//! `scripts/vm`:
//!
//! ```text
//! target/debug/examples/wedge /dev/nbd0 &
//! dd if=/dev/nbd0 of=/dev/null            # works
//! gdb -p $!                               # and now dd fails, and the device is gone
//! ```
//!
//! With an offset, a request that touches it fails an assertion, as in the story.

// The driver's ioctls are known to one module of the holder; so this uses that module.
#[path = "../src/kernel/ioctl.rs"]
#[expect(dead_code, reason = "nothing here disconnects in order")]
mod ioctl;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::thread;

use nbd_proto::{CommandType, NbdError, Request, SimpleReply, TransmissionFlags};

const BLOCK_SIZE: u32 = 4096;
const BLOCKS: u64 = 2048;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let served = match &arguments[..] {
        [path] => attach(path).and_then(|socket| serve(socket, None)),
        [path, offset] => match offset.parse() {
            Ok(offset) => attach(path).and_then(|socket| serve(socket, Some(offset))),
            Err(error) => Err(io::Error::other(error)),
        },
        _ => Err(io::Error::other("usage: wedge /dev/nbdN [OFFSET]")),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wedge: {error}");
            ExitCode::FAILURE
        }
    }
}

fn attach(path: &str) -> io::Result<UnixStream> {
    let device = File::options().read(true).write(true).open(path)?;
    let (ours, kernels) = UnixStream::pair()?;
    ioctl::set_sock(device.as_fd(), kernels.as_fd())?;
    ioctl::set_block_size(device.as_fd(), BLOCK_SIZE)?;
    ioctl::set_size_blocks(device.as_fd(), BLOCKS)?;
    ioctl::set_flags(device.as_fd(), TransmissionFlags::HAS_FLAGS.bits())?;
    // The mistake. The call does not return and there is other work to do; but whatever stops
    // this process, if only to look at it, interrupts the thread in there as well.
    thread::spawn(move || {
        let result = ioctl::do_it(device.as_fd());
        eprintln!("wedge: NBD_DO_IT is over: {result:?}");
        let _ = ioctl::clear_sock(device.as_fd());
    });
    Ok(ours)
}

/// Answers reads and writes from memory until the driver has hung up.
fn serve(mut socket: UnixStream, planted: Option<u64>) -> io::Result<()> {
    let mut disk = vec![0; (u64::from(BLOCK_SIZE) * BLOCKS) as usize];
    let mut header = [0; Request::LEN];
    while socket.read_exact(&mut header).is_ok() {
        let request = Request::decode(&header).map_err(io::Error::other)?;
        let Request { command, cookie, offset, length, .. } = request;
        let range = offset..offset.saturating_add(length.into());
        if planted.is_some_and(|planted| range.contains(&planted)) {
            eprintln!("wedge: assertion failed: a request for {range:?}");
            // As assert(3) does, and at once: no unwinding that would hang up first.
            std::process::abort();
        }
        if command == CommandType::DISC {
            break;
        }
        let place = disk.get_mut(range.start as usize..range.end as usize);
        let place = place.ok_or_else(|| io::Error::other("a request beyond the end"))?;
        if command == CommandType::WRITE {
            socket.read_exact(place)?;
        }
        socket.write_all(&SimpleReply { error: NbdError::SUCCESS, cookie }.encode())?;
        if command == CommandType::READ {
            socket.write_all(place)?;
        }
    }
    Ok(())
}
