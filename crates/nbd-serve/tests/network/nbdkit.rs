//! nbdkit's own plugins, as Debian has them: what nbdkit serves is what nbd-serve serves.
//!
//! They come with nbdkit, nbdkit-plugin-python, -perl, -lua and -tcl (`scripts/setup`).

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nbd_net::testing::Scratch;

use crate::content::pattern;
use crate::programs::{output, run};
use crate::server::Server;

/// Only a hang takes as long.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(60);

/// nbdkit itself.
pub(crate) struct Nbdkit(Child);

impl Nbdkit {
    pub(crate) fn start(socket: &Path, arguments: &[String]) -> Self {
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-U"]).arg(socket).args(arguments);
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut nbdkit = Self(child);
        let began = Instant::now();
        while !socket.exists() {
            assert!(nbdkit.0.try_wait().unwrap().is_none(), "nbdkit {arguments:?} ends");
            assert!(began.elapsed() < START_TIMEOUT, "nbdkit {arguments:?} does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        nbdkit
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A SPEC of a plugin with these arguments of nbdkit.
fn spec(arguments: &[String]) -> String {
    let escaped: Vec<_> = arguments.iter().map(|text| text.replace(',', ",,")).collect();
    format!("nbdkit:{}", escaped.join(","))
}

/// What `look` tells of a server, once of nbdkit and once of nbd-serve. `make` fills a directory,
/// which each gets for itself under the same name; `{dir}` in an argument is that.
fn both(arguments: &[&str], make: impl Fn(&Path), look: impl Fn(&str) -> String) -> [String; 2] {
    [true, false].map(|is_nbdkit| {
        let scratch = Scratch::new();
        let directory = scratch.path().to_owned();
        make(&directory);
        let place = directory.to_str().unwrap();
        let arguments: Vec<_> = arguments.iter().map(|text| text.replace("{dir}", place)).collect();
        if is_nbdkit {
            let socket = directory.join("nbdkit.sock");
            let _nbdkit = Nbdkit::start(&socket, &arguments);
            look(&format!("nbd+unix:///?socket={}", socket.display()))
        } else {
            let server = Server::in_directory(scratch, &[&spec(&arguments)]);
            look(&server.uri(""))
        }
    })
}

/// Content, extents and abilities, as clients see them. Not what is our own: one handle serves all
/// clients, block sizes are always offered, and there is a description.
fn shape(uri: &str) -> String {
    let map = output("nbdinfo", &["--map", uri]);
    let own = ["block_size_", "description:", "uri:", "can_multi_conn", "protocol:"];
    let info = output("nbdinfo", &[uri]);
    let info: String = info
        .lines()
        .filter(|line| !own.iter().any(|word| line.trim().starts_with(word)))
        .map(|line| format!("{line}\n"))
        .collect();
    let script = "
import hashlib
size, at, sum = h.get_size(), 0, hashlib.sha256()
while at < size:
    n = min(size - at, 1 << 20)
    sum.update(h.pread(n, at))
    at += n
print(sum.hexdigest())
";
    let sum = output("nbdsh", &["-u", uri, "-c", script]);
    format!("{info}{map}{sum}")
}

#[track_caller]
pub(crate) fn check_same(arguments: &[&str], make: impl Fn(&Path)) {
    let [theirs, ours] = both(arguments, make, shape);
    assert_eq!(ours, theirs, "{arguments:?}");
}

/// Files of a fixed date: file systems made of them contain that.
pub(crate) fn make_files(directory: &Path) {
    fs::create_dir(directory.join("files")).unwrap();
    for (name, content) in [("one", pattern(3000)), ("two", pattern(70_000))] {
        let file = directory.join("files").join(name);
        fs::write(&file, content).unwrap();
        output("touch", &["-d", "2020-02-02 02:02:02 UTC", file.to_str().unwrap()]);
    }
    output("touch", &["-d", "2020-02-02 UTC", directory.join("files").to_str().unwrap()]);
    fs::write(directory.join("disk"), pattern(3 << 20)).unwrap();
    let sparse = fs::File::create(directory.join("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &pattern(1 << 20), 4 << 20).unwrap();
}

#[test]
fn plugins_that_make_their_data_serve_the_same() {
    for arguments in [
        &["data", "data=1 2 3 @0x1000 (0xff 7)*100 <{dir}/disk[:512]", "size=1M"] as &[&str],
        &["full", "1M"],
        &["memory", "1M"],
        &["null", "1M"],
        &["pattern", "4M"],
        &["random", "1M", "seed=1"],
        &["sparse-random", "16M", "seed=1"],
    ] {
        check_same(arguments, make_files);
    }
}

#[test]
fn plugins_that_serve_files_serve_the_same() {
    for arguments in [
        &["file", "{dir}/disk"] as &[&str],
        &["file", "file={dir}/sparse"],
        &["partitioning", "{dir}/disk", "mbr-id=7", "{dir}/disk", "partition-type=mbr"],
        &["split", "{dir}/disk", "{dir}/sparse"],
    ] {
        check_same(arguments, make_files);
    }
}

#[test]
fn plugins_that_run_scripts_serve_the_same() {
    let script = "#!/bin/sh
case $1 in
open) echo ;;
get_size) echo 1M ;;
pread) dd skip=$4 count=$3 iflag=count_bytes,skip_bytes if=$(dirname $0)/disk status=none ;;
can_extents) exit 0 ;;
extents) echo 0 512K; echo 512K 512K hole,zero ;;
*) exit 2 ;;
esac
";
    let make = |directory: &Path| {
        make_files(directory);
        for (name, text) in [
            ("script", script),
            (
                "script.py",
                "import nbdkit\nAPI_VERSION = 2\nsize = 0\ndef config(key, value):\n global size\n \
                 size = nbdkit.parse_size(value)\ndef open(readonly): return 1\n\
                 def get_size(h): return size\ndef pread(h, buf, offset, flags):\n \
                 buf[:] = bytes((offset // 512 + i) % 251 for i in range(len(buf)))\n",
            ),
            (
                "script.pl",
                "our $API_VERSION = 2;\nsub open { return {}; }\nsub get_size { return 1048576; }\n\
                 sub pread { my ($h, $c, $o) = @_; return chr(65 + ($o / 512) % 26) x $c; }\n1;\n",
            ),
            (
                "script.lua",
                "function open(r) return 1 end\nfunction get_size(h) return 1048576 end\n\
                 function pread(h, c, o) return string.rep('L', c) end\n",
            ),
            (
                "script.tcl",
                "proc plugin_open {r} { return 1 }\nproc get_size {h} { return 1048576 }\n\
                 proc pread {h c o} { return [string repeat T $c] }\n",
            ),
        ] {
            fs::write(directory.join(name), text).unwrap();
        }
        output("chmod", &["755", directory.join("script").to_str().unwrap()]);
    };
    for arguments in [
        &["sh", "{dir}/script"] as &[&str],
        &["eval", "get_size=echo 64K", "pread=printf '%*s' $3 a,b", "can_write=exit 3"],
        &["python", "{dir}/script.py", "size=1M"],
        &["perl", "{dir}/script.pl"],
        &["lua", "{dir}/script.lua"],
        &["tcl", "{dir}/script.tcl"],
    ] {
        check_same(arguments, make);
    }
}

