//! A connected nbd-ctl.

use std::time::Instant;

use nbd_control::Channel;

/// A connected nbd-ctl.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) channel: Channel,
    /// It is a member of the group, and neither root nor us.
    pub(crate) is_read_only: bool,
    /// When it connected, or had sent its last message.
    pub(crate) heard: Instant,
    /// Since when it owes the rest of a message, or its greeting.
    pub(crate) begun: Option<Instant>,
}

impl Client {
    /// One that may give orders.
    pub(crate) fn new(channel: Channel) -> Self {
        let now = Instant::now();
        let begun = (!channel.is_at_rest()).then_some(now);
        Self { channel, is_read_only: false, heard: now, begun }
    }
}
