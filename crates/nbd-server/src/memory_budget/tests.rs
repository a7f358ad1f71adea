use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Instant;

use std::time::Duration;

use super::*;

fn used_bytes(memory: &MemoryBudget) -> usize {
    memory.short.lock().used + memory.long.lock().used
}

#[test]
fn returned_memory_can_be_taken_again() {
    // A half of it is for long messages.
    let memory = MemoryBudget::new(200);
    let first = memory.try_take(60).unwrap();
    assert!(memory.try_take(41).is_none());
    let second = memory.try_take(40).unwrap();
    assert!(memory.try_take(1).is_none());
    drop(first);
    drop(memory.try_take(60).unwrap());
    drop(second);
    // More than there is: all of it.
    let all = memory.try_take(u64::MAX).unwrap();
    assert!(memory.try_take(1).is_none());
    drop(all);
    assert_eq!(used_bytes(&memory), 0);
}

#[test]
fn waiting_connections_are_served_in_order() {
    let memory = MemoryBudget::new(200);
    let first = memory.try_take(50).unwrap();
    let (sender, order) = channel();
    thread::scope(|scope| {
        for (ticket, bytes) in [(0, 100), (1, 10), (2, 100), (3, 10)] {
            let (memory, sender) = (&memory, sender.clone());
            scope.spawn(move || {
                let grant = memory.take(bytes, || false).unwrap();
                sender.send(ticket).unwrap();
                drop(grant);
            });
            while memory.short.lock().next_ticket == ticket {
                thread::yield_now();
            }
        }
        // There is enough for it, but others came first.
        assert!(memory.has_waiters() && memory.try_take(10).is_none());
        drop(first);
    });
    let order: Vec<_> = order.try_iter().collect();
    assert_eq!(order, [0, 1, 2, 3]);
    assert!(!memory.has_waiters() && memory.try_take(100).is_some());
}

#[test]
fn unused_blocks_are_reused_up_to_a_limit() {
    let memory = MemoryBudget::new(4000);
    let block = |size: usize| memory.block(memory.try_take(size as u64).unwrap(), size);
    let mut used = block(1000);
    used.bytes_mut()[0] = 7;
    drop(used);
    assert_eq!(memory.cache().unused.len(), 1);
    assert_eq!(block(999).bytes(), [0; 999]);
    assert_eq!(block(1000).bytes()[0], 7);
    drop([block(1000), block(1000)]);
    assert_eq!(memory.cache().unused.iter().map(Vec::len).sum::<usize>(), 1000);
    memory.trim();
    assert!(memory.cache().unused.is_empty());
    assert_eq!(used_bytes(&memory), 0);
}

#[test]
fn a_message_takes_its_memory_in_steps() {
    let memory = MemoryBudget::new(20 * STEP as u64);
    let size = 2 * STEP + 5;
    let mut block = memory.block(memory.try_begin(size as u64).unwrap(), size);
    for (usable, used) in [(STEP, STEP), (2 * STEP, 2 * STEP), (size, size), (size, size)] {
        assert_eq!((block.usable(), used_bytes(&memory)), (usable, used));
        assert!(block.bytes().len() == usable && block.try_grow());
    }
    assert!(memory.long.lock().partial.is_empty());
    drop(block);
    assert_eq!(used_bytes(&memory), 0);
    // One that fits into a step takes all of it at once.
    assert!(!memory.try_begin(STEP as u64).unwrap().is_partial());
}

#[test]
fn a_step_that_could_block_others_for_ever_is_refused() {
    let memory = MemoryBudget::new(8 * STEP as u64);
    let begin = || memory.try_begin(3 * STEP as u64);
    let (mut first, mut second) = (begin().unwrap(), begin().unwrap());
    // Each would hold two of the four, and need a third one.
    assert!(first.try_grow() && !second.try_grow() && begin().is_none());
    assert!(first.try_grow() && !first.is_partial());
    // What the first one holds is sure to come back, but is not there yet.
    assert!(!second.try_grow());
    drop(first);
    assert!(second.try_grow() && second.try_grow() && !second.is_partial());
}

