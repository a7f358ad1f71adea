//! Memory to receive into, counted or a connection's own.

use std::sync::Arc;

use super::{Grant, MemoryBudget};

/// Bytes in common memory, or in a connection's own.
#[derive(Debug)]
pub(crate) struct Block {
    /// At least what may be used now. Has the capacity for `size`, so it never moves.
    bytes: Vec<u8>,
    /// Bytes of the block when its grant is complete.
    size: usize,
    counted: Option<Counted>,
    /// Bytes from the cache that the grant does not cover yet. They count as cached, so that blocks
    /// in the hands of slow clients cannot add up to more than the cache.
    lent: usize,
}

/// What counts a block in common memory.
#[derive(Debug)]
struct Counted {
    grant: Grant,
    memory: Arc<MemoryBudget>,
}

impl Block {
    /// A block of a connection's own, which no grant counts.
    pub(crate) fn own(size: usize) -> Self {
        Self { bytes: vec![0; size], size, counted: None, lent: 0 }
    }

    pub(crate) fn is_own(&self) -> bool {
        self.counted.is_none()
    }

    /// Bytes of the block when all of it is granted.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Bytes that may be used.
    pub(crate) fn usable(&self) -> usize {
        match &self.counted {
            Some(Counted { grant, .. }) if grant.is_partial() => grant.bytes,
            _ => self.size,
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Takes another step of the block's memory if that is possible at once.
    pub(crate) fn try_grow(&mut self) -> bool {
        let has_grown = self.counted.as_mut().is_some_and(|it| it.grant.try_grow());
        self.provide();
        has_grown
    }

    /// Takes another step of the block's memory, and waits for it. `false` if the client is gone by
    /// then; see [`MemoryBudget::take`].
    pub(crate) fn grow(&mut self, is_gone: impl FnMut() -> bool) -> bool {
        let has_grown = self.counted.as_mut().is_none_or(|it| it.grant.grow(is_gone));
        self.provide();
        has_grown
    }

    /// Makes use of what is granted. Never moves the bytes: there is capacity for all.
    fn provide(&mut self) {
        let usable = self.usable();
        extend_with_zeroes(&mut self.bytes, usable);
        let lent = self.lent.min(self.size - usable);
        if lent < self.lent
            && let Some(Counted { memory, .. }) = &self.counted
        {
            memory.cache().lent -= self.lent - lent;
            self.lent = lent;
        }
    }
}

impl MemoryBudget {
    /// A block of `size` bytes, counted by `grant`. Its content is arbitrary.
    pub(crate) fn block(self: &Arc<Self>, grant: Grant, size: usize) -> Block {
        let granted = if grant.is_partial() { grant.bytes } else { size };
        let mut cache = self.cache();
        let cached = cache.take(size);
        let lent = if cached.is_some() { size - granted } else { 0 };
        cache.lent += lent;
        drop(cache);
        let bytes = cached.unwrap_or_else(|| zeroes(granted, size));
        let counted = Some(Counted { grant, memory: Arc::clone(self) });
        Block { bytes, size, counted, lent }
    }
}

/// Zeroes for a block: at least as many as are granted, and memory of the system for no more.
fn zeroes(count: usize, capacity: usize) -> Vec<u8> {
    // The C library maps each block of more than 32 MiB (its DEFAULT_MMAP_THRESHOLD_MAX), and the
    // system provides a page at its first use. Blocks up to that length may come from its heap, and
    // are cleared then, which uses all of their pages.
    const ALWAYS_MAPPED: usize = 32 << 20;
    if count == capacity || capacity > ALWAYS_MAPPED {
        return vec![0; capacity];
    }
    let mut bytes = Vec::with_capacity(capacity);
    extend_with_zeroes(&mut bytes, count);
    bytes
}

/// Makes the bytes at least so many. Copies zeroes, because `Vec::resize` takes a byte at a time in
/// a build without optimization: tests with long writes took five times as long.
fn extend_with_zeroes(bytes: &mut Vec<u8>, count: usize) {
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    while bytes.len() < count {
        let missing = count - bytes.len();
        bytes.extend_from_slice(&ZEROES[..missing.min(ZEROES.len())]);
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let Some(Counted { memory, .. }) = &self.counted else {
            return;
        };
        let mut cache = memory.cache();
        cache.lent -= self.lent;
        let is_whole = self.bytes.len() == self.size;
        if is_whole && cache.has_room(self.size, memory.limit) {
            cache.unused.push(std::mem::take(&mut self.bytes));
        }
    }
}
