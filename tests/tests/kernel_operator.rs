//! What an operator sees of devices: counters that are exact, and a doctor that finds what is
//! wrong and only that.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nbd_control::registry::Registry;
use nbd_tests::command::run;
use nbd_tests::ctl::{ctl, start_ctl};
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::process::signal;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_for, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::{SIGINT, SIGKILL, SIGSTOP};

kernel_tests!(
    metrics_count_the_requests_of_a_known_run,
    a_device_is_known_by_its_name,
    the_log_has_events_to_alert_on,
    the_doctor_finds_and_mends_what_a_killed_holder_leaves,
);

/// Samples by name and labels.
fn parse(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with("# EOF\n"), "{text}");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = samples.map(|line| line.rsplit_once(' ').expect("a sample"));
    pairs.map(|(name, value)| (name.to_owned(), value.parse().expect("a number"))).collect()
}

fn metrics() -> BTreeMap<String, f64> {
    parse(&ctl(["metrics"]).succeeds().stdout)
}

fn metrics_count_the_requests_of_a_known_run(api: Api) {
    let device = Device::attach(api, ["mem:16M"]);
    let name = device.name();
    let before = metrics();
    for direction in ["write", "read"] {
        let path = format!("--filename={}", device.path().display());
        let how = format!("--rw=rand{direction}");
        let fixed = ["--name=known", "--direct=1", "--bs=4k", "--size=1M", "--ioengine=psync"];
        run("fio", [&path, &how].map(String::as_str).into_iter().chain(fixed)).succeeds();
    }
    let after = metrics();
    let grown = |sample: &str| after[sample] - before[sample];
    let requests = |command: &str| {
        grown(&format!("nbd_requests_total{{device=\"{name}\",command=\"{command}\"}}"))
    };
    assert_eq!((requests("write"), requests("read")), (256.0, 256.0));
    // Each of them took some time, and is in one bucket of the histograms.
    for command in ["read", "write", "flush"] {
        let name = "nbd_request_duration_seconds";
        let labels = format!("device=\"{name_of}\",command=\"{command}\"", name_of = device.name());
        let bucket = |le: &str| grown(&format!("{name}_bucket{{{labels},le=\"{le}\"}}"));
        assert_eq!(grown(&format!("{name}_count{{{labels}}}")), requests(command), "{command}");
        assert_eq!(bucket("+Inf"), requests(command), "{command}");
        assert!(bucket("0.000004096") <= bucket("34.359738368"), "{command}");
        let sum = grown(&format!("{name}_sum{{{labels}}}"));
        assert!(sum > 0.0 || requests(command) == 0.0, "{command}");
    }
    let status = device.status();
    let told: Vec<_> = status.latencies.iter().map(|kind| kind.count).collect();
    let totals = status.totals;
    assert_eq!(told, [totals.reads, totals.writes, totals.trims + totals.others, totals.flushes]);
    assert!(ctl(["status", &name]).succeeds().stdout.contains("read: p50 "));
    for bytes in ["nbd_read_bytes_total", "nbd_written_bytes_total"] {
        assert_eq!(grown(&format!("{bytes}{{device=\"{name}\"}}")), f64::from(1 << 20), "{bytes}");
    }
    assert_eq!(grown(&format!("nbd_errors_total{{device=\"{name}\"}}")), 0.0);

    // Over a socket it is the same.
    let files = TempDir::new();
    let socket = files.path().join("metrics");
    let server = start_ctl(["metrics", "--listen", &format!("unix:{}", socket.display())]);
    // Somebody who asks nothing is in nobody's way.
    let _stuck = wait_for("the socket", EVENT_TIMEOUT, || UnixStream::connect(&socket).ok());
    let mut stream = UnixStream::connect(&socket).expect("the socket");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").expect("to ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text"));
    assert_eq!(parse(body), after);
    server.signal(SIGINT);
    server.finish(Duration::from_secs(60)).succeeds();
    assert!(!socket.exists(), "its socket is left");
    device.detach();
}