#[test]
fn no_long_message_begins_while_another_waits_for_a_step() {
    let memory = MemoryBudget::new(8 * STEP as u64);
    let begin = |steps: usize| memory.try_begin((steps * STEP) as u64);
    let mut message = begin(2).unwrap();
    let mut others = begin(3).unwrap();
    assert!(others.try_grow() && others.try_grow());
    thread::scope(|scope| {
        let growing = scope.spawn(|| message.grow(|| false));
        while memory.long.lock().waiting_for_step == 0 {
            thread::yield_now();
        }
        assert!(memory.has_waiters() && begin(2).is_none());
        drop(others);
        growing.join().unwrap();
    });
    assert!(!message.is_partial() && !memory.has_waiters());
    assert!(begin(2).is_some());
}

#[test]
fn reads_and_short_messages_do_not_wait_for_long_ones() {
    let memory = MemoryBudget::new(8 * STEP as u64);
    // As many as there is room for, none of which goes on.
    let length = 4 * STEP as u64;
    let messages: Vec<_> = std::iter::from_fn(|| memory.try_begin(length)).take(100).collect();
    assert!(!messages.is_empty());
    assert!(memory.try_begin(length).is_none() && memory.begin(length, || true).is_none());
    let read = memory.try_take(3 * STEP as u64).unwrap();
    assert!(memory.try_begin(STEP as u64).is_some());
    drop((read, messages));
    assert_eq!(used_bytes(&memory), 0);
}

/// Messages of many connections, each longer than half of the memory, and reads between them.
#[test]
fn many_messages_that_grow_at_once_are_all_completed() {
    let memory = MemoryBudget::new(10 * STEP as u64);
    thread::scope(|scope| {
        for thread in 0..8 {
            let memory = &memory;
            scope.spawn(move || {
                for round in 0..50 {
                    let mut grant =
                        memory.begin((3 + (thread + round) % 4) * STEP as u64, || false).unwrap();
                    while grant.is_partial() {
                        thread::yield_now();
                        grant.grow(|| false);
                    }
                    drop(grant);
                    drop(memory.take((1 + round % 7) * STEP as u64, || false));
                }
            });
        }
    });
    assert_eq!(used_bytes(&memory), 0);
}

#[test]
fn a_cached_block_in_slow_hands_counts_as_cached() {
    let memory = MemoryBudget::new(40 * STEP as u64);
    let size = 3 * STEP;
    let begin = || memory.block(memory.try_begin(size as u64).unwrap(), size);
    let complete = |block: &mut Block| {
        while block.usable() < size {
            assert!(block.try_grow());
        }
    };
    let mut block = begin();
    complete(&mut block);
    drop(block);
    let mut slow = begin();
    assert_eq!(memory.cache().lent, 2 * STEP);
    assert_eq!(used_bytes(&memory), STEP);
    assert!(slow.try_grow());
    assert_eq!(memory.cache().lent, STEP);
    complete(&mut slow);
    assert_eq!(memory.cache().lent, 0);
    drop(slow);
    drop(begin());
    let cache = memory.cache();
    assert_eq!((cache.lent, cache.unused.len(), used_bytes(&memory)), (0, 1, 0));
}

#[test]
fn a_client_that_is_gone_leaves_the_queue() {
    let memory = MemoryBudget::new(6 * STEP as u64);
    let begin = || memory.try_begin(2 * STEP as u64).unwrap();
    let (mut message, mut others) = (begin(), begin());
    assert!(others.try_grow());
    let reads = memory.try_take(2 * STEP as u64).unwrap();
    assert!(memory.take(2 * STEP as u64, || true).is_none());
    assert!(memory.begin(2 * STEP as u64, || true).is_none());
    assert!(!message.grow(|| true) && !memory.has_waiters());
    drop((message, others, reads));
    assert!(memory.try_take(3 * STEP as u64).is_some());
}

#[test]
fn a_connection_that_is_woken_often_still_looks_after_its_client() {
    let memory = MemoryBudget::new(200);
    let _all = memory.try_take(100).unwrap();
    let has_ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            assert!(memory.take(1, || true).is_none());
            has_ended.store(true, Relaxed);
        });
        let deadline = Instant::now() + Duration::from_secs(60);
        while !has_ended.load(Relaxed) && Instant::now() < deadline {
            memory.short.changed.notify_all();
            thread::sleep(Duration::from_millis(1));
        }
        let was_in_time = has_ended.load(Relaxed);
        waiter.join().unwrap();
        assert!(was_in_time, "it asked only when it was left alone");
    });
}
