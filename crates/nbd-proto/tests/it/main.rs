//! The tests of nbd-proto, one binary.
//!
//! - `layout`: each message against bytes written out by hand from the specification;
//! - `roundtrip`: whatever is encoded decodes to the same, for all values;
//! - `hostile`: no bytes make a decoder panic;
//! - `check`: requests against exports, by the party at fault;
//! - `check_extended`: the same for extended requests, where they differ;
//! - `check_properties`: any request against any export;
//! - `payload_errors`: malformed payloads, by the party at fault;
//! - `handshake`: exports and messages for the tests of the handshake;
//! - `handshake_server`, `handshake_client`: each side by itself, by the party at fault;
//! - `handshake_pair`: both together, cut at every byte, and hostile peers of both;
//! - `names`: what people get to read, and the map to errno.

mod check;
mod check_extended;
mod check_properties;
mod handshake;
mod handshake_client;
mod handshake_pair;
mod handshake_server;
mod hostile;
mod layout;
mod names;
mod payload_errors;
mod roundtrip;
mod strategies;
