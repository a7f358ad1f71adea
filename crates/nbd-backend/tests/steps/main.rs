//! Backends are killed after **every instruction**, and a successor must answer every request
//! exactly once and lose no byte.
//!
//! `NBD_STEP_SEED` repeats a run; `NBD_STEP_ALL=1` leaves nothing to samples and takes long.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod crash_state;
mod device_fixture;
mod memory;
mod oracle;
mod peer;
mod process;
mod script;
mod single_step;
mod sweep;
mod threads;
mod trace;

use crash_state::CrashState;
use script::{Random, Scenario};
use sweep::{Report, Sweep};

/// Sweeps a scenario on one of the processors; it must meet these situations.
fn sweep(turn: usize, scenario: &Scenario, scenes: &[CrashState]) -> Report {
    trace::pin(turn);
    let report = Sweep::new(scenario, Random::from_environment()).run();
    assert!(report.points > 10_000 && report.states > 100, "this cannot be all: {report}");
    let met = scenes.iter().all(|scene| report.scenes.contains(scene));
    assert!(met, "not what it is made for: {report}");
    report
}

#[test]
fn kills_at_every_step_lose_no_request_sent_one_by_one() {
    sweep(0, &script::one_by_one(), &[]);
}

#[test]
fn kills_at_every_step_lose_no_request_of_a_batch() {
    sweep(1, &script::at_once(), &[CrashState::Staged]);
}

#[test]
fn kills_at_every_step_lose_no_payload_across_the_ring_end() {
    sweep(0, &script::across_the_end(), &[CrashState::Wrapped]);
}

#[test]
fn kills_at_every_step_lose_no_request_received_in_pieces() {
    sweep(1, &script::in_pieces(), &[CrashState::Untaken]);
}

#[test]
fn kills_at_every_step_lose_no_request_after_a_skipped_payload() {
    sweep(0, &script::skipped(), &[CrashState::Skipping]);
}

#[test]
fn kills_at_every_step_lose_no_request_answered_out_of_order() {
    sweep(1, &script::out_of_order(), &[CrashState::Overtaken]);
}

#[test]
fn kills_at_every_step_lose_no_reply_to_a_full_socket() {
    let report = sweep(0, &script::full_socket(), &[CrashState::HalfSent]);
    assert!(report.sleeps > 2, "the socket was not full: {report}");
}

#[test]
fn kills_at_random_moments_lose_no_request_of_workers() {
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
fn flushes_run_inline_after_a_streak_without_other_requests() {
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
