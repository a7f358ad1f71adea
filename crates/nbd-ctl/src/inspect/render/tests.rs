//! Exact texts.

use nbd_control::backend::ExportInfo;
use nbd_control::latency::{Bucket, LatencyStatus};
use nbd_control::status::{BackendState, BackendStatus, TotalsStatus};

use super::*;

pub(crate) fn example() -> Status {
    Status {
        device: "nbd0".into(),
        path: "/dev/nbd0".into(),
        export: ExportInfo { size: 1 << 30, block_size: 4096, flags: 1 },
        read_only: false,
        kernel_api: "ioctl".into(),
        lanes: 2,
        on_backend_loss: "hold".into(),
        under_way: None,
        recording: None,
        holder_pid: 812,
        sitter_pid: 813,
        sitter_tracer_pid: Some(812),
        backend: BackendStatus {
            state: BackendState::Running,
            detail: String::new(),
            pid: Some(820),
            process_state: Some('S'),
            tracer_pid: None,
            description: "file:/srv/disk.img".into(),
            program: vec!["/usr/bin/nbd-serve".into(), "file:/srv/disk.img".into()],
            restarts: 0,
            retry: None,
        },
        in_flight: Vec::new(),
        totals: TotalsStatus::default(),
        latencies: Vec::new(),
        last_recovery: None,
        poisoned: Vec::new(),
    }
}

fn status(status: &Status) -> String {
    let listed = Listed::Attached(Box::new(status.clone()));
    super::status(&Entry { listed, name: None, used_by: Vec::new() }).unwrap()
}

pub(crate) fn request(number: u64) -> RequestStatus {
    RequestStatus {
        lane: 1,
        command: "read".into(),
        offset: 4096 * number,
        length: 4096,
        cookie: format!("{number:016x}"),
        stage: Stage::Executing,
        age_ms: 125_000 - number,
        attempts: 2,
        crashes: 0,
    }
}

#[test]
fn an_idle_device() {
    assert_eq!(
        status(&example()),
        "\
nbd0
  path       /dev/nbd0
  size       1.0 GiB (1073741824 bytes), blocks of 4096 bytes
  access     read and write
  kernel api ioctl, 2 lanes
  holder     pid 812
  sitter     pid 813, in NBD_DO_IT; shielded from debuggers by the trace of its holder
  backend    running, pid 820, process state S
  serves     file:/srv/disk.img
  program    /usr/bin/nbd-serve file:/srv/disk.img
  restarts   0
  answered   0 reads (0 B), 0 writes (0 B), 0 flushes, 0 trims, 0 others, 0 errors
  in flight  none
"
    );
}

#[test]
fn the_name_and_the_users_of_a_device_are_told() {
    let entry = Entry {
        listed: Listed::Attached(Box::new(example())),
        name: Some("backup".into()),
        used_by: vec!["mounted on /mnt".into(), "used by dm-0".into()],
    };
    let text = super::status(&entry).unwrap();
    assert!(text.starts_with("nbd0\n  name       backup\n  path       /dev/nbd0\n"), "{text}");
    assert!(text.contains("\n  in use     mounted on /mnt\n  in use     used by dm-0\n"), "{text}");
}

#[test]
fn a_device_in_trouble() {
    let mut device = example();
    device.read_only = true;
    device.lanes = 1;
    device.backend = BackendStatus {
        state: BackendState::Stopped,
        detail: "stopped by its debugger".into(),
        pid: Some(900),
        process_state: Some('t'),
        tracer_pid: Some(950),
        description: "my \x1b[31mexport".into(),
        program: Vec::new(),
        restarts: 3,
        retry: None,
    };
    device.totals = TotalsStatus {
        reads: 1,
        writes: 2000,
        flushes: 1,
        trims: 2,
        others: 1,
        errors: 7,
        read_bytes: 4096,
        written_bytes: 3 << 20,
    };
    device.last_recovery = Some(RecoveryStatus {
        cause: "killed by SIGKILL".into(),
        ago_ms: 12_450.3,
        ready_ms: Some(3.12),
        first_answer_ms: Some(3.4),
        replayed: Some(1),
    });
    let mut unread = request(1);
    unread.stage = Stage::Unread;
    unread.attempts = 0;
    unread.command = "write_zeroes".into();
    device.in_flight = vec![request(0), unread];
    device.poisoned = vec![PoisonStatus {
        lane: 0,
        command: "write".into(),
        offset: 8192,
        length: 512,
        crashes: 3,
        cause: "killed by SIGSEGV (core dumped)".into(),
        ago_ms: 1500.0,
    }];
    assert_eq!(
        status(&device),
        "\
nbd0
  path       /dev/nbd0
  size       1.0 GiB (1073741824 bytes), blocks of 4096 bytes
  access     read-only
  kernel api ioctl, 1 lane
  holder     pid 812
  sitter     pid 813, in NBD_DO_IT; shielded from debuggers by the trace of its holder
  backend    stopped, pid 900, process state t, traced by pid 950
             stopped by its debugger
  serves     my \\u{1b}[31mexport
  program    none: backends join by hand
  restarts   3
  last loss  killed by SIGKILL, 12.4 s ago; ready after 3.1 ms, first answer after 3.4 ms, 1 request replayed
  answered   1 read (4.0 KiB), 2000 writes (3.0 MiB), 1 flush, 2 trims, 1 other, 7 errors
  given up   write 8192+512: answered with EIO 1.5 s ago, as it crashed 3 backends, the last one killed by SIGSEGV (core dumped)
  in flight  2 requests, the oldest for 2m05s
      AGE  COMMAND       OFFSET  LENGTH  STAGE      ATTEMPTS  LANE  COOKIE
    2m05s  read               0    4096  executing         2     1  0000000000000000
    2m04s  write_zeroes    4096    4096  unread            0     1  0000000000000001
"
    );
}

#[test]
fn a_loss_without_successor() {
    let last = RecoveryStatus {
        cause: "exit status 1".into(),
        ago_ms: 10.0,
        ready_ms: None,
        first_answer_ms: None,
        replayed: None,
    };
    assert_eq!(recovery(&last), "exit status 1, 10 ms ago; no successor yet");
}

#[test]
fn only_the_oldest_requests_are_shown() {
    let all: Vec<RequestStatus> = (0..25).map(request).collect();
    let text = requests(&all);
    assert_eq!(text.lines().count(), 22);
    assert_eq!(text.lines().last(), Some("    … and 5 more"));
    let all: Vec<RequestStatus> = (0..20).map(request).collect();
    assert_eq!(requests(&all).lines().count(), 21);
}

#[test]
fn times_are_told_of_what_there_was() {
    let mut device = example();
    let bucket = |from_ns, count| Bucket { from_ns, below_ns: Some(2 * from_ns), count };
    let buckets = vec![bucket(20_480, 990), bucket(40_960, 9), bucket(655_360, 1)];
    device.latencies = ["read", "write"]
        .map(|name| {
            let buckets = if name == "read" { buckets.clone() } else { Vec::new() };
            LatencyStatus::new(name.into(), 25.0, buckets)
        })
        .into();
    let text = status(&device);
    let took: Vec<_> = text.lines().filter(|line| line.starts_with("  took")).collect();
    assert_eq!(took, ["  took       read: p50 41 µs, p99 41 µs, p99.9 82 µs, max 1.3 ms"]);
}
