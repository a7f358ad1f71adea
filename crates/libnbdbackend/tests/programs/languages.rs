//! Programs in other languages than C.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nbd_proto::{CommandFlags, CommandType, NbdError, Request};

use crate::compile::{Program, examples, include, link_library, printed};
use crate::holder::{Directory, EVENT_TIMEOUT, Holder, request};

const SIZE: u64 = 1 << 20;

/// The Python package, and the library of this build.
fn python(directory: &Directory) -> Vec<(String, String)> {
    link_library(directory);
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../python/nbdbackend");
    let library = directory.path().join("libnbdbackend.so.0");
    vec![
        ("PYTHONPATH".into(), package.display().to_string()),
        ("NBDBACKEND_LIBRARY".into(), library.display().to_string()),
    ]
}

fn start_python(directory: &Directory, arguments: &[&str]) -> Program {
    let environment = python(directory);
    let environment: Vec<_> = environment.iter().map(|(name, value)| (&**name, &**value)).collect();
    let command = [&["python3", "-B", "-m", "nbdbackend"], arguments].concat();
    Program::start(directory, &command, &environment)
}

#[test]
fn a_file_in_15_lines_of_python_serves_is_killed_and_goes_on() {
    let directory = Directory::new();
    let script = examples().join("python/file.py").display().to_string();
    assert_eq!(fs::read_to_string(&script).unwrap().lines().count(), 15);
    let image = directory.file("disk.img", SIZE);
    let mut holder = Holder::new(&directory, 0);
    let program = start_python(&directory, &["--join", "nbd0", &script, "disk.img"]);
    let hello = holder.hear();
    assert_eq!(hello.description, "python:File");
    assert_eq!(holder.grant(), Ok(0), "{}", printed(&directory));
    holder.write(4096, &[7; 8192]);
    assert_eq!(holder.read(0, 8192), [[0; 4096], [7; 4096]].concat());
    let durable = Request { flags: CommandFlags::FUA, ..request(CommandType::WRITE, 0, 512) };
    holder.send(durable, &[1; 512]);
    assert_eq!(holder.reply().1, NbdError::SUCCESS);
    assert_eq!(holder.ask(request(CommandType::FLUSH, 0, 0)), NbdError::SUCCESS);
    program.kill();
    holder.send(request(CommandType::WRITE, 65536, 512), &[9; 512]);
    let program = start_python(&directory, &["--join", "nbd0", &script, "disk.img"]);
    holder.serve();
    assert_eq!(holder.reply(), (65536, NbdError::SUCCESS));
    holder.disconnect();
    holder.is_left();
    assert!(program.end().success(), "{}", printed(&directory));
    let bytes = fs::read(image).unwrap();
    assert!(bytes[..512] == [1; 512] && bytes[65536..66048] == [9; 512]);
}

#[test]
fn the_package_is_installed_by_pip_and_needs_no_path() {
    let directory = Directory::new();
    link_library(&directory);
    let here = directory.path().display().to_string();
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../python/nbdbackend");
    let (source, venv) = (format!("{here}/source"), format!("{here}/venv"));
    let run = |command: &str, arguments: &[&str]| {
        let status = Command::new(command).args(arguments).status().unwrap();
        assert!(status.success(), "{command} {arguments:?}");
    };
    // pip builds where the sources are. What builds comes from Debian, and nothing from the network.
    run("cp", &["-r", package.to_str().unwrap(), &source]);
    run("/usr/bin/python3", &["-m", "venv", "--system-site-packages", &venv]);
    let pip = ["install", "--quiet", "--no-index", "--no-build-isolation", "--no-deps", &source];
    run(&format!("{venv}/bin/pip"), &pip);
    directory.file("disk.img", SIZE);
    let script = examples().join("python/file.py").display().to_string();
    let python = format!("{venv}/bin/python");
    let command = [&*python, "-m", "nbdbackend", "--join", "nbd0", &script, "disk.img"];
    let library = format!("{here}/libnbdbackend.so.0");
    let mut holder = Holder::new(&directory, 0);
    let program = Program::start(&directory, &command, &[("NBDBACKEND_LIBRARY", &library)]);
    assert_eq!(holder.serve(), 0, "{}", printed(&directory));
    holder.write(4096, &[7; 4096]);
    assert_eq!(holder.read(4096, 4096), [7; 4096]);
    holder.disconnect();
    holder.is_left();
    assert!(program.end().success(), "{}", printed(&directory));
}