/// A web server that knows ranges, which Python's own does not; it prints its port.
const WEB_SERVER: &str = "
import http.server, sys
data = open(sys.argv[1], 'rb').read()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *a): pass
    def do_HEAD(self): self.answer(False)
    def do_GET(self): self.answer(True)
    def answer(self, body):
        part, status = data, 200
        if 'Range' in self.headers:
            first, last = self.headers['Range'].split('=')[1].split('-')
            part, status = data[int(first):int(last) + 1], 206
        self.send_response(status)
        self.send_header('Accept-Ranges', 'bytes')
        self.send_header('Content-Length', str(len(part)))
        self.end_headers()
        if body: self.wfile.write(part)
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
open(sys.argv[2], 'w').write(f'{server.server_port}\\n')
server.serve_forever()
";

#[test]
fn plugins_of_other_servers_serve_the_same() {
    let scratch = Scratch::new();
    make_files(scratch.path());
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let socket = path("below.sock");
    let _below = Nbdkit::start(Path::new(&socket), &["file".into(), path("sparse")]);
    check_same(&["nbd", &format!("socket={socket}")], |_| {});

    let mut web = Command::new("/usr/bin/python3");
    let web = web.args(["-c", WEB_SERVER, &path("disk"), &path("port")]);
    let web = Nbdkit(web.spawn().unwrap());
    let began = Instant::now();
    let port = loop {
        let port = fs::read_to_string(path("port")).unwrap_or_default();
        if port.ends_with('\n') {
            break port.trim().to_owned();
        }
        assert!(began.elapsed() < START_TIMEOUT, "the web server does not listen");
        std::thread::sleep(Duration::from_millis(10));
    };
    check_same(&["curl", &format!("http://127.0.0.1:{port}/disk")], |_| {});
    drop(web);
}

