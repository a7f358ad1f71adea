//! Numbers that look random and can be repeated.

/// Mixes words into one (splitmix64, a round for each).
pub(crate) fn mix(words: &[u64]) -> u64 {
    words.iter().fold(0, |state, word| {
        let mixed = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    })
}
