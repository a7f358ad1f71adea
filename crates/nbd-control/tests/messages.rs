//! The bytes of every message. Programs of two releases that say the same version to each other exchange them.
//!
//! `recorded/messages-VERSION.txt` has a line for each kind of message, as the first release with that
//! version wrote it, or as the release that added the kind.

#![allow(clippy::unwrap_used, reason = "all of it is a test")]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::path::PathBuf;

use nbd_control::backend::{ExportInfo, FromBackend, FromHolder, Grant, Hello, Poison};
use nbd_control::channel::{GREETING, VERSION};
use nbd_control::control::{Failure, FailureKind, Report, Request, Response};
use nbd_control::handover::Handover;
use nbd_control::latency::{Bucket, LatencyStatus};
use nbd_control::settings::{self, Kind, Setting};
use nbd_control::status::{
    BackendState, BackendStatus, PoisonStatus, RecoveryStatus, RequestStatus, RetryStatus, Stage,
    Status, TotalsStatus,
};
use nbd_control::trace::{Executed, Trace};
use nbd_control::wire;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The kinds of an enum. One that is missing here does not compile, and one without a sample fails.
macro_rules! kinds {
    ($($enum:ident: $($kind:ident)*;)*) => { $(
        impl Kinds for $enum {
            const ALL: &'static [&'static str] = &[$(stringify!($kind)),*];
            const ENUM: &'static str = stringify!($enum);

            fn kind(&self) -> &'static str {
                match self { $(Self::$kind { .. } => stringify!($kind),)* }
            }
        }
    )* };
}

trait Kinds {
    const ALL: &'static [&'static str];
    const ENUM: &'static str;

    fn kind(&self) -> &'static str;
}

kinds! {
    FromBackend: Hello Keep Ready Failed Poisoned Examine Left;
    FromHolder: Grant Refusal Kept Stored;
    Request: Status Detach Restart Replace WaitReady Set Fail Pause Resume Trace Resize Record EndRecording
        Upgrade;
    Response: Status Trace Done Failed Notice Settings;
    Report: Notice Ready Failed;
    FailureKind: Other Usage NoDevice Busy TimedOut DataLost;
    BackendState: Starting Running Stopped Restarting Waiting Down Paused Failing Failed;
    Stage: Unread Queued Executing;
}

const EXPORT: ExportInfo = ExportInfo { size: 1 << 30, block_size: 4096, flags: 0x46d };

fn from_backend() -> Vec<FromBackend> {
    let hello = Hello {
        ledger_version: 3,
        description: "file:/srv/disk.img".into(),
        export: EXPORT,
        takeover: true,
    };
    let poison = Poison { lane: 1, command: 1, offset: 4096, length: 512, crashes: 3 };
    vec![
        FromBackend::Hello(hello),
        FromBackend::Keep { name: "settings".into() },
        FromBackend::Ready { replayed: 7 },
        FromBackend::Failed { reason: "no".into(), damaged: true },
        FromBackend::Poisoned(poison),
        FromBackend::Examine,
        FromBackend::Left,
    ]
}

fn from_holder() -> Vec<FromHolder> {
    let grant = Grant {
        device: "nbd0".into(),
        lanes: 2,
        ring: 64 << 20,
        transmit: 33 << 20,
        max_payload: 32 << 20,
        keepsakes: vec!["settings".into(), "memory".into()],
        crashed: true,
        poison_limit: 3,
    };
    let names = vec!["memory".into()];
    vec![
        FromHolder::Grant(grant),
        FromHolder::Refusal { reason: "another size".into() },
        FromHolder::Kept,
        FromHolder::Stored { device: "nbd0".into(), attached: true, names },
    ]
}

fn requests() -> Vec<Request> {
    vec![
        Request::Status,
        Request::Detach { force: true },
        Request::Restart,
        Request::Replace { program: Some(vec!["nbd-serve".into(), "mem:1G".into()]) },
        Request::WaitReady,
        Request::Set { assignments: vec!["error.rate=1%".into()] },
        Request::Fail { kill: true },
        Request::Pause { kill: true },
        Request::Resume,
        Request::Trace { from: vec![5, 6] },
        Request::Resize { size: Some(1 << 31), force: true },
        Request::Record { path: "/tmp/x".into() },
        Request::EndRecording,
        Request::Upgrade { program: "/usr/bin/nbd-kernel-holder".into() },
    ]
}