/// File systems that are made anew have another identity each time, but the same files.
#[test]
fn plugins_that_make_file_systems_contain_the_files() {
    for (plugin, offset) in [("linuxdisk", Some(1 << 20)), ("tmpdisk", None)] {
        let argument = if plugin == "linuxdisk" { "{dir}/files" } else { "32M" };
        let [theirs, ours] = both(&[plugin, argument], make_files, |uri| {
            let scratch = Scratch::new();
            let image = scratch.path().join("image");
            output("nbdcopy", &[uri, image.to_str().unwrap()]);
            let image = format!("{}?offset={}", image.display(), offset.unwrap_or(0));
            let listed = output("debugfs", &["-R", "ls -p /", &image]);
            let size = output("nbdinfo", &["--size", uri]);
            // The directory's own times are of now.
            let names: Vec<_> = listed.lines().filter_map(|line| line.split('/').nth(5)).collect();
            format!("{} {}", size.trim(), names.join(" "))
        });
        assert_eq!(ours, theirs, "{plugin}");
        assert!(ours.contains("lost+found"), "{ours}");
        assert!(plugin == "tmpdisk" || ours.contains("one") && ours.contains("two"), "{ours}");
    }
}

/// A FAT file system contains the time when it was made.
#[test]
fn a_floppy_differs_in_its_time_only() {
    let script = "print(h.pread(h.get_size(), 0).hex())";
    let look = |uri: &str| output("nbdsh", &["-u", uri, "-c", script]);
    let [theirs, ours] = both(&["floppy", "{dir}/files"], make_files, look);
    assert_eq!(ours.len(), theirs.len());
    let differences = ours.bytes().zip(theirs.bytes()).filter(|(ours, theirs)| ours != theirs);
    let differences = differences.count();
    assert!(differences <= 64, "{differences} hexadecimal digits differ");
}

/// Commands of all kinds, and what comes of each. Only what is offered: nbdkit 1.32 ends with a failed
/// assertion at some that are not.
const COMMANDS: &str = "
def attempt(what, is_offered, command):
    if not is_offered: return print(what, 'is not offered')
    try:
        command()
        print(what, 'done')
    except nbd.Error as error:
        print(what, error.errno)
w, fua, trim, zero = not h.is_read_only(), h.can_fua(), h.can_trim(), h.can_zero()
attempt('write', w, lambda: h.pwrite(b'a' * 5000, 1000))
attempt('write fua', w and fua, lambda: h.pwrite(b'b' * 512, 65536, nbd.CMD_FLAG_FUA))
attempt('trim', trim, lambda: h.trim(4096, 8192))
attempt('trim fua', trim and fua, lambda: h.trim(4096, 16384, nbd.CMD_FLAG_FUA))
attempt('zero', zero, lambda: h.zero(100000, 3333))
attempt('zero no hole', zero, lambda: h.zero(4096, 200000, nbd.CMD_FLAG_NO_HOLE))
attempt('zero fast', h.can_fast_zero(), lambda: h.zero(4096, 300000, nbd.CMD_FLAG_FAST_ZERO))
attempt('flush', h.can_flush(), lambda: h.flush())
attempt('cache', h.can_cache(), lambda: h.cache(4096, 0))
attempt('read', True, lambda: h.pread(4096, 0))
";