#[test]
fn a_request_waits_while_its_backend_is_in_pdb() {
    let directory = Directory::new();
    let script = directory.path().join("stops.py");
    let text = "
from nbdbackend import Backend
class Stops(Backend):
    size = 1 << 20
    def read(self, offset, length):
        if offset == 4096:
            breakpoint()
        return b'r' * length
backend = Stops()
";
    fs::write(&script, text).unwrap();
    let environment = python(&directory);
    let environment: Vec<_> = environment.iter().map(|(name, value)| (&**name, &**value)).collect();
    let script = script.display().to_string();
    let command = ["python3", "-B", "-m", "nbdbackend", "--join", "nbd0", &script];
    let mut holder = Holder::new(&directory, 0);
    let mut program = Program::start_with(&directory, &command, &environment, Stdio::piped());
    assert_eq!(holder.serve(), 0);
    assert_eq!(holder.read(0, 512), [b'r'; 512]);
    holder.send(request(CommandType::READ, 4096, 512), &[]);
    program.type_line("print('stopped at', offset * 2)");
    let began = Instant::now();
    while !printed(&directory).contains("stopped at 8192") {
        assert!(began.elapsed() < EVENT_TIMEOUT, "{}", printed(&directory));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(holder.has_no_reply());
    program.type_line("continue");
    assert_eq!(holder.reply(), (4096, NbdError::SUCCESS));
    assert_eq!(holder.data(512), [b'r'; 512]);
    holder.disconnect();
    holder.is_left();
    assert!(program.end().success(), "{}", printed(&directory));
}

#[test]
fn exceptions_in_python_are_errors_of_requests_and_are_logged() {
    let directory = Directory::new();
    let script = directory.path().join("wrong.py");
    let text = "
import errno, os
from nbdbackend import Backend
class Wrong(Backend):
    size = 1 << 20
    def granted(self, device):
        assert device.name == 'nbd0' and device.stored == []
        memory = os.memfd_create('memory')
        device.keep('memory', memory)
        assert device.stored == [] or device.stored == ['memory']
    def read(self, offset, length):
        if offset == 0:
            raise OSError(errno.ENOSPC, 'nothing left')
        if offset == 512:
            return 1 / 0
        return b'x' * (length - 1 if offset == 1024 else length)
    def write(self, offset, data, fua):
        try:
            data[0] = 1
        except TypeError:
            self.kept = data
    def zero(self, offset, length):
        return bytes(self.kept)
backend = Wrong()
";
    fs::write(&script, text).unwrap();
    let mut holder = Holder::new(&directory, 0);
    let script = script.display().to_string();
    let program = start_python(&directory, &["--join", "nbd0", &script]);
    holder.hear();
    assert_eq!(holder.grant(), Ok(0), "{}", printed(&directory));
    assert_eq!(holder.stored.len(), 1);
    let read = |offset| request(CommandType::READ, offset, 512);
    assert_eq!(holder.ask(read(0)), NbdError::ENOSPC);
    assert_eq!(holder.ask(read(512)), NbdError::EIO);
    assert_eq!(holder.ask(read(1024)), NbdError::EIO);
    assert_eq!(holder.read(2048, 512), [b'x'; 512]);
    // The data of a write can neither be changed nor kept.
    holder.write(0, &[3; 512]);
    assert_eq!(holder.ask(request(CommandType::WRITE_ZEROES, 0, 512)), NbdError::EIO);
    holder.disconnect();
    holder.is_left();
    assert!(program.end().success(), "{}", printed(&directory));
    let words = printed(&directory);
    for word in ["nothing left", "ZeroDivisionError", "511 bytes and not 512", "released"] {
        assert!(words.contains(word), "{word}: {words}");
    }
}

#[test]
fn a_script_without_a_backend_and_a_device_without_a_holder_are_errors() {
    let directory = Directory::new();
    let script = directory.path().join("none.py");
    fs::write(&script, "backend = 7\n").unwrap();
    let script = script.display().to_string();
    assert_eq!(start_python(&directory, &[&script]).end().code(), Some(2));
    assert!(printed(&directory).contains("sets no `backend`"));
    fs::write(
        &script,
        "import nbdbackend\nclass Raed(nbdbackend.Backend):\n    pass\nbackend = Raed()\n",
    )
    .unwrap();
    assert_eq!(start_python(&directory, &[&script]).end().code(), Some(1));
    assert!(printed(&directory).contains("the class Raed has no method read"));
    directory.file("disk.img", SIZE);
    let script = examples().join("python/file.py").display().to_string();
    let alone = start_python(&directory, &["--join", "nbd0", &script, "disk.img"]);
    assert_eq!(alone.end().code(), Some(1));
    assert!(printed(&directory).contains("cannot reach the holder"), "{}", printed(&directory));
}

#[test]
fn memory_in_go_is_stored_with_the_holder_and_survives() {
    if Command::new("go").arg("version").output().is_err() {
        eprintln!("    not run: Go is not installed");
        return;
    }
    let directory = Directory::new();
    // The library is where the linker and the program look for it.
    link_library(&directory);
    let here = directory.path().display().to_string();
    let program = directory.path().join("memory");
    let status = Command::new("go")
        .args(["build", "-o"])
        .args([&program, &examples().join("go/memory.go")])
        .env("CGO_CFLAGS", format!("-I{}", include().display()))
        .env("CGO_LDFLAGS", format!("-L{here} -Wl,-rpath,{here}"))
        .env("GOCACHE", directory.path().join("cache"))
        .env("GOFLAGS", "-mod=mod")
        .env("GO111MODULE", "off")
        .status();
    assert!(status.unwrap().success());
    let command = [program.display().to_string(), "1".into()];
    let start = || Program::start(&directory, &command, &[("NBD_JOIN", "nbd0")]);
    let mut holder = Holder::new(&directory, 0);
    let first = start();
    assert_eq!(holder.hear().description, "memory:");
    assert_eq!(holder.grant(), Ok(0), "{}", printed(&directory));
    holder.write(4096, &[7; 8192]);
    assert_eq!(holder.ask(request(CommandType::WRITE_ZEROES, 8192, 4096)), NbdError::SUCCESS);
    first.kill();
    holder.send(request(CommandType::WRITE, 0, 512), &[9; 512]);
    let second = start();
    holder.serve();
    assert_eq!(holder.reply(), (0, NbdError::SUCCESS));
    assert_eq!(holder.read(4096, 8192), [[7; 4096], [0; 4096]].concat());
    holder.disconnect();
    assert!(second.end().success(), "{}", printed(&directory));
}
