//! Buffers for reuse: fresh memory costs as much time as the data that is copied into it.

use std::sync::Mutex;

use crate::sync::lock;

/// The most memory that unused buffers keep, in bytes.
const MAX_POOLED_BYTES: usize = 16 << 20;

/// Unused buffers.
#[derive(Debug, Default)]
pub(crate) struct BufferPool(Mutex<Vec<Vec<u8>>>);

impl BufferPool {
    /// A buffer of this length, with anything in it.
    pub(crate) fn take(&self, length: usize) -> Vec<u8> {
        let mut buffers = lock(&self.0);
        let fitting = buffers.iter().position(|buffer| buffer.capacity() >= length);
        let buffer = fitting.map(|index| buffers.swap_remove(index));
        drop(buffers);
        match buffer {
            None => vec![0; length],
            Some(mut buffer) => {
                buffer.resize(length, 0);
                buffer
            }
        }
    }

    pub(crate) fn put(&self, buffer: Vec<u8>) {
        let mut buffers = lock(&self.0);
        let kept: usize = buffers.iter().map(Vec::capacity).sum();
        if buffer.capacity() > 0 && kept + buffer.capacity() <= MAX_POOLED_BYTES {
            buffers.push(buffer);
        }
    }
}
