//! Programs with the library, as processes, against scripted holders.

#![allow(clippy::unwrap_used, reason = "all of it is a test")]

mod compile;
mod holder;
mod languages;
mod many;
mod misuse;
mod one;
mod sanitizers;
