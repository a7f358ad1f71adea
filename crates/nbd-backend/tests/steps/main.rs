//! Backends are killed after **every instruction**, and a successor must answer every request
//! exactly once and lose no byte.
//!
//! `NBD_STEP_SEED` repeats a run; `NBD_STEP_ALL=1` leaves nothing to samples and takes long.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod memory;
mod mind;
mod peer;
mod process;
mod scene;
mod script;
mod sweep;
mod threads;
mod trace;
mod walk;
mod world;

use scene::Scene;
use script::{Random, Scenario};
use sweep::{Report, Sweep};

/// Sweeps a scenario on one of the processors; it must meet these situations.
fn sweep(turn: usize, scenario: &Scenario, scenes: &[Scene]) -> Report {
    trace::pin(turn);
    let report = Sweep::new(scenario, Random::from_environment()).run();
    assert!(report.points > 10_000 && report.worlds > 100, "this cannot be all: {report}");
    let met = scenes.iter().all(|scene| report.scenes.contains(scene));
    assert!(met, "not what it is made for: {report}");
    report
}

#[test]
fn requests_one_by_one() {
    sweep(0, &script::one_by_one(), &[]);
}

#[test]
fn requests_at_once() {
    sweep(1, &script::at_once(), &[Scene::Staged]);
}

#[test]
fn payloads_across_the_end_of_the_ring() {
    sweep(0, &script::across_the_end(), &[Scene::Wrapped]);
}

#[test]
fn requests_in_pieces() {
    sweep(1, &script::in_pieces(), &[Scene::Untaken]);
}

#[test]
fn payloads_that_are_skipped() {
    sweep(0, &script::skipped(), &[Scene::Skipping]);
}

#[test]
fn answers_out_of_order() {
    sweep(1, &script::out_of_order(), &[Scene::Overtaken]);
}

#[test]
fn a_socket_that_is_full() {
    let report = sweep(0, &script::full_socket(), &[Scene::HalfSent]);
    assert!(report.sleeps > 2, "the socket was not full: {report}");
}

#[test]
fn worker_threads_at_random_moments() {
    let mut random = Random::from_environment();
    let seed = random.0;
    let (mut requests, mut left) = (0, 0);
    for turn in 0..20 {
        let (more, dead) = threads::kill_at_random(20, turn % 2 == 1, &mut random);
        requests += more;
        left += dead;
    }
    println!("NBD_STEP_SEED={seed}: 400 kills, {left} with unanswered requests, of {requests}");
    assert!(left > 40, "only {left} of 400 kills met requests");
}

#[test]
fn commands_that_others_never_come_beside_are_waited_for_where_they_were_received() {
    assert_eq!(threads::flushes_of_workers(20), 8);
}

/// Not a test: the program of the processes that the tests kill.
#[test]
#[ignore = "started by the other tests"]
fn backend_process() {
    if let Ok(manner) = std::env::var(process::MANNER) {
        process::serve(manner).expect("a backend serves until the kernel leaves");
    }
}