#[test]
fn commands_have_the_same_effect() {
    let make = |directory: &Path| {
        make_files(directory);
        let script = "import nbdkit, os\nAPI_VERSION = 2\npath = None\ndef config(key, value):\n \
             global path\n path = value\ndef open(readonly): return os.open(path, os.O_RDWR)\n\
             def get_size(h): return os.fstat(h).st_size\ndef pread(h, buf, offset, flags):\n \
             buf[:] = os.pread(h, len(buf), offset)\ndef pwrite(h, buf, offset, flags):\n \
             os.pwrite(h, buf, offset)\ndef flush(h, flags): os.fsync(h)\n";
        fs::write(directory.join("script.py"), script).unwrap();
    };
    for arguments in [
        &["file", "{dir}/disk"] as &[&str],
        // Not split, whose `cache` never returns in nbdkit 1.32.
        &["memory", "3M"],
        &["null", "3M"],
        &["full", "3M"],
        &["pattern", "3M"],
        &["python", "{dir}/script.py", "file={dir}/disk"],
    ] {
        let [theirs, ours] = both(arguments, make, |uri| {
            let done = output("nbdsh", &["-u", uri, "-c", COMMANDS]);
            // What is a hole afterwards depends on the file system's blocks.
            let after = shape(uri);
            format!("{done}{}", after.lines().last().unwrap_or_default())
        });
        assert_eq!(ours, theirs, "{arguments:?}");
    }
}

#[test]
fn errors_arrive_unchanged() {
    for name in [
        "EPERM",
        "EIO",
        "ENOMEM",
        "EINVAL",
        "ENOSPC",
        "ESHUTDOWN",
        "EOVERFLOW",
        "EROFS",
        "EFBIG",
        "ENOENT",
        "EBADF",
        "EACCES",
    ] {
        let failing: Vec<_> = ["pread", "pwrite", "flush", "trim", "zero", "cache"]
            .iter()
            // Data that is not read would be another error.
            .map(|callback| match *callback {
                "pwrite" => format!("pwrite=cat >/dev/null; echo '{name} as asked' >&2; exit 1"),
                callback => format!("{callback}=echo '{name} as asked' >&2; exit 1"),
            })
            .collect();
        let mut arguments = vec!["eval", "get_size=echo 1M", "can_cache=echo native"];
        for ability in ["can_write", "can_flush", "can_trim", "can_zero", "can_fast_zero"] {
            arguments.push(match ability {
                "can_write" => "can_write=exit 0",
                "can_flush" => "can_flush=exit 0",
                "can_trim" => "can_trim=exit 0",
                "can_zero" => "can_zero=exit 0",
                _ => "can_fast_zero=exit 0",
            });
        }
        arguments.extend(failing.iter().map(String::as_str));
        let look = |uri: &str| output("nbdsh", &["-u", uri, "-c", COMMANDS]);
        let [theirs, ours] = both(&arguments, |_| {}, look);
        assert_eq!(ours, theirs, "{name}");
        assert!(!ours.contains("read done"), "{ours}");
    }
}

#[test]
fn layers_stand_in_front_of_a_plugin() {
    let server = Server::new(&["error:write=1@offset:1K+64K@nbdkit:pattern,1M"]);
    let head = "print(int.from_bytes(h.pread(8, 0), 'big'), h.get_size())";
    assert_eq!(output("nbdsh", &["-u", &server.uri(""), "-c", head]), "1024 65536\n");
    let scratch = Scratch::new();
    make_files(scratch.path());
    let spec = "partition:1@nbdkit:partitioning,{dir}/disk,partition-type=gpt";
    let server = Server::in_directory(scratch, &[spec]);
    assert_eq!(output("nbdinfo", &["--size", &server.uri("")]), format!("{}\n", 3 << 20));
    let (code, _, _) = run("nbdsh", &["-u", &server.uri(""), "-c", "h.pwrite(b'x' * 512, 512)"]);
    assert_eq!(code, 0);
}

#[test]
fn several_plugins_serve_side_by_side() {
    let server = Server::new(&["p=nbdkit:pattern,1M", "z=nbdkit:null,2M"]);
    assert_eq!(output("nbdinfo", &["--size", &server.uri("p")]), format!("{}\n", 1 << 20));
    assert_eq!(output("nbdinfo", &["--size", &server.uri("z")]), format!("{}\n", 2 << 20));
}
