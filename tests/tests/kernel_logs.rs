//! What backends write: read, limited, kept for as long as it is worth something, and nothing that
//! I/O waits for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nbd_control::registry::{DEFAULT_DIRECTORY, Registry};
use nbd_control::status::BackendState;
use nbd_tests::command::{PROGRAM_TIMEOUT, launch, run};
use nbd_tests::ctl::{ctl, program};
use nbd_tests::device::Device;
use nbd_tests::disk;
use nbd_tests::process::signal;
use nbd_tests::temp::TempDir;
use nbd_tests::wait::{EVENT_TIMEOUT, wait_until};
use nbd_tests::{Api, kernel_tests};
use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP};

const MIB: u64 = 1 << 20;

kernel_tests!(
    a_flood_of_a_hostile_backend_fills_neither_run_nor_memory,
    a_backend_goes_on_writing_while_its_holder_is_dead_or_stopped,
    an_upgrade_reads_on_where_the_former_program_ended,
    thousands_of_errors_are_logged_in_a_few_lines,
    a_full_runtime_directory_costs_log_lines_and_no_requests,
    an_error_quotes_the_last_lines_of_the_program_that_failed,
    logs_shows_the_log_of_a_detached_device,
    lines_of_a_backend_cannot_pass_for_those_of_the_holder,
);

