//! Big-endian integers at fixed offsets: the one place where numbers become bytes.
//!
//! The callers pass constant offsets into arrays of constant size, so the bounds checks vanish
//! when compiled; an offset that is wrong fails the layout tests at once.

pub(crate) const fn put_u16(message: &mut [u8], at: usize, value: u16) {
    put(message, at, value.to_be_bytes());
}

pub(crate) const fn put_u32(message: &mut [u8], at: usize, value: u32) {
    put(message, at, value.to_be_bytes());
}

pub(crate) const fn put_u64(message: &mut [u8], at: usize, value: u64) {
    put(message, at, value.to_be_bytes());
}

pub(crate) const fn get_u16(message: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(get(message, at))
}

pub(crate) const fn get_u32(message: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(get(message, at))
}

pub(crate) const fn get_u64(message: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(get(message, at))
}

#[inline(always)]
const fn put<const N: usize>(message: &mut [u8], at: usize, bytes: [u8; N]) {
    match message.split_at_mut(at).1.first_chunk_mut() {
        Some(place) => *place = bytes,
        None => panic!("field outside of its message"),
    }
}

#[inline(always)]
const fn get<const N: usize>(message: &[u8], at: usize) -> [u8; N] {
    match message.split_at(at).1.first_chunk() {
        Some(bytes) => *bytes,
        None => panic!("field outside of its message"),
    }
}
