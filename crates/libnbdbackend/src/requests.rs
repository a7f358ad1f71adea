//! The requests that the program has: numbers for C, so that a second completion is an error and not
//! a use of freed memory.
//!
//! A number has the place of a request in a table and the place's generation, which changes with each
//! completion. The table is in parts with a lock each, so that devices hardly meet.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbd_backend::Task;

use crate::buffer::Buffer;
use crate::outstanding::Outstanding;

const SHARDS: u32 = 64;
const SHARD_BITS: u32 = SHARDS.trailing_zeros();

/// What the program must complete.
pub(crate) enum Work {
    /// A request of the kernel.
    Task(Box<dyn Task>),
    /// The grant of a device, whose thread waits for the result.
    Grant(std::sync::mpsc::Sender<std::ffi::c_int>),
}

/// A request that the program has, or will have.
pub(crate) struct Request {
    pub(crate) work: Work,
    /// Where the program puts the data of a read.
    pub(crate) buffer: Option<Buffer>,
    /// The device's count, which this one is in.
    outstanding: Arc<Outstanding>,
}

impl Request {
    pub(crate) fn new(work: Work, outstanding: &Arc<Outstanding>) -> Self {
        outstanding.add();
        Self { work, buffer: None, outstanding: Arc::clone(outstanding) }
    }
}

/// A request that was taken out, to be answered. The count of its device is decremented when this is
/// dropped: after the answer.
pub(crate) struct Finished(Arc<Outstanding>);

impl Drop for Finished {
    fn drop(&mut self) {
        self.0.remove();
    }
}

#[derive(Default)]
struct Shard {
    places: Vec<Place>,
    free: Vec<u32>,
}

struct Place {
    generation: u32,
    request: Option<Request>,
}

static TABLE: [Mutex<Shard>; SHARDS as usize] = [const { Mutex::new(Shard::new()) }; 64];

impl Shard {
    const fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }

    fn place(&mut self, handle: u64) -> Option<&mut Place> {
        let (index, generation) = ((handle as u32 >> SHARD_BITS) as usize, (handle >> 32) as u32);
        let place = self.places.get_mut(index)?;
        (place.generation == generation && place.request.is_some()).then_some(place)
    }
}

fn shard(handle: u64) -> MutexGuard<'static, Shard> {
    let shard = &TABLE[(handle as u32 % SHARDS) as usize];
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives a request of a device a number, which is not 0.
pub(crate) fn insert(device: i32, request: Request) -> u64 {
    let shard_index = device.unsigned_abs() % SHARDS;
    let mut shard = shard(shard_index.into());
    let index = shard.free.pop().unwrap_or_else(|| {
        shard.places.push(Place { generation: 1, request: None });
        (shard.places.len() - 1) as u32
    });
    let place = &mut shard.places[index as usize];
    place.request = Some(request);
    u64::from(place.generation) << 32 | u64::from(index << SHARD_BITS | shard_index)
}

/// Looks at a request, while it cannot be completed; `None` if there is none of this number.
pub(crate) fn with<T>(handle: u64, look: impl FnOnce(&mut Request) -> T) -> Option<T> {
    let mut shard = shard(handle);
    Some(look(shard.place(handle)?.request.as_mut()?))
}

/// Takes a request out, if it is as the program says. Its number is never valid again.
pub(crate) fn take(handle: u64) -> Option<(Work, Option<Buffer>, Finished)> {
    let mut shard = shard(handle);
    let place = shard.place(handle)?;
    let request = place.request.take()?;
    // Never 0, so that no number is.
    place.generation = place.generation.checked_add(1).unwrap_or(1);
    shard.free.push(handle as u32 >> SHARD_BITS);
    Some((request.work, request.buffer, Finished(request.outstanding)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Request {
        Request::new(Work::Grant(std::sync::mpsc::channel().0), &Arc::default())
    }

    #[test]
    fn a_number_is_valid_until_it_is_completed_and_never_again() {
        let first = insert(7, grant());
        assert_ne!(first, 0);
        assert!(with(first, |_| ()).is_some());
        assert!(take(first).is_some());
        assert!(with(first, |_| ()).is_none());
        assert!(take(first).is_none());
        // The place is used again, under another number.
        let second = insert(7, grant());
        assert_ne!(first, second);
        assert!(take(first).is_none());
        assert!(take(second).is_some());
    }

    #[test]
    fn numbers_that_were_never_given_are_none() {
        for handle in [0, 1, u64::MAX, 1 << 32, u64::from(u32::MAX)] {
            assert!(with(handle, |_| ()).is_none(), "{handle:#x}");
            assert!(take(handle).is_none(), "{handle:#x}");
        }
    }

    #[test]
    fn completing_a_request_counts_it_down() {
        let outstanding = Arc::new(Outstanding::default());
        let handle = insert(3, Request::new(grant().work, &outstanding));
        assert_eq!(outstanding.count(), 1);
        let taken = take(handle).unwrap();
        assert_eq!(outstanding.count(), 1, "not before it is answered");
        drop(taken);
        assert_eq!(outstanding.count(), 0);
        outstanding.wait_for_none();
    }
}
