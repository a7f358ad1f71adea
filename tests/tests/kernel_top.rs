//! `nbd-ctl top` in a real terminal, on devices that are at work, stopped and gone.

use nbd_tests::ctl::{ctl, program};
use nbd_tests::device::Device;
use nbd_tests::fio::Area;
use nbd_tests::process::signal;
use nbd_tests::screen::Screen;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_for};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::{SIGCONT, SIGSTOP, SIGTERM};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// Characters of a heat line for intervals with requests.
const HEAT: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

kernel_tests!(
    top_shows_what_devices_do,
    top_restores_the_terminal_however_it_ends,
    top_once_prints_the_numbers_of_one_interval,
);

fn top(options: &str) -> String {
    format!("clear; LC_ALL=C.UTF-8 {} top --interval 0.5 {options}", program("nbd-ctl"))
}

/// The line of a device in the list.
fn row(text: &str, device: &Device) -> Vec<String> {
    let line = text.lines().find(|line| line.starts_with(&format!("{} ", device.name())));
    line.unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect()
}

fn top_shows_what_devices_do(api: Api) {
    let files = TempDir::new();
    let screen = Screen::new(80, 24);
    screen.command(&top(""));
    screen.shows(&["0 devices", "nothing is attached: nbd-ctl attach"]);

    // It appears by itself, and so does what it does.
    let device = Device::attach(api, [files.spec("disk.img", 8 * MIB)]);
    screen.shows(&["1 device", "DEVICE STATE", "running", "file:"]);
    let path = device.path();
    let mut load = Area::of_device(&path, 4 * MIB).start_load();
    screen.becomes("a device at work", |text| {
        let row = row(text, &device);
        let iops = row.get(2).and_then(|cell| cell.parse::<u64>().ok());
        iops.is_some_and(|iops| iops > 0)
            && row[5..].iter().any(|cell| cell.ends_with('s'))
            && text.lines().any(|line| line.starts_with(&device.name()) && line.contains(HEAT))
    });

    // A stopped backend.
    let backend = device.backend();
    device.signal_backend(SIGSTOP);
    let stopped = format!("its backend (pid {backend}) is stopped: kill -CONT {backend}");
    screen.shows(&["stopped", &stopped]);
    screen.becomes("intervals without an answer", |text| text.contains("!!"));
    screen.press("Enter");
    // A table of what waits; how far each of them has come is chance.
    screen.shows(&["in flight: ", "STAGE", "slowest of the last minute", "Esc back"]);
    device.signal_backend(SIGCONT);
    screen.becomes("a slow request that was answered at last", |text| {
        text.contains("running")
            && text
                .lines()
                .skip_while(|line| !line.starts_with("slowest"))
                .any(|line| line.contains(" read ") || line.contains(" write "))
    });
    screen.press("Escape");
    screen.shows(&["DEVICE STATE"]);

    // A stopped holder delays nobody.
    let holder = device.state().expect("a state").holder.pid;
    assert!(signal(holder, SIGSTOP));
    screen.shows(&["no answer", "its holder has not answered for"]);
    screen.press("?");
    screen.shows(&["Keys", "Any key goes on."]);
    screen.press("x");
    assert!(signal(holder, SIGCONT));
    screen.becomes("an answer", |text| row(text, &device).get(1).is_some_and(|it| it == "running"));

    // Other sizes.
    screen.resize(40, 10);
    screen.shows(&["40x10 is too small", "make it 50x10"]);
    screen.resize(100, 30);
    screen.shows(&["p99.9", "q quit"]);
    load.goes_on();
    load.stop().is_good();
    screen.press("p");
    screen.shows(&["PAUSED"]);
    screen.press("q");
    screen.is_restored();
    device.detach();
}

fn top_restores_the_terminal_however_it_ends(api: Api) {
    let device = Device::attach(api, ["mem:1M"]);
    let screen = Screen::new(80, 24);
    for end in ["C-c", "TERM", "gone"] {
        screen.command(&top(&device.name()));
        screen.shows(&["1 device", "running"]);
        match end {
            "TERM" => {
                let nbd_ctl = wait_for("the process", EVENT_TIMEOUT, || {
                    let found = nbd_tests::command::run("pgrep", ["-x", "nbd-ctl"]).stdout;
                    found.trim().parse().ok()
                });
                assert!(signal(nbd_ctl, SIGTERM));
            }
            "gone" => {
                // The last one: its device is detached under it.
                break;
            }
            key => screen.press(key),
        }
        screen.is_restored();
    }
    device.detach();
    screen.shows(&["0 devices", "not attached any more"]);
    screen.press("q");
    screen.is_restored();

    // What cannot move its cursor is told what to use instead.
    screen.command(&format!("clear; TERM=dumb {} top", program("nbd-ctl")));
    screen.shows(&["cannot move its cursor"]);
}

fn top_once_prints_the_numbers_of_one_interval(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", 8 * MIB)]);
    let idle = Device::attach(api, ["mem:1M"]);
    let path = device.path();
    let load = Area::of_device(&path, 4 * MIB).start_load();
    device.wait_progress();
    let told = ctl(["top", "--once", "--json", "--interval", "1"]).succeeds().stdout;
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let [busy, quiet] = &told.as_array().expect("an array")[..] else { panic!("two: {told}") };
    assert_eq!((&busy["device"], &busy["state"]), (&device.name().into(), &"running".into()));
    let number = |value: &Value, name: &str| {
        value[name].as_f64().unwrap_or_else(|| panic!("{name}: {told}"))
    };
    assert!(
        number(busy, "reads_per_s") > 0.0 && number(busy, "written_bytes_per_s") > 0.0,
        "{told}"
    );
    // As many times as answers.
    let answers: f64 = ["reads", "writes", "flushes", "others"]
        .iter()
        .map(|name| number(busy, &format!("{name}_per_s")) * number(busy, "interval_s"))
        .sum();
    let times = busy["latency"]["count"].as_f64().expect("a count");
    assert!((answers - times).abs() <= 64.0, "{answers} answers and {times} times");
    assert!(busy["latency"]["median_ms"].as_f64() <= busy["latency"]["max_ms"].as_f64(), "{told}");
    assert_eq!((number(quiet, "reads_per_s"), &quiet["latency"]["count"]), (0.0, &0.into()));

    device.signal_backend(SIGSTOP);
    let text = ctl(["top", &device.name(), "--once", "--interval", "0.5"]).succeeds().stdout;
    assert!(text.starts_with("DEVICE") && text.contains("stopped"), "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
    device.signal_backend(SIGCONT);
    load.stop().is_good();
    device.detach();
    idle.detach();
}
