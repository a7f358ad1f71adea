//! nbd-ledger
