//! nbd-kernel-holder
fn main() {}
