//! What the served files contain.

use std::fs;
use std::path::Path;

/// Bytes of which no two neighbouring blocks are alike, and none is empty.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at >> 9) as u8).wrapping_mul(31) ^ at as u8 | 1).collect()
}

/// Data, a hole and data again: 4 MiB at the beginning, the last one, and 11 MiB of nothing.
pub(crate) fn sparse(path: &Path) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let file = fs::File::create(path).unwrap();
    file.set_len(16 << 20).unwrap();
    file.write_all_at(&pattern(4 << 20), 0).unwrap();
    file.write_all_at(&pattern(1 << 20), 15 << 20).unwrap();
    fs::read(path).unwrap()
}
