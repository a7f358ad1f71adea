//! Memory for the data of a read, which the program fills.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Alignment in bytes, for direct I/O.
const ALIGNMENT: usize = 4096;

/// Zeroed memory: what the program does not fill is no secret of another request.
pub(crate) struct Buffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its memory, like a Vec.
unsafe impl Send for Buffer {}

impl Buffer {
    /// `None` if there is no memory, or `length` is 0.
    pub(crate) fn new(length: usize) -> Option<Self> {
        let layout = Layout::from_size_align(length, ALIGNMENT).ok()?;
        if length == 0 {
            return None;
        }
        // SAFETY: the layout has a size above 0.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { start, layout })
    }

    /// For the program.
    pub(crate) fn pointer(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The data, once the program has given the buffer back by completing the request.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the memory is owned and initialised. A program that goes on writing to the buffer of a
        // request that it has completed breaks its contract; such bytes are only copied from here.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout, and is freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_and_zeroed() {
        let buffer = Buffer::new(12_345).unwrap();
        assert_eq!(buffer.pointer().align_offset(ALIGNMENT), 0);
        assert_eq!(buffer.bytes(), vec![0; 12_345]);
        assert!(Buffer::new(0).is_none());
    }
}
