//! Programs in C with the library, as processes, against scripted holders.

mod compile;
mod holder;
mod many;
mod misuse;
mod one;
