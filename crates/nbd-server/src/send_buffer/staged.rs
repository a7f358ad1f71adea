//! Bytes that are to be sent, and data in mapped memory between them.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::take;

use nbd_backend::MappedRange;

/// Size of the buffer at first, in bytes. Small, because a server may have hundreds of clients that
/// ask for little at once ...
const INITIAL_BUFFER_SIZE: usize = 64 << 10;
/// ... and of its later steps. Larger buffers are a multiple of this.
const BUFFER_SIZE: usize = 512 << 10;

/// What is staged and not sent.
pub(super) struct Staged {
    /// Bytes to send are at `start..end`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Data in mapped memory, and the index in the buffer before which it is sent.
    mapped: VecDeque<(usize, MappedRange)>,
    /// Total bytes of `mapped`.
    mapped_len: usize,
}

impl Staged {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; INITIAL_BUFFER_SIZE],
            start: 0,
            end: 0,
            mapped: VecDeque::new(),
            mapped_len: 0,
        }
    }

    /// Bytes to send.
    pub(super) fn len(&self) -> usize {
        self.buffered() + self.mapped_len
    }

    /// Bytes to send that lie in the buffer.
    pub(super) fn buffered(&self) -> usize {
        self.end - self.start
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffered() == 0 && self.mapped.is_empty()
    }

    /// Room for the next `length` bytes; [`advance`](Self::advance) stages them.
    pub(super) fn room(&mut self, length: usize) -> &mut [u8] {
        if self.buffer.len() - self.end < length {
            self.buffer.copy_within(self.start..self.end, 0);
            for (place, _) in &mut self.mapped {
                *place -= self.start;
            }
            (self.start, self.end) = (0, self.end - self.start);
            if self.buffer.len() < self.end + length {
                self.buffer.resize((self.end + length).next_multiple_of(BUFFER_SIZE), 0);
            }
        }
        &mut self.buffer[self.end..self.end + length]
    }

    /// Stages bytes that were put into [`room`](Self::room).
    pub(super) fn advance(&mut self, length: usize) {
        assert!(length <= self.buffer.len() - self.end, "staging what has no room");
        self.end += length;
    }

    pub(super) fn stage(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.advance(bytes.len());
    }

    /// Stages data in mapped memory.
    pub(super) fn stage_mapped(&mut self, range: MappedRange) {
        self.mapped_len += range.len();
        self.mapped.push_back((self.end, range));
    }

    /// All of it, in the order in which it is sent. For `sendmsg(2)` alone where there is mapped memory.
    #[allow(unsafe_code)]
    pub(super) fn parts(&self) -> Vec<IoSlice<'_>> {
        let (staged, mut start) = (&self.buffer[..self.end], self.start);
        let mut parts = Vec::with_capacity(2 * self.mapped.len() + 1);
        for (place, range) in &self.mapped {
            if start < *place {
                parts.push(IoSlice::new(&staged[start..*place]));
            }
            // SAFETY: the pieces are for sendmsg(2) alone: a secured connection takes no mapped.
            parts.push(unsafe { range.io_slice() });
            start = *place;
        }
        if start < staged.len() {
            parts.push(IoSlice::new(&staged[start..]));
        }
        parts
    }

    /// Removes the first bytes of it, which were sent.
    pub(super) fn consume(&mut self, mut count: usize) {
        while count > 0 {
            let next = self.mapped.front().map_or(self.end, |(place, _)| *place);
            let staged = count.min(next - self.start);
            self.start += staged;
            count -= staged;
            let Some((_, range)) = self.mapped.front_mut().filter(|_| self.start == next) else {
                assert_eq!(count, 0, "more was sent than there is");
                return;
            };
            let mapped_len = count.min(range.len());
            range.consume(mapped_len);
            self.mapped_len -= mapped_len;
            count -= mapped_len;
            if range.is_empty() {
                self.mapped.pop_front();
            }
        }
    }

    /// Copies the data of mapped memory, because a page of it is gone. If the storage cannot be
    /// read either, the client must be disconnected: a header that promises the data may be sent.
    pub(super) fn copy_ranges(&mut self) -> io::Result<()> {
        let (staged, mapped) = (self.buffer[self.start..self.end].to_vec(), take(&mut self.mapped));
        let mut at = self.start;
        (self.start, self.end, self.mapped_len) = (0, 0, 0);
        let mut rest = &staged[..];
        for (place, range) in mapped {
            let (before, after) = rest.split_at(place - at);
            (at, rest) = (place, after);
            self.stage(before);
            let room = self.room(range.len());
            range.read(room).inspect_err(|error| {
                tracing::error!("{} bytes of storage that were announced to a client are gone, so it is disconnected: {error}",
                    range.len());
            })?;
            self.advance(range.len());
        }
        self.stage(rest);
        Ok(())
    }

    /// Removes all of it.
    pub(super) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
        self.mapped.clear();
        self.mapped_len = 0;
        if self.buffer.len() > 4 * BUFFER_SIZE {
            self.buffer = vec![0; BUFFER_SIZE];
        }
    }
}
