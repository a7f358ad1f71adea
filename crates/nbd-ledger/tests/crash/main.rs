//! Backends are killed with SIGKILL, at every point and in every situation that this crate can
//! name and at moments that it cannot, and a successor must answer every request exactly once.

mod backend;
mod peer;
mod record;
mod run;
mod script;
mod situation;

use std::collections::BTreeSet;
use std::time::Duration;

use backend::Order;
use run::{NO_CRASH, Run, Setting, run};
use script::{Random, every_kind, mixture, reads};
use situation::Situation;

/// Kills the first backend at crash point 1, 2, 3 … until one ends without reaching its point.
/// Returns the number of points and the situations that successors found.
fn kill_at_every_point(setting: Setting) -> (u64, BTreeSet<Situation>) {
    let script = every_kind();
    let mut seen = BTreeSet::new();
    for point in 1.. {
        let label = format!("killed at crash point {point}");
        let outcome = run(setting, &script, &[point], &label);
        if outcome.deaths == 0 {
            println!("{setting:?}: {} crash points, {seen:?}", point - 1);
            return (point - 1, seen);
        }
        seen.extend(outcome.situations);
    }
    unreachable!("a script has an end")
}

const ANSWER_ORDERS: [Order; 3] = [Order::AsReceived, Order::Reversed, Order::OldestLast];

/// A successor answers in another order than the backend before, so that one that believed in a
/// place or number that its predecessor only planned would be caught.
const fn setting(first: Order, successors: Order, narrow: bool) -> Setting {
    Setting { orders: [first, successors], narrow }
}

#[test]
fn a_backend_that_answers_one_by_one_may_die_at_any_point() {
    let (points, _) = kill_at_every_point(setting(Order::AsReceived, Order::Reversed, false));
    assert!(points > 300, "{points} points are too few to be all");
}

#[test]
fn a_backend_that_answers_batches_in_reverse_may_die_at_any_point() {
    let (points, _) = kill_at_every_point(setting(Order::Reversed, Order::AsReceived, false));
    assert!(points > 200, "{points} points are too few to be all");
}

#[test]
fn a_backend_that_answers_the_oldest_last_may_die_at_any_point() {
    let (points, seen) = kill_at_every_point(setting(Order::OldestLast, Order::AsReceived, false));
    assert!(points > 200, "{points} points are too few to be all");
    assert_eq!(seen, situation::ORDINARY.into(), "situations that were met");
}

#[test]
fn a_backend_may_die_at_any_point_between_the_parts_of_its_replies() {
    let setting = setting(Order::Reversed, Order::OldestLast, true);
    let (points, seen) = kill_at_every_point(setting);
    assert!(points > 200, "{points} points are too few to be all");
    assert!(seen.contains(&Situation::HalfSent), "replies in parts: {seen:?}");
}

/// A successor dies during its recovery or soon after it, and a third backend takes over from
/// both. Pairs of crash points are drawn; set `NBD_LEDGER_SEED` to draw the same ones again.
#[test]
fn a_successor_may_die_while_it_recovers() {
    let mut random = Random::from_environment();
    let script = every_kind();
    for (first, narrow) in ANSWER_ORDERS.iter().flat_map(|&first| [(first, false), (first, true)]) {
        let alike = setting(first, first, narrow);
        let points = run(alike, &script, &[NO_CRASH], "counting crash points").passed;
        for _ in 0..50 {
            let seed = random.0;
            let setting = setting(first, random.pick(&ANSWER_ORDERS), narrow);
            let pair = [1 + random.below(points), 1 + random.below(40)];
            run(setting, &script, &pair, &format!("killed at {pair:?}, seed {seed}"));
        }
    }
}

/// The kernel's side does not read, so the backend waits in the middle of a reply; there it is
/// killed, and so is each successor that goes on with the same reply.
#[test]
fn a_backend_killed_in_the_middle_of_a_reply_is_continued_at_that_byte() {
    let setting = setting(Order::Reversed, Order::Reversed, true);
    let mut run = Run::new(setting, &[], "killed in the middle of replies");
    run.play(&every_kind());
    run.peer.max_read = 0;
    run.play(&[reads(3)]);
    while !run.peer.is_settled() {
        run.wait_until_nothing_comes();
        run.kill();
        run.peer.max_read = 3000;
        run.peer.receive();
        run.peer.max_read = 0;
    }
    let outcome = run.leave();
    assert!(outcome.deaths > 20, "{outcome:?}");
    assert!(outcome.situations.contains(&Situation::HalfSent), "{outcome:?}");
}

/// Kills at moments that are not crash points: in system calls, before the backend has begun to
/// work, and in between.
#[test]
fn backends_may_die_at_random_moments() {
    let mut random = Random::from_environment();
    for _ in 0..24 {
        let label = format!("random kills, seed {}", random.0);
        let [first, then] = [(); 2].map(|()| random.pick(&ANSWER_ORDERS));
        let setting = setting(first, then, random.pick(&[false, true]));
        let mut run = Run::new(setting, &[], &label);
        for _ in 0..12 {
            run.play(&mixture(&mut random, 8));
            let moment = Duration::from_micros(random.below(6000));
            run.kill_after(moment);
        }
        run.play(&mixture(&mut random, 8));
        run.leave();
    }
}

/// Not a test: the program of the processes that the tests kill.
#[test]
#[ignore = "started by the other tests"]
fn backend_process() {
    if let Ok(orders) = std::env::var(backend::ORDERS) {
        backend::serve(&orders).expect("a backend serves until the peer leaves");
    }
}
