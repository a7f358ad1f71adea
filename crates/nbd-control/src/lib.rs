//! nbd-control
