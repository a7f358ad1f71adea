//! Buffers that are used again: fresh memory costs as much as the data that goes into it.

use std::sync::Mutex;

use crate::lock;

/// Memory that is kept, in bytes.
const MOST: usize = 16 << 20;

/// Buffers that nobody uses.
#[derive(Debug, Default)]
pub(crate) struct Stock(Mutex<Vec<Vec<u8>>>);

impl Stock {
    /// A buffer of this length, with anything in it.
    pub(crate) fn take(&self, length: usize) -> Vec<u8> {
        let mut stock = lock(&self.0);
        let fitting = stock.iter().position(|buffer| buffer.capacity() >= length);
        let buffer = fitting.map(|index| stock.swap_remove(index));
        drop(stock);
        match buffer {
            None => vec![0; length],
            Some(mut buffer) => {
                buffer.resize(length, 0);
                buffer
            }
        }
    }

    pub(crate) fn put(&self, buffer: Vec<u8>) {
        let mut stock = lock(&self.0);
        let kept: usize = stock.iter().map(Vec::capacity).sum();
        if buffer.capacity() > 0 && kept + buffer.capacity() <= MOST {
            stock.push(buffer);
        }
    }
}
