//! The holder of a device, seen from nbd-ctl.
//!
//! | module | idea |
//! |---|---|
//! | [`client`] | a conversation with a holder that is alive |
//! | [`device_state`] | what there is of a device: a holder, an orphan, a stale folder |
//! | [`abandoned`] | a device that has neither holder nor sitter |
//! | [`spawn`] | starting a holder, and listening to it until its device is ready |
//! | [`adopt`] | a new holder for a device whose holder is gone |
//! | [`take_down`] | the end of a device that nothing can adopt |
//! | [`logs`] | what holder and backends had to say, also after their end |

pub(crate) mod abandoned;
pub(crate) mod adopt;
pub(crate) mod client;
pub(crate) mod device_state;
pub(crate) mod logs;
pub(crate) mod spawn;
pub(crate) mod take_down;
