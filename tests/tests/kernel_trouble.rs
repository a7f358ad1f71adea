//! Bad surroundings: whatever is full, short or killed, I/O comes back by itself when it has ended.
//!
//! `scripts/soak --trouble` makes it longer: `NBD_SOAK_SECONDS`, `NBD_SOAK_SEED`.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nbd_control::registry::DEFAULT_DIRECTORY;
use nbd_tests::ctl::start_ctl;
use nbd_tests::device::Device;
use nbd_tests::fio::Area;
use nbd_tests::kernel_log::KernelLog;
use nbd_tests::mount::Mount;
use nbd_tests::process::ours;
use nbd_tests::random::Random;
use nbd_tests::temp::TempDir;
use nbd_tests::trouble::{Active, Trouble, Victim};
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests, report};

const MIB: u64 = 1 << 20;
/// How long trouble goes on, altogether, unless the environment says otherwise.
const SOAK_SECONDS: u64 = 30;
/// How much room the runtime directory has.
const ROOM: &str = "size=2M,mode=755";

kernel_tests!(io_comes_back_whenever_trouble_in_the_surroundings_ends);

fn io_comes_back_whenever_trouble_in_the_surroundings_ends(api: Api) {
    let seconds = std::env::var("NBD_SOAK_SECONDS")
        .map_or(SOAK_SECONDS, |text| text.parse().expect("NBD_SOAK_SECONDS is a number"));
    let mut random = Random::from_environment();
    let mut log = KernelLog::from_now();
    let directory = Mount::of_memory(ROOM, Path::new(DEFAULT_DIRECTORY));
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 64 * MIB)]);
    let path = device.path();
    let area = Area::of_device(&path, 4 * MIB);
    area.fill();
    let mut load = area.start_verified();

    let (mut rounds, mut kills, mut longest) = (0, 0, Duration::ZERO);
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        kills += trouble(&device, &mut random);
        let ended = Instant::now();
        // A holder that was killed is followed by the next one that a command starts.
        drop(start_ctl(["status", &device.name()]).finish(EVENT_TIMEOUT));
        device.wait_progress();
        longest = longest.max(ended.elapsed());
        load.goes_on();
        has_one_holder_and_one_owner(&device);
        rounds += 1;
    }

    let result = load.stop().is_good();
    area.check();
    let status = device.wait_running();
    assert_eq!(status.totals.errors, 0);
    // The driver complains of each reply that it does not expect, and drops the lane.
    log.has_no_complaints();
    device.detach();
    directory.unmount();
    report(&format!(
        "soak: {}: {rounds} rounds of trouble, {kills} kills, {} requests, 0 errors; I/O was back \
         after {:.1} s at the latest, the longest wait was {:.1} s",
        api.name(),
        result.reads + result.writes,
        longest.as_secs_f64(),
        result.longest / 1e3,
    ));
}

/// A few seconds of some kinds of trouble at once, with kills meanwhile; how many there were.
fn trouble(device: &Device, random: &mut Random) -> usize {
    let mut chosen = Trouble::ALL.to_vec();
    chosen.retain(|_| random.number().is_multiple_of(2));
    let active: Vec<Active> = chosen.iter().map(|kind| kind.begin(device)).collect();
    let (mut kills, mut commands) = (0, Vec::new());
    for _ in 0..random.within(&(1..=6)) {
        sleep(Duration::from_millis(random.within(&(50..=800))));
        let victim = Victim::ALL[random.within(&(0..=2)) as usize];
        kills += usize::from(victim.kill(device));
        if random.number().is_multiple_of(3) {
            // Several commands at once, of which each would adopt the device of a dead holder.
            let count = random.within(&(1..=4));
            commands.extend((0..count).map(|_| start_ctl(["status", &device.name()])));
        }
        if random.number().is_multiple_of(4) {
            // Ends by SIGKILL the commands that have not ended.
            commands.clear();
        }
    }
    drop(active);
    for command in commands {
        // What a command can tell in the middle of trouble is not looked at here.
        drop(command.finish(EVENT_TIMEOUT));
    }
    kills
}

/// One holder with its sitter, and besides the owner at most a spare.
#[track_caller]
fn has_one_holder_and_one_owner(device: &Device) {
    wait_until("one holder and one owner", EVENT_TIMEOUT, || {
        let all = ours();
        let count = |name: &str| all.iter().filter(|(_, program)| program == name).count();
        let owner = device.status().backend.pid;
        count("nbd-kernel-holder") == 2
            && (1..=2).contains(&count("nbd-serve"))
            && owner.is_some_and(|owner| all.iter().any(|(pid, _)| *pid == owner))
    });
}
