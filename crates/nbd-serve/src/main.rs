//! nbd-serve
fn main() {}
