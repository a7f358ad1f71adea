//! Programs with the library, as processes, against scripted holders.

mod compile;
mod holder;
mod languages;
mod many;
mod misuse;
mod one;