fn a_device_is_known_by_its_name(api: Api) {
    let files = TempDir::new();
    let config = files.path().join("devices.toml");
    let text = format!("[data]\nexport = \"mem:1M\"\nkernel-api = \"{}\"\n", api.name());
    std::fs::write(&config, text).expect("a file");
    let config = config.to_str().expect("a path");
    ctl(["check-config", config]).succeeds();
    let device = Device::printed_by(&ctl(["attach", "--config", config, "data"]).succeeds());
    let again = ctl(["attach", "--config", config, "data"]).fails_with(4);
    again.says(&["data is attached already", &device.name()]);
    assert!(ctl(["attach", "--config", config, "--all"]).succeeds().stdout.is_empty());
    let status = ctl(["status", "data", "--json"]).succeeds();
    assert!(status.stdout.contains(&device.name()), "{}", status.stdout);
    ctl(["attach", "--config", config, "date"])
        .fails_with(3)
        .says(&["no device date; it has data"]);
    device.detach();
    ctl(["status", "data"]).fails_with(2);
}

/// The fields of the only or latest event of this name.
#[track_caller]
fn event(log: &str, name: &str) -> BTreeMap<String, String> {
    let wanted = format!(" event={name}");
    let line = log.lines().rfind(|line| line.contains(&wanted));
    let line = line.unwrap_or_else(|| panic!("no event {name} in {log}"));
    let (_, fields) = line.split_once(&wanted).expect("an event");
    let fields = fields.split(' ').filter_map(|word| word.split_once('='));
    fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn the_log_has_events_to_alert_on(api: Api) {
    let device = Device::attach(api, ["mem:4M"]);
    let name = device.name();
    let first = device.backend();
    let ready = event(&device.log(), "ready");
    assert_eq!((&*ready["size"], &*ready["backend"]), ("4194304", &*first.to_string()));

    // It has a request and does not answer any more.
    assert!(signal(first, SIGSTOP));
    let read = disk::start_read(&device.path(), 0);
    wait_until("a request", EVENT_TIMEOUT, || !device.status().in_flight.is_empty());
    assert!(signal(first, SIGKILL));
    read.finish(EVENT_TIMEOUT).succeeds();
    // The answer was there before the holder had written about it.
    wait_until("a recovery in the log", EVENT_TIMEOUT, || device.log().contains("event=recovered"));
    let log = device.log();
    let lost = event(&log, "backend-lost");
    assert_eq!((&*lost["pid"], &*lost["signal"]), (&*first.to_string(), "SIGKILL"));
    assert_ne!(lost["in_flight"], "0");
    let recovered = event(&log, "recovered");
    assert_eq!(recovered["pid"], device.backend().to_string());
    assert!(recovered["recovered_ms"].parse::<f64>().expect("a time") > 0.0);
    assert!(
        log.contains(&format!("nbd-kernel-holder: {name}: backend {first} killed by SIGKILL "))
    );

    ctl(["pause", &name]).succeeds();
    ctl(["resume", &name]).succeeds();
    event(&device.log(), "resumed");
    device.detach();
}

fn the_doctor_finds_and_mends_what_a_killed_holder_leaves(api: Api) {
    let healthy = ctl(["doctor", "--json"]).succeeds();
    assert!(healthy.stdout.contains("nbds_max=16"), "{}", healthy.stdout);
    let device = Device::attach(api, ["mem:1M"]);
    ctl(["doctor"]).succeeds();

    let holder = device.state().expect("a state").holder;
    assert!(signal(holder.pid, SIGKILL));
    wait_until("the death of the holder", EVENT_TIMEOUT, || !holder.is_alive());
    Registry::new(None).create_folder(15).expect("a stale entry");
    let sick = ctl(["doctor"]).fails_with(1).stdout;
    assert!(sick.contains(&format!("{}: its holder has died", device.name())), "{sick}");
    assert!(sick.contains("nbd15: its processes have died"), "{sick}");

    let mended = ctl(["doctor", "--fix"]).succeeds().stdout;
    assert!(mended.contains("nbd15: cleaned up"), "{mended}");
    assert!(mended.contains(&format!("{}: has a holder again", device.name())), "{mended}");
    ctl(["doctor"]).succeeds();
    assert_ne!(device.state().expect("a state").holder.pid, holder.pid);
    device.detach();
}
