//! A file with an assertion in the way: a request that touches the byte at OFFSET aborts the
//! process. `nbd-ctl attach -- target/debug/examples/crasher disk.img 4096`, then read there: after
//! three crashes that read gets EIO, and all other requests are served as if nothing had happened.

use nbd_backend::{Backend, Capabilities, Geometry};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

struct Crasher {
    file: File,
    size: u64,
    offset: Option<u64>,
}

impl Crasher {
    fn step_on(&self, offset: u64, length: usize) {
        let range = offset..offset + length as u64;
        assert!(!self.offset.is_some_and(|mine| range.contains(&mine)), "stepped on {range:?}");
    }
}

impl Backend for Crasher {
    fn geometry(&self) -> Geometry {
        let capabilities = Capabilities { flush: true, ..Capabilities::default() };
        Geometry { size: self.size, block_size: 512, capabilities }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.step_on(offset, buffer.len());
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64, _fua: bool) -> io::Result<()> {
        self.step_on(offset, data.len());
        self.file.write_all_at(data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn open(arguments: &[String]) -> Result<Crasher, Box<dyn std::error::Error>> {
    let (path, offset) = match arguments {
        [path] => (path, None),
        [path, offset] => (path, Some(offset.parse()?)),
        _ => return Err("usage: crasher FILE [OFFSET]".into()),
    };
    let file = File::options().read(true).write(true).open(path)?;
    let size = file.metadata()?.len() / 512 * 512;
    Ok(Crasher { file, size, offset })
}

fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match open(&arguments) {
        Ok(crasher) => nbd_backend::run(&format!("crasher:{}", arguments.join(",")), crasher),
        Err(error) => {
            eprintln!("crasher: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