fn failure(kind: FailureKind) -> Failure {
    Failure::new(kind, "it is mounted")
}

fn responses() -> Vec<Response> {
    vec![
        Response::Status(Box::new(status())),
        Response::Trace(Box::new(trace())),
        Response::Done { text: "done".into() },
        Response::Failed(failure(FailureKind::Busy)),
        Response::Notice { text: "wait".into() },
        Response::Settings(vec![("error.rate".into(), "1%".into())]),
    ]
}

fn reports() -> Vec<Report> {
    vec![
        Report::Notice { text: "wait".into() },
        Report::Ready { path: "/dev/nbd0".into() },
        Report::Failed(failure(FailureKind::NoDevice)),
    ]
}

fn trace() -> Trace {
    let executed = Executed {
        lane: 1,
        number: 2,
        command: "read".into(),
        flags: 3,
        offset: 4,
        length: 5,
        cookie: 6,
        received_at: 7,
        started_at: 8,
        finished_at: 9,
        attempts: 10,
        error: 11,
        backend: 12,
    };
    Trace { requests: vec![executed], next: vec![3], recording: Some("/tmp/x".into()) }
}

/// Each of its fields has a value that no other has.
fn status() -> Status {
    let backend = BackendStatus {
        state: BackendState::Running,
        detail: "detail".into(),
        pid: Some(12),
        process_state: Some('S'),
        tracer_pid: Some(13),
        description: "mem:1G".into(),
        program: vec!["nbd-serve".into()],
        restarts: 14,
        retry: Some(RetryStatus {
            since_ms: 15,
            tries: 16,
            cause: "retry".into(),
            next_ms: Some(17),
        }),
    };
    let request = RequestStatus {
        lane: 18,
        command: "write".into(),
        offset: 19,
        length: 20,
        cookie: "21".into(),
        stage: Stage::Executing,
        age_ms: 22,
        attempts: 23,
        crashes: 24,
    };
    let poison = PoisonStatus {
        lane: 25,
        command: "trim".into(),
        offset: 26,
        length: 27,
        crashes: 28,
        cause: "SIGSEGV".into(),
        ago_ms: 29.5,
    };
    let latency = LatencyStatus {
        command: "flush".into(),
        count: 30,
        sum_ms: 31.5,
        median_ms: Some(32.5),
        p99_ms: Some(33.5),
        p999_ms: Some(34.5),
        max_ms: None,
        buckets: vec![Bucket { from_ns: 35, below_ns: Some(36), count: 37 }],
    };
    Status {
        device: "nbd0".into(),
        path: "/dev/nbd0".into(),
        export: EXPORT,
        read_only: true,
        kernel_api: "ioctl".into(),
        lanes: 2,
        on_backend_loss: "hold".into(),
        under_way: Some("detaching".into()),
        recording: None,
        holder_pid: 9,
        sitter_pid: 10,
        sitter_tracer_pid: Some(11),
        backend,
        in_flight: vec![request],
        totals: TotalsStatus {
            reads: 38,
            writes: 39,
            flushes: 40,
            trims: 41,
            others: 42,
            errors: 43,
            read_bytes: 44,
            written_bytes: 45,
        },
        latencies: vec![latency],
        last_recovery: Some(RecoveryStatus {
            cause: "SIGKILL".into(),
            ago_ms: 46.5,
            ready_ms: Some(47.5),
            first_answer_ms: Some(48.5),
            replayed: Some(49),
        }),
        poisoned: vec![poison],
    }
}

fn handover() -> Handover {
    Handover { index: 3, client: true, backend: true, joined: true, orphans: vec![7, 8] }
}

fn settings() -> Vec<u8> {
    let kinds = [Kind::Share, Kind::Time, Kind::Bytes, Kind::Number, Kind::Switch, Kind::Error];
    let setting = |kind| Setting { name: format!("layer.{kind:?}"), kind, initial: 1, value: 2 };
    let table = kinds.map(setting);
    let bytes = settings::encode(&table);
    let used = 64 * (1 + table.len());
    assert!(bytes[used..].iter().all(|byte| *byte == 0), "the rest is room for more");
    bytes[..used].to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn recorded(name: &str) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/recorded", name].iter().collect();
    fs::read_to_string(&path).unwrap_or_default()
}

