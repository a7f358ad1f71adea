//! One interval of `top`, and what it needs.

use nbd_control::control::{Request, Response};
use nbd_control::latency::{Bucket, LatencyStatus};
use nbd_control::status::Status;

use crate::runtime_dir::RuntimeDir;
use crate::sample::{answer_one, drain, status};

fn after_reads(reads: u64) -> Status {
    let mut status = status("nbd0");
    status.totals.reads = reads;
    status.totals.read_bytes = 4096 * reads;
    let bucket = Bucket { from_ns: 1_000_000, below_ns: Some(1_250_000), count: reads };
    status.latencies = vec![LatencyStatus::new("read".into(), reads as f64, vec![bucket])];
    status
}

#[test]
fn one_interval_is_the_difference_of_two_looks() {
    for json in [false, true] {
        let runtime = RuntimeDir::new();
        let holder = runtime.listen(0, |listener| {
            for reads in [1000, 1100] {
                let answer = Response::Status(Box::new(after_reads(reads)));
                assert_eq!(answer_one(&listener, &[answer]), Request::Status);
            }
        });
        let mut arguments = vec!["top", "--once", "--interval", "0.1", "nbd0"];
        arguments.extend(json.then_some("--json"));
        let ran = runtime.run(&arguments);
        holder.join().unwrap();
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
        if json {
            let told: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
            let told = &told[0];
            assert_eq!((&told["device"], &told["state"]), (&"nbd0".into(), &"running".into()));
            let reads =
                told["reads_per_s"].as_f64().unwrap() * told["interval_s"].as_f64().unwrap();
            assert_eq!(reads.round(), 100.0);
            assert_eq!(told["latency"]["count"], 100);
            assert_eq!(told["latencies"][0]["p99_ms"], 1.25);
        } else {
            let lines: Vec<_> = ran.stdout.lines().collect();
            assert!(lines[0].starts_with("DEVICE  STATE"), "{ran:?}");
            assert!(lines[1].starts_with("nbd0    running"), "{ran:?}");
            assert!(lines[1].contains("1.2 ms"), "{ran:?}");
            assert_eq!(lines.len(), 2);
        }
    }
}

#[test]
fn without_devices_there_is_nothing_to_show() {
    let runtime = RuntimeDir::new();
    let hint = "nbd-ctl: nothing is attached: nbd-ctl attach file:disk.img\n";
    runtime.run(&["top", "--once"]).succeeded("", hint);
    runtime.run(&["top", "--once", "--json"]).succeeded("[]\n", hint);
    runtime.run(&["top", "nbd3", "--once"]).failed(
        3,
        "nbd3: no such attached device (nothing is attached; see nbd-ctl attach --help)",
    );
}

#[test]
fn what_is_no_terminal_is_told_what_to_use() {
    let runtime = RuntimeDir::new();
    runtime
        .run(&["top"])
        .failed(2, "top: needs a terminal: use nbd-ctl top --once, which prints lines");
    for wrong in [&["top", "--json"][..], &["top", "--interval", "0"], &["top", "sda"]] {
        assert_eq!(runtime.run(wrong).code, Some(2), "{wrong:?}");
    }
}

#[test]
fn a_silent_holder_has_a_line_and_an_exit_status() {
    let runtime = RuntimeDir::new();
    let holder = runtime.listen(0, |listener| {
        for reads in [5, 6] {
            answer_one(&listener, &[Response::Status(Box::new(after_reads(reads)))]);
        }
    });
    let silent = runtime.listen(1, |listener| {
        for _ in 0..2 {
            drain(&listener.accept().unwrap().0);
        }
    });
    let ran = runtime.run(&["top", "--once", "--interval", "0.1"]);
    holder.join().unwrap();
    silent.join().unwrap();
    assert_eq!(ran.code, Some(5), "{ran:?}");
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert!(lines[1].starts_with("nbd0    running"), "{ran:?}");
    assert!(lines[2].starts_with("nbd1    no answer"), "{ran:?}");
    assert!(ran.stderr.starts_with("nbd-ctl: nbd1: no answer within 5 s"), "{ran:?}");
}
