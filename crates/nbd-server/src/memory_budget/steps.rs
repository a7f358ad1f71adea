//! Messages that hold a part of the memory and ask for more: whether another step is safe.
//!
//! Connections that each hold a part and wait for the rest can block each other for ever. This is
//! the banker's algorithm for one resource, which prevents that: a step is granted only if there
//! stays an order in which all of these messages can be completed, each with what is free and what
//! the messages before it give back.

/// Bytes of a step. A write of 2 MiB and its header fit, so all but the longest writes take their
/// memory at once.
pub(crate) const STEP: usize = (2 << 20) + (4 << 10);

/// A message that has some of its memory, and not all.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartialMessage {
    pub(super) held: usize,
    /// Bytes that it still needs.
    pub(super) rest: usize,
}

impl PartialMessage {
    /// The message after its next step of `bytes`.
    pub(super) fn after(self, bytes: usize) -> Self {
        Self { held: self.held + bytes, rest: self.rest - bytes }
    }

    /// Bytes of its next step.
    pub(super) fn next_step(self) -> usize {
        self.rest.min(STEP)
    }
}

/// Whether all messages can be completed one after the other.
///
/// Memory that is not held by these messages counts as free: its holders never wait for more, so
/// they give it back. The order by what is missing is the best one: if the message that needs the
/// least cannot be completed, none can.
pub(super) fn is_safe(limit: usize, messages: impl Iterator<Item = PartialMessage>) -> bool {
    let mut messages: Vec<_> = messages.collect();
    messages.sort_unstable_by_key(|message| message.rest);
    let held: usize = messages.iter().map(|message| message.held).sum();
    let Some(mut free) = limit.checked_sub(held) else { return false };
    messages.iter().all(|message| {
        let is_completed = message.rest <= free;
        free += message.held;
        is_completed
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(held: usize, rest: usize) -> PartialMessage {
        PartialMessage { held, rest }
    }

    #[test]
    fn a_state_is_safe_if_an_order_completes_all() {
        assert!(is_safe(10, [].into_iter()));
        assert!(is_safe(10, [message(4, 6)].into_iter()));
        assert!(!is_safe(10, [message(4, 7)].into_iter()));
        // The second one first, and then the first.
        assert!(is_safe(10, [message(4, 6), message(4, 2)].into_iter()));
        assert!(!is_safe(10, [message(4, 6), message(4, 3)].into_iter()));
        assert!(!is_safe(10, [message(6, 1), message(6, 1)].into_iter()));
    }

    /// Steps in an arbitrary order, refused where they are not safe: there is always one that is.
    #[test]
    fn there_is_always_a_message_that_may_take_a_step() {
        let mut random = 7u64;
        let mut next = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as usize % below
        };
        for _ in 0..2000 {
            let limit = 4 + next(12);
            let mut messages: Vec<_> =
                (0..2 + next(8)).map(|_| message(0, 1 + next(limit))).collect();
            while !messages.is_empty() {
                let first = next(messages.len());
                let step =
                    (0..messages.len()).map(|at| (at + first) % messages.len()).find(|&at| {
                        let step = |(i, m): (usize, &PartialMessage)| {
                            if i == at { m.after(1) } else { *m }
                        };
                        is_safe(limit, messages.iter().enumerate().map(step))
                    });
                let at = step.unwrap_or_else(|| panic!("{messages:?} block each other in {limit}"));
                messages[at] = messages[at].after(1);
                messages.retain(|message| message.rest > 0);
            }
        }
    }
}
