//! Blocks that are kept for later.

/// Most bytes of unused blocks that are kept for later grants.
const MAX_CACHED_BYTES: usize = 32 << 20;

/// Blocks that are resident and that no grant counts.
#[derive(Default)]
pub(super) struct BlockCache {
    pub(super) unused: Vec<Vec<u8>>,
    /// Bytes of blocks in use whose grants do not cover them yet.
    pub(super) lent: usize,
}

impl BlockCache {
    pub(super) fn take(&mut self, size: usize) -> Option<Vec<u8>> {
        let at = self.unused.iter().position(|block| block.len() == size)?;
        Some(self.unused.swap_remove(at))
    }

    /// Whether another block may be kept. Under a small limit of memory, unused blocks must not take
    /// most of it.
    pub(super) fn has_room(&self, size: usize, limit: usize) -> bool {
        let cached = self.unused.iter().map(Vec::len).sum::<usize>() + self.lent;
        cached + size <= MAX_CACHED_BYTES.min(limit / 4)
    }
}
