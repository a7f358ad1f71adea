//! nbd-ctl
fn main() {}