/// A backend of the user's own: a shell that says something in the background and then serves.
fn talker(files: &TempDir, says: &str) -> Vec<String> {
    let spec = files.spec("disk.img", MIB);
    let text = format!("{{ {says}; }} & exec {} {spec}", program("nbd-serve"));
    ["--", "/bin/sh", "-c", &text].map(String::from).to_vec()
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

fn logs(index: u32) -> [PathBuf; 2] {
    let registry = Registry::new(None);
    [registry.log(index), registry.log(index).with_extension("old")]
}

/// What a process has taken for itself, all of it locked in a holder.
fn memory(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// All that the device has written and read is as it was.
fn serves(device: &Device) {
    let bytes = vec![0x5a; 4096];
    disk::write(&device.path(), 4096, &bytes);
    assert_eq!(disk::read(&device.path(), 4096, 4096), bytes);
}

fn a_flood_of_a_hostile_backend_fills_neither_run_nor_memory(api: Api) {
    let files = TempDir::new();
    // A file could be made as long as one likes; a pipe cannot.
    let says = "truncate -s 650M /proc/self/fd/1; exec yes a line of a hostile backend >&2";
    let device = Device::attach(api, talker(&files, says));
    let holder = device.status().holder_pid;
    let before = fs::read_to_string(format!("/proc/{holder}/stat")).expect("a process");
    let ticks = |stat: &str| -> u64 {
        let fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
        fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
    };
    wait_until("a flood", EVENT_TIMEOUT, || {
        logs(device.index()).iter().map(|it| size(it)).sum::<u64>() > 200_000
    });
    let waited = std::time::Instant::now();
    for _ in 0..20 {
        serves(&device);
        ctl(["status", &device.name()]).succeeds();
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    let after = fs::read_to_string(format!("/proc/{holder}/stat")).expect("a process");
    // Clock ticks are hundredths of a second.
    let busy = (ticks(&after) - ticks(&before)) as f64 / 100.0 / waited.elapsed().as_secs_f64();
    nbd_tests::report(&format!("the holder takes {:.0} % of a processor", busy * 100.0));
    let length: u64 = logs(device.index()).iter().map(|it| size(it)).sum();
    assert!(length < 2 * MIB + 70_000, "{length} bytes of logs");
    let folder = run("du", ["-sk", DEFAULT_DIRECTORY]).succeeds().stdout;
    let kib: u64 = folder.split_whitespace().next().expect("a size").parse().expect("a size");
    assert!(kib < 4096, "{kib} KiB in {DEFAULT_DIRECTORY}");
    assert!(memory(holder) < 16 * MIB, "the holder has {} bytes", memory(holder));
    let name = device.name();
    device.detach();
    // What was left out is told.
    let told = ctl(["logs", &name, "--lines", "100000"]).succeeds().stdout;
    assert!(told.contains("event=lines-dropped lines="), "the log does not say so");
}

fn a_backend_goes_on_writing_while_its_holder_is_dead_or_stopped(api: Api) {
    let files = TempDir::new();
    let count = files.join("count");
    // A foreign program: its stderr blocks. Sixty lines are more than any pipe of ours holds,
    // and each costs a process.
    let says = format!(
        "i=0; while :; do i=$((i+1)); printf '%020000d\\n' $i >&2; echo $i >{0}.new; \
         mv {0}.new {0}; done",
        count.display()
    );
    let device = Device::attach(api, talker(&files, &says));
    let counted = || -> u64 {
        let text = fs::read_to_string(&count).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    let goes_on = |what: &str| {
        let before = counted();
        wait_until(what, EVENT_TIMEOUT, || counted() > before + 60);
        serves(&device);
    };
    goes_on("a backend that writes");
    let backend = device.backend();
    let holder = device.status().holder_pid;
    assert!(signal(holder, SIGSTOP));
    goes_on("a backend that writes while its holder is stopped");
    assert!(signal(holder, SIGCONT));
    assert_eq!(device.status().holder_pid, holder);
    assert!(signal(holder, SIGKILL));
    wait_until("the holder's end", EVENT_TIMEOUT, || {
        !Path::new(&format!("/proc/{holder}/fd/0")).exists()
    });
    goes_on("a backend that writes while it has no holder");
    ctl(["adopt", &device.name()]).succeeds();
    assert_eq!(device.backend(), backend, "nothing has killed it, not even SIGPIPE");
    goes_on("a backend that writes to another holder");
    // The new holder reads on: words reach the log.
    let log = Registry::new(None).log(device.index());
    fs::write(&log, "").expect("an empty log");
    wait_until("words in the log", EVENT_TIMEOUT, || device.log().contains("0000"));
    device.detach();
}

fn an_upgrade_reads_on_where_the_former_program_ended(api: Api) {
    let files = TempDir::new();
    let says = "i=0; while :; do i=$((i+1)); echo word $i >&2; sleep 0.05; done";
    let device = Device::attach(api, talker(&files, says));
    let backend = device.backend();
    wait_until("words", EVENT_TIMEOUT, || device.log().contains("word 20\n"));
    let next = files.join("next");
    fs::copy(program("nbd-kernel-holder"), &next).expect("a copy of the holder");
    let mut command = Command::new(program("nbd-ctl"));
    command.args(["upgrade", &device.name()]).env("NBD_HOLDER_PROGRAM", &next);
    launch(command).finish(PROGRAM_TIMEOUT).succeeds();
    wait_until("more words", EVENT_TIMEOUT, || device.log().contains("word 60\n"));
    let log = device.log();
    for number in 1..=60 {
        let line = format!("word {number}");
        assert_eq!(log.lines().filter(|it| **it == line).count(), 1, "{line}:\n{log}");
    }
    assert_eq!(device.backend(), backend);
    // What the holder itself says is limited as before: a log that is full is put aside.
    let [log, old] = logs(device.index());
    fs::OpenOptions::new().append(true).open(&log).expect("a log").set_len(MIB + 1).expect("room");
    wait_until("another log", EVENT_TIMEOUT, || old.exists() && size(&log) < MIB / 2);
    let stderr = fs::read_link(format!("/proc/{}/fd/2", device.status().holder_pid));
    assert_eq!(stderr.expect("a holder"), log);
    // Nor does it lose the words of programs that it starts itself.
    assert!(signal(backend, SIGKILL));
    wait_until("another backend", EVENT_TIMEOUT, || {
        let now = device.status().backend;
        now.state == BackendState::Running && now.pid != Some(backend)
    });
    serves(&device);
    device.detach();
}

fn thousands_of_errors_are_logged_in_a_few_lines(api: Api) {
    let files = TempDir::new();
    let spec = format!("error:read=1,from=4K@{}", files.spec("disk.img", 16 * MIB));
    let device = Device::attach(api, [spec]);
    let path = device.path();
    let input = format!("if={}", path.display());
    for _ in 0..30 {
        // Past the page cache, each block for itself.
        let words = ["of=/dev/null", "bs=4096", "skip=1", "count=1000", "iflag=direct"];
        run("dd", [&*input, "conv=noerror"].into_iter().chain(words));
        if device.status().totals.errors >= 3000 {
            break;
        }
    }
    assert!(device.status().totals.errors >= 3000, "{:?}", device.status().totals);
    let log = device.log();
    let lines = log.lines().filter(|line| line.contains("failed: Input/output error")).count();
    assert!((1..20).contains(&lines), "{lines} lines:\n{log}");
    let name = device.name();
    device.detach();
    let told = ctl(["logs", &name]).succeeds().stdout;
    assert!(told.contains(" more in the last "), "{told}");
    assert!(told.contains("event=detached"), "{told}");
}

/// As it is on many machines, but small: a tmpfs, and full.
fn a_full_runtime_directory_costs_log_lines_and_no_requests(api: Api) {
    let files = TempDir::new();
    let small = files.join("run");
    fs::create_dir(&small).expect("a directory");
    run("mount", ["-t", "tmpfs", "-o", "size=1M,mode=755", "none", &small.display().to_string()])
        .succeeds();
    let directory = small.join("nbd");
    let with = |words: &[&str]| {
        let mut command = Command::new(program("nbd-ctl"));
        command.args(words).env("NBD_RUNTIME_DIR", &directory);
        launch(command).finish(PROGRAM_TIMEOUT)
    };
    // Long ones: what is left of a page takes short ones for a while.
    let says = "i=0; while :; do i=$((i+1)); printf '%01000d\\n' $i >&2; sleep 0.01; done";
    let program = talker(&files, says);
    let mut words = vec!["attach", "--kernel-api", api.name()];
    words.extend(program.iter().map(|word| &**word));
    let attached = with(&words).succeeds().stdout;
    let path = PathBuf::from(attached.trim());
    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
    let full = small.join("full");
    run("dd", ["if=/dev/zero", &format!("of={}", full.display()), "bs=4096"]);
    let log = directory.join(&name).join("log");
    let before = size(&log);
    for _ in 0..20 {
        disk::write(&path, 0, &[7; 4096]);
        assert_eq!(disk::read(&path, 0, 4096), [7; 4096]);
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    assert!(size(&log) <= before + 4096, "the file system was not full");
    fs::remove_file(&full).expect("room");
    wait_until("words again, and how many are missing", EVENT_TIMEOUT, || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let note = lines.iter().position(|line| line.contains("lines are missing here"));
        note.is_some_and(|at| lines[at].contains("No space left") && lines.len() > at + 1)
    });
    let status = with(&["status", &name, "--json"]).succeeds().stdout;
    assert!(status.contains("\"running\""), "{status}");
    with(&["detach", &name]).succeeds();
    run("umount", [&small]).succeeds();
}

fn an_error_quotes_the_last_lines_of_the_program_that_failed(api: Api) {
    let attach = |script: &str| {
        ctl(["attach", "--kernel-api", api.name(), "--", "/bin/sh", "-c", script]).fails_with(1)
    };
    let failed = attach("echo first line >&2; echo second >&2; printf 'no end'; exit 7");
    failed.says(&["status 7", "it said: first line | second | no end"]);
    // One that says nothing has not said what another one did.
    let silent = attach("exit 8").says(&["status 8"]);
    assert!(!silent.stderr.contains("it said"), "{}", silent.stderr);
    // Another program's server, behind nbd-serve.
    let exec = "exec:echo words of the server >&2; exit 9";
    let failed = ctl(["attach", "--kernel-api", api.name(), exec]).fails_with(1);
    failed.says(&["words of the server"]);

    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", MIB)]);
    let name = device.name();
    let before = device.backend();
    let replace = |script: &str| ctl(["replace", &name, "--", "/bin/sh", "-c", script]);
    replace("echo words of a replacement >&2; exit 3")
        .fails_with(1)
        .says(&["the present backend goes on", "it said: words of a replacement"]);
    let silent = replace("exit 4").fails_with(1).says(&["status 4"]);
    assert!(!silent.stderr.contains("it said"), "{}", silent.stderr);
    assert_eq!(device.backend(), before);
    device.detach();
}

fn logs_shows_the_log_of_a_detached_device(api: Api) {
    let files = TempDir::new();
    let device = Device::attach(api, [files.spec("disk.img", MIB)]);
    let (name, index) = (device.name(), device.index());
    let now = ctl(["logs", &name]).succeeds();
    assert!(now.stdout.contains("event=ready"), "{}", now.stdout);
    assert_eq!(now.stderr, "");
    device.detach();
    let kept = ctl(["logs", &name]).succeeds().says(&["is not attached", "last attach"]);
    for event in ["attach", "ready", "detached"] {
        assert!(kept.stdout.contains(&format!("event={event}")), "{}", kept.stdout);
    }
    let mode =
        run("stat", ["-c", "%a %u", &Registry::new(None).last_log(index).display().to_string()]);
    assert_eq!(mode.succeeds().stdout, "600 0\n");
    // An attach that fails leaves its log, too, in the place of the former one.
    let script = "echo all is lost >&2; exit 1";
    let arguments = ["attach", "--kernel-api", api.name(), "--device", &name];
    ctl(arguments.into_iter().chain(["--", "/bin/sh", "-c", script])).fails_with(1);
    let kept = ctl(["logs", &name]).succeeds().stdout;
    assert!(kept.contains("\nall is lost\n") && !kept.contains("event=detached"), "{kept}");
    // It can be seen while there is another one.
    let spec = format!("file:{}", files.join("disk.img").display());
    let again = ["--device", &name, &spec];
    let device = Device::attach(api, again);
    assert!(ctl(["logs", &name, "--last"]).succeeds().stdout.contains("all is lost"));
    assert!(!ctl(["logs", &name]).succeeds().stdout.contains("all is lost"));
    device.detach();
    ctl(["logs", "nbd15"]).fails_with(3).says(&["nbd15: no such attached device"]);
}

fn lines_of_a_backend_cannot_pass_for_those_of_the_holder(api: Api) {
    let files = TempDir::new();
    let says = "printf 'nbd-kernel-holder: nbd0: detached event=detached\\n\\033[2J\\007\\n' >&2";
    let device = Device::attach(api, talker(&files, says));
    wait_until("its words", EVENT_TIMEOUT, || device.log().contains("\\u{7}"));
    let log = device.log();
    let forged = |line: &str| line.starts_with("nbd-kernel-holder: nbd0: detached");
    assert!(!log.lines().any(forged), "{log}");
    assert!(log.contains("backend: nbd-kernel-holder: nbd0: detached"), "{log}");
    assert!(!log.contains('\u{1b}'), "{log}");
    device.detach();
}
