//! A model of a lane, searched from end to end: whatever the kernel does, and whenever backends
//! die, also while they recover, the invariants hold and every request is answered in the end.
//!
//! The tests under `crash` and nbd-backend's `steps` run the code; this runs an abstraction of it,
//! and so meets every order of two threads and every way to split bytes. [`compare`] runs both
//! side by side, so that neither can change without the other.

mod act;
mod compare;
mod fault;
mod invariant;
mod search;
mod state;
mod step;
mod transmit;
mod words;

use nbd_ledger::CrashPoint;
use search::{Found, Violation, search};
use state::{Config, Request};

const fn request(payload: u32, data: u32) -> Request {
    Request { payload, data }
}

const FLUSH: Request = request(0, 0);
const READ: Request = request(0, 1);

/// Headers of two bytes, so that they may be cut, and a ring that two requests fill.
fn small(requests: &[Request]) -> Config {
    Config {
        header: 2,
        reply: 2,
        ring: 5,
        area: 5,
        slots: 2,
        max_payload: 2,
        max_receive: 5,
        small_remainder: 2,
        rewind_after: 4,
        requests: requests.to_vec(),
        fault: None,
    }
}

/// Headers of one byte: room for one more request.
fn tiny(requests: &[Request]) -> Config {
    let sizes = Config { header: 1, reply: 1, ring: 3, area: 3, max_payload: 1, ..small(requests) };
    Config { small_remainder: 1, rewind_after: 2, ..sizes }
}

fn explore(name: &str, config: &Config, crashes: u8) -> Found {
    let start = std::time::Instant::now();
    let found = search(config, crashes).unwrap_or_else(|violation| {
        let Violation { name: broken, says, path } = violation;
        path.iter().for_each(|step| eprintln!("  {step}"));
        panic!("{name}: it is not true that {says} ({broken})")
    });
    let Found { states, moves, ends, dead, .. } = found;
    let seconds = start.elapsed().as_secs_f32();
    println!(
        "{name}, {crashes} crashes: {states} states, {moves} moves, {ends} ends, {seconds:.1} s"
    );
    assert_eq!(dead, 0, "states without a way to the end");
    assert!(ends > 0, "no way to the end");
    found
}

#[test]
fn a_write_and_a_read() {
    explore("a write and a read", &small(&[request(2, 0), READ]), 2);
}

#[test]
fn two_writes() {
    explore("two writes", &small(&[request(2, 0), request(2, 0)]), 2);
}

#[test]
fn a_payload_that_is_skipped() {
    explore("a skipped write and a read", &tiny(&[request(4, 0), READ]), 2);
}

#[test]
fn three_requests_in_two_slots() {
    explore("a write, a read and a flush", &tiny(&[request(1, 0), READ, FLUSH]), 2);
}

#[test]
fn three_requests_in_a_ring_that_is_full() {
    explore("two writes and a read", &tiny(&[request(1, 0), request(1, 0), READ]), 1);
}

/// The model passes all crash points of the code, but for the one that only counts crashes.
#[test]
fn every_crash_point_is_in_the_model() {
    let met = explore("two flushes", &small(&[FLUSH, FLUSH]), 1).points;
    let missing: Vec<_> = CrashPoint::ALL.iter().filter(|point| !met.contains(point)).collect();
    assert_eq!(missing, [&CrashPoint::Requeued]);
}

/// Lives of a lane, drawn. `NBD_LEDGER_SEED` draws the same ones again.
#[test]
fn code_and_model_agree_at_every_crash_point() {
    let given = std::env::var("NBD_LEDGER_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| u64::from(std::process::id()));
    let mut random = seed;
    let mut draw = |bound: u64| {
        // SplitMix64.
        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (random ^ (random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    };
    let mut compared = 0;
    for life in 0..200 {
        let count = 2 + draw(18);
        let requests = (0..count).map(|_| match draw(8) {
            0 => FLUSH,
            1..4 => request(0, 1 + draw(4000) as u32),
            4..7 => request(1 + draw(4096) as u32, 0),
            // Skipped, but answered without an error here: the model knows of none.
            _ => request(4097 + draw(9000) as u32, 0),
        });
        let config = real(requests.collect());
        let _label = Label(format!("life {life}, NBD_LEDGER_SEED={seed}"));
        compared += compare::play(&config, &mut draw);
    }
    println!("NBD_LEDGER_SEED={seed}: 200 lives, {compared} crash points compared");
    assert!(compared > 10_000, "{compared} crash points");
}

/// Names the place on panic.
struct Label(String);

impl Drop for Label {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed: {}", self.0);
        }
    }
}

/// The sizes of the code, with a small ring.
fn real(requests: Vec<Request>) -> Config {
    Config {
        header: nbd_proto::Request::LEN as u32,
        reply: nbd_proto::SimpleReply::LEN as u32,
        ring: words::LAYOUT.ring as u32,
        area: words::LAYOUT.transmit as u32,
        slots: nbd_ledger::layout::SLOTS as usize,
        max_payload: words::LAYOUT.max_payload,
        max_receive: 512 << 10,
        small_remainder: 4096,
        rewind_after: 1 << 20,
        requests,
        fault: None,
    }
}

/// A search that finds nothing proves nothing, unless it would find what there is.
#[test]
fn planted_bugs_are_found() {
    for fault in fault::ALL {
        let configs = [
            small(&[request(2, 0), READ]),
            tiny(&[request(1, 0), request(1, 0), READ]),
            tiny(&[request(1, 0), READ, FLUSH]),
        ];
        let found = configs.into_iter().find_map(|config| {
            let config = Config { fault: Some(fault), ..config };
            match search(&config, 1) {
                Err(Violation { name, path, .. }) => Some((name, path.len())),
                Ok(Found { dead, .. }) if dead > 0 => Some(("a way to the end", dead)),
                Ok(_) => None,
            }
        });
        println!("{fault:?}: {found:?}");
        assert!(found.is_some(), "{fault:?} is not found");
    }
}
