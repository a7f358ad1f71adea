//! A runtime directory of its own for each test: nbd-ctl runs in it, holders that follow a script
//! listen in it, and it is removed with the test.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use nbd_control::attach_options::{AttachOptions, RestartWhen};
use nbd_control::channel::{GREETING, VERSION};
use nbd_control::control::{Report, Request, Response};
use nbd_control::history::History;
use nbd_control::process::ProcessId;
use nbd_control::registry::{Registry, State};

use crate::sample::{answer_one, status, until};

/// A runtime directory, removed when it is dropped.
pub(crate) struct RuntimeDir {
    pub(crate) directory: PathBuf,
    pub(crate) registry: Registry,
}

impl RuntimeDir {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("nbd-ctl-test-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&directory);
        let registry = Registry::new(Some(directory.join("run")));
        registry.prepare().unwrap();
        Self { directory, registry }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nbd-ctl"));
        command
            .args(arguments)
            .env("NBD_RUNTIME_DIR", self.registry.directory())
            .env("NBD_HOLDER_PROGRAM", "/nonexistent/holder")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().unwrap())
    }

    /// Runs nbd-ctl with a holder program that is a shell script.
    pub(crate) fn command_with_holder(&self, script: &str, arguments: &[&str]) -> Command {
        let path = self.script("holder", script);
        let mut command = self.command(arguments);
        command.env("NBD_HOLDER_PROGRAM", path);
        command
    }

    /// A holder program. It finds its report descriptor in `$fd`, and leaves its pid, arguments
    /// and working directory in files.
    pub(crate) fn script(&self, name: &str, script: &str) -> PathBuf {
        let here = self.directory.display();
        let text = format!(
            "#!/bin/bash\n\
             fd=$4\n\
             echo \"$@\" > {here}/arguments\n\
             pwd -P > {here}/cwd\n\
             echo $$ > {here}/pid.new; mv {here}/pid.new {here}/pid\n\
             {script}\n"
        );
        self.executable(name, &text)
    }

    /// The program under test, beside the executables of this directory; the build directory may be
    /// closed to other users.
    pub(crate) fn copied_program(&self) -> PathBuf {
        let path = self.directory.join("nbd-ctl");
        // By another process, for the reason that `executable` has.
        let mut copy = Command::new("cp");
        copy.arg(env!("CARGO_BIN_EXE_nbd-ctl")).arg(&path);
        assert!(copy.status().unwrap().success());
        path
    }

    pub(crate) fn executable(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.join(name);
        // A child of another test's fork may still have it open for writing if we wrote it here.
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "cat > \"$0\" && chmod 755 \"$0\""]);
        let mut child = shell.arg(&path).stdin(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(text.as_bytes()).unwrap();
        drop(input);
        assert!(child.wait().unwrap().success());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
        path
    }

    /// A file with the bytes of reports, greeting included, for a script to send.
    pub(crate) fn reports(&self, reports: &[Report]) -> PathBuf {
        let mut bytes = GREETING.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        for report in reports {
            let payload = nbd_control::wire::encode(report).unwrap();
            bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&0u32.to_le_bytes());
            bytes.extend_from_slice(&payload);
        }
        let path = self.directory.join("reports");
        fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.directory.join(name)).unwrap()
    }

    /// Waits until a script has left a file.
    pub(crate) fn appears(&self, name: &str) -> String {
        let path = self.directory.join(name);
        until(|| path.exists().then(|| fs::read_to_string(&path).unwrap()))
    }

    /// A holder of `nbd{index}` that treats each connection as `script` says.
    pub(crate) fn listen<T: Send + 'static>(
        &self,
        index: u32,
        script: impl FnOnce(UnixListener) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        if !self.registry.folder(index).exists() {
            self.registry.create_folder(index).unwrap();
        }
        let socket = self.registry.control_socket(index);
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(socket).unwrap();
        thread::spawn(move || script(listener))
    }

    /// A holder that answers one request with `responses`, and returns it.
    pub(crate) fn answers(&self, index: u32, responses: Vec<Response>) -> JoinHandle<Request> {
        self.listen(index, move |listener| answer_one(&listener, &responses))
    }

    /// What a holder would have written down.
    pub(crate) fn write_state(&self, index: u32, holder: ProcessId, sitter: ProcessId) {
        if !self.registry.folder(index).exists() {
            self.registry.create_folder(index).unwrap();
        }
        let state = State {
            version: State::VERSION,
            index,
            holder,
            sitter,
            backend: None,
            program: Vec::new(),
            description: "mem:1M".into(),
            export: status("nbd0").export,
            keepsakes: Vec::new(),
            options: AttachOptions {
                lanes: 1,
                restart: RestartWhen::Always,
                restart_limit: Some(5),
                ..AttachOptions::default()
            },
            restart_limit_given: true,
            paused: false,
            recording: None,
            stand_in: false,
            io_timeout: None,
            restarts: 0,
            log_level: None,
            history: History::default(),
        };
        self.registry.write_state(&state).unwrap();
    }
}

impl Drop for RuntimeDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// How a run of nbd-ctl ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    /// It failed with this exit status and this message, the only one, and no data.
    #[track_caller]
    pub(crate) fn failed(&self, code: i32, message: &str) {
        assert_eq!(self.stderr, format!("nbd-ctl: {message}\n"));
        assert_eq!((self.code, self.stdout.as_str()), (Some(code), ""), "{self:?}");
    }

    #[track_caller]
    pub(crate) fn succeeded(&self, stdout: &str, stderr: &str) {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert_eq!((self.stdout.as_str(), self.stderr.as_str()), (stdout, stderr));
    }
}
