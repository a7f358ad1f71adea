//! The words of a ledger, and raw access to them.

pub mod layout;
pub(crate) mod map;
pub(crate) mod message;
pub(crate) mod request;
