//! The storage of the backends that are killed: a memfd that outlives them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use nbd_backend::{
    AsyncBackend, Backend, Capabilities, Completion, Geometry, InlineBackend, NeverBlocks, Task,
    ZeroOptions,
};
use nbd_proto::{Command, NbdError};

use crate::script::{DEVICE, Manner};

/// A write is stored in pieces of this size, so that a backend may die in the middle of one.
const PIECE: usize = 512;

/// The device's bytes, behind them those that have been made durable, and behind these a byte for
/// each flush that a worker has executed.
pub(crate) struct Memory {
    file: File,
    manner: Manner,
    held: Mutex<Vec<Box<dyn Task>>>,
}

impl Memory {
    pub(crate) fn new(file: File, manner: Manner) -> Self {
        Self { file, manner, held: Mutex::default() }
    }

    fn store(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        let halves = if fua { &[0, DEVICE][..] } else { &[0][..] };
        for start in halves {
            for (piece, at) in data.chunks(PIECE).zip((start + offset..).step_by(PIECE)) {
                self.file.write_all_at(piece, at)?;
            }
        }
        Ok(())
    }

    fn clear(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        self.store(&vec![0; length as usize], offset, fua)
    }

    fn perform(&self, task: Box<dyn Task>) {
        task.begin();
        let mut data = Vec::new();
        let done = match *task.command() {
            Command::Read { offset, length } => {
                data.resize(length as usize, 0);
                self.read_at(&mut data, offset)
            }
            Command::Write { offset, fua, .. } => self.store(task.payload(), offset, fua),
            Command::Flush => self.flush(),
            Command::Trim { offset, length, fua }
            | Command::WriteZeroes { offset, length, fua, .. } => self.clear(offset, length, fua),
            _ => Err(io::ErrorKind::Unsupported.into()),
        };
        let is_read = matches!(task.command(), Command::Read { .. });
        task.finish(match done {
            Ok(()) if is_read => Completion::Data(&data),
            Ok(()) => Completion::Done,
            Err(_) => Completion::Error(NbdError::EIO),
        });
    }
}

impl Backend for Memory {
    fn geometry(&self) -> Geometry {
        let capabilities = Capabilities {
            flush: true,
            fua: true,
            trim: true,
            write_zeroes: true,
            ..Capabilities::default()
        };
        Geometry { size: DEVICE, block_size: 512, capabilities }
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        self.store(data, offset, fua)
    }

    fn flush(&self) -> io::Result<()> {
        let mut all = vec![0; DEVICE as usize];
        self.file.read_exact_at(&mut all, 0)?;
        self.file.write_all_at(&all, DEVICE)?;
        let is_worker =
            std::thread::current().name().is_some_and(|name| name.starts_with("worker-"));
        if is_worker {
            self.file.write_all_at(&[1], self.file.metadata()?.len())?;
        }
        Ok(())
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        self.clear(offset, length, fua)
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: ZeroOptions) -> io::Result<()> {
        self.clear(offset, length, how.fua)
    }

    fn as_inline(&self) -> Option<&dyn InlineBackend> {
        match self.manner {
            Manner::Inline => Some(&NeverBlocks(u64::MAX)),
            Manner::Workers => Some(self),
            Manner::Held => None,
        }
    }

    fn as_async(&self) -> Option<&dyn AsyncBackend> {
        if self.manner == Manner::Held { Some(self) } else { None }
    }
}

impl InlineBackend for Memory {
    fn may_block_inline(&self, _command: &Command) -> bool {
        true
    }
}

impl AsyncBackend for Memory {
    fn submit_async(&self, task: Box<dyn Task>) {
        if !matches!(task.command(), Command::Flush) {
            return self.held.lock().unwrap_or_else(PoisonError::into_inner).push(task);
        }
        let held = std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner));
        for task in held.into_iter().rev().chain([task]) {
            self.perform(task);
        }
    }
}
