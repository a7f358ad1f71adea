//! A mirror: writes go to two files, reads come from the first. Try it with
//! `nbd-ctl attach -- target/debug/examples/mirror a.img b.img`.
//!
//! It has no recovery code. If it dies between the two writes, then the files differ; but the
//! write was not answered, so the next mirror gets it again and makes them alike.

use nbd_backend::{Backend, Capabilities, Geometry};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

struct Mirror([File; 2], u64);

impl Backend for Mirror {
    fn geometry(&self) -> Geometry {
        Geometry {
            size: self.1,
            block_size: 512,
            capabilities: Capabilities { flush: true, ..Capabilities::default() },
        }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0[0].read_exact_at(buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64, _fua: bool) -> io::Result<()> {
        let mut files = self.0.iter();
        files.try_for_each(|file| file.write_all_at(data, offset))
    }

    fn flush(&self) -> io::Result<()> {
        self.0.iter().try_for_each(File::sync_data)
    }
}

fn open(paths: &[String]) -> io::Result<Mirror> {
    let [a, b] = paths else {
        return Err(io::Error::other("usage: mirror FILE FILE"));
    };
    let open = |path| File::options().read(true).write(true).open(path);
    let files = [open(a)?, open(b)?];
    let size = files[0].metadata()?.len().min(files[1].metadata()?.len());
    Ok(Mirror(files, size / 512 * 512))
}

fn main() -> std::process::ExitCode {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    match open(&paths) {
        Ok(mirror) => nbd_backend::run(&format!("mirror:{}", paths.join(",")), mirror),
        Err(error) => {
            eprintln!("mirror: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
