//! What the receiving thread does next.

use super::direct_receive::DirectReceive;

/// What the receiving thread does next, when no further request can be executed.
pub(super) enum NextAction {
    /// Receive: the next request needs this many bytes.
    Receive(usize),
    /// Receive this write's data directly into the storage's memory.
    ReceiveDirectly(DirectReceive),
    /// Discard this many bytes of a payload that is longer than the negotiated maximum.
    SkipPayload(u64),
    /// Wait: the next request would exceed the limits of requests in flight.
    WaitForTasks,
    /// Wait for this many bytes of common memory for the next request's data.
    WaitForMemory(u64),
    Disconnect,
}
