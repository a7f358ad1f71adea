//! Buffers for direct I/O, which wants data at round addresses while the kernel's come at odd
//! ones: right behind a request in a ring.

use std::cell::RefCell;

/// What every file system and device accepts.
const ALIGNMENT: usize = 4096;
/// Longest buffer: a longer request is worth more than one system call.
pub(crate) const MAX_BUFFER_LEN: usize = 1 << 20;
/// A thread keeps a buffer up to this size for its next request.
const MAX_KEPT_BUFFER: usize = 256 << 10;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Whether data can be handed to the kernel where it is.
pub(crate) fn is_aligned(data: &[u8]) -> bool {
    data.as_ptr().align_offset(ALIGNMENT) == 0
}

/// Lends a buffer of `length` bytes, at most [`MAX_BUFFER_LEN`], at a round address. Its content is
/// whatever was left in it. `user` must not borrow a second one.
pub(crate) fn with_buffer<R>(length: usize, user: impl FnOnce(&mut [u8]) -> R) -> R {
    debug_assert!(length <= MAX_BUFFER_LEN);
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < length + ALIGNMENT {
            *buffer = vec![0; length + ALIGNMENT];
        }
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        let result = user(&mut buffer[start..start + length]);
        if buffer.len() > MAX_KEPT_BUFFER + ALIGNMENT {
            *buffer = Vec::new();
        }
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_big_ones_given_back() {
        for length in [512, 4096, MAX_KEPT_BUFFER, MAX_BUFFER_LEN, 512] {
            with_buffer(length, |buffer| {
                assert!(is_aligned(buffer));
                assert_eq!(buffer.len(), length);
                buffer.fill(0xff);
            });
            assert!(BUFFER.with_borrow(Vec::len) <= MAX_KEPT_BUFFER + ALIGNMENT);
        }
    }
}