/// What this build says, line by line, and whether it understands itself.
#[derive(Default)]
struct Said(Vec<(String, String)>);

impl Said {
    fn bytes(&mut self, name: &str, bytes: &[u8]) {
        self.0.push((name.into(), hex(bytes)));
    }

    fn message<T: Serialize + DeserializeOwned + PartialEq + Debug>(
        &mut self,
        name: &str,
        message: &T,
    ) {
        let bytes = wire::encode(message).unwrap();
        assert_eq!(wire::decode::<T>(&bytes).as_ref(), Ok(message), "{name}");
        self.bytes(name, &bytes);
    }

    fn all<T: Kinds + Serialize + DeserializeOwned + PartialEq + Debug>(&mut self, samples: &[T]) {
        let kinds: Vec<_> = samples.iter().map(Kinds::kind).collect();
        assert_eq!(kinds, T::ALL, "a sample of each {}, in their order", T::ENUM);
        for sample in samples {
            self.message(&format!("{}::{}", T::ENUM, sample.kind()), sample);
        }
    }
}

fn said() -> Said {
    let mut said = Said::default();
    said.bytes("greeting", &GREETING);
    said.all(&from_backend());
    said.all(&from_holder());
    said.all(&requests());
    said.all(&responses());
    said.all(&reports());
    use {BackendState as B, FailureKind as F, Stage as S};
    said.all(&[F::Other, F::Usage, F::NoDevice, F::Busy, F::TimedOut, F::DataLost]);
    let (up, down) = ([B::Starting, B::Running, B::Stopped], [B::Paused, B::Failing, B::Failed]);
    said.all(&[&up[..], &[B::Restarting, B::Waiting, B::Down], &down].concat());
    said.all(&[S::Unread, S::Queued, S::Executing]);
    said.message("Handover", &handover());
    said.message("without", &(None::<String>, Vec::<u64>::new(), false));
    said.bytes("settings", &settings());
    said
}

#[test]
fn messages_have_the_bytes_of_their_version() {
    let name = format!("messages-{VERSION}.txt");
    let text = recorded(&name);
    let agreed: BTreeMap<_, _> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let said = said().0;
    for (message, bytes) in &said {
        assert_eq!(
            Some(&bytes.as_str()),
            agreed.get(message.as_str()),
            "{message} is another one in tests/recorded/{name}, as programs of earlier releases know it. Leave its \
             bytes as they were, or raise channel::VERSION and begin a file of that version. A kind that is new is \
             the last of its enum, and gets the line:\n{message} {bytes}\n"
        );
    }
    assert_eq!(said.len(), agreed.len(), "a kind of message was taken away");
}

#[test]
fn what_a_status_told_in_json_it_still_tells() {
    let agreed: serde_json::Value = serde_json::from_str(&recorded("status.json")).unwrap();
    let told = serde_json::to_value(status()).unwrap();
    contains(&told, &agreed, "status");
}

/// Keys may be added; none may be renamed, taken away, or mean another thing.
fn contains(told: &serde_json::Value, agreed: &serde_json::Value, path: &str) {
    use serde_json::Value::{Array, Object};
    match (told, agreed) {
        (Object(told), Object(agreed)) => {
            for (key, value) in agreed {
                let path = format!("{path}.{key}");
                let told = told.get(key).unwrap_or_else(|| panic!("{path} is told no more"));
                contains(told, value, &path);
            }
        }
        (Array(told), Array(agreed)) => {
            assert_eq!(told.len(), agreed.len(), "{path}");
            for (told, agreed) in told.iter().zip(agreed) {
                contains(told, agreed, path);
            }
        }
        _ => assert_eq!(told, agreed, "{path}"),
    }
}

/// Not a test: begins the files of a new version.
#[test]
#[ignore = "writes the file that the tests read"]
fn record_the_messages_of_this_version() {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/recorded"].iter().collect();
    let lines = said().0.into_iter().map(|(name, bytes)| format!("{name} {bytes}\n"));
    fs::write(folder.join(format!("messages-{VERSION}.txt")), lines.collect::<String>()).unwrap();
    let status = serde_json::to_string_pretty(&status()).unwrap() + "\n";
    fs::write(folder.join("status.json"), status).unwrap();
}
