//! Odd requests, sent by libnbd from Python. `nbdsh` is libnbd's own shell for such things.

use crate::content::pattern;
use crate::programs::output;
use crate::server::Server;

/// Runs a script with `h` connected to the export. Strict mode is off, in which libnbd would not
/// even send what is wrong.
fn script(server: &Server, export: &str, text: &str) {
    let prelude = "import errno
h.set_strict_mode(0)
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(uri)
def fails(error, call):
    try:
        call()
    except nbd.Error as ex:
        assert ex.errnum == error, ex
    else:
        assert False, 'it did not fail'
";
    let uri = format!("uri = {:?}", server.uri(export));
    output("nbdsh", &["-c", &uri, "-c", prelude, "-c", text]);
}

fn server() -> Server {
    let server = Server::new(&["file:{dir}/disk,create=1M", "m=mem:128M"]);
    std::fs::write(server.path("disk"), pattern(1 << 20)).unwrap();
    server
}

#[test]
fn zero_length_requests_succeed_without_effect() {
    script(
        &server(),
        "",
        "
before = h.pread(1 << 20, 0)
assert h.pread(0, 0) == b''
assert h.pread(0, h.get_size()) == b''
h.pwrite(b'', 4096)
h.trim(0, 0)
h.zero(0, 0)
h.cache(0, 0)
h.flush()
fails(errno.EINVAL, lambda: h.block_status(0, 0, lambda *args: 0))
assert h.pread(1 << 20, 0) == before
",
    );
}

#[test]
fn unaligned_requests_do_what_they_say() {
    script(
        &server(),
        "",
        "
whole = bytearray(h.pread(1 << 20, 0))
for offset, length in [(1, 1), (511, 2), (4095, 4098), (12345, 54321), ((1 << 20) - 1, 1)]:
    assert h.pread(length, offset) == whole[offset:offset + length]
    h.pwrite(b'\\xaa' * length, offset)
    whole[offset:offset + length] = b'\\xaa' * length
    assert h.pread(1 << 20, 0) == whole
for offset, length in [(3, 5), (100, 5000)]:
    h.zero(length, offset)
    whole[offset:offset + length] = bytes(length)
    assert h.pread(1 << 20, 0) == whole
",
    );
}

#[test]
fn beyond_the_end_there_is_nothing() {
    script(
        &server(),
        "",
        "
size = h.get_size()
for offset, length in [(size, 1), (size - 1, 2), (1 << 62, 512), ((1 << 63) - 512, 512)]:
    fails(errno.EINVAL, lambda: h.pread(length, offset))
    fails(errno.ENOSPC, lambda: h.pwrite(bytes(length), offset))
    fails(errno.ENOSPC, lambda: h.zero(length, offset))
    fails(errno.EINVAL, lambda: h.trim(length, offset))
    fails(errno.EINVAL, lambda: h.cache(length, offset))
    fails(errno.EINVAL, lambda: h.block_status(length, offset, lambda *args: 0))
assert len(h.pread(512, size - 512)) == 512
",
    );
}

#[test]
fn each_flag_where_it_belongs_and_where_not() {
    script(
        &server(),
        "",
        "
h.pwrite(b'x' * 512, 0, nbd.CMD_FLAG_FUA)
h.trim(512, 0, nbd.CMD_FLAG_FUA)
h.zero(512, 0, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)
h.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO)
h.pread_structured(512, 0, lambda *args: 0, nbd.CMD_FLAG_DF)
h.block_status(1 << 20, 0, lambda *args: 0, nbd.CMD_FLAG_REQ_ONE)
fails(errno.EINVAL, lambda: h.pread(512, 0, nbd.CMD_FLAG_NO_HOLE))
fails(errno.EINVAL, lambda: h.pwrite(b'x', 0, nbd.CMD_FLAG_DF))
fails(errno.EINVAL, lambda: h.flush(nbd.CMD_FLAG_REQ_ONE))
fails(errno.EINVAL, lambda: h.trim(512, 0, nbd.CMD_FLAG_FAST_ZERO))
fails(errno.EINVAL, lambda: h.zero(512, 0, nbd.CMD_FLAG_DF))
fails(errno.EINVAL, lambda: h.pread(512, 0, 1 << 15))
",
    );
}

#[test]
fn the_largest_requests() {
    script(
        &server(),
        "m",
        "
length = 64 << 20
data = bytes(range(256)) * (length // 256)
h.pwrite(data, 4096)
assert h.pread(length, 4096) == data
assert h.pread(4096, 0) == bytes(4096)
h.zero(1 << 27, 0)
assert h.pread(length, 4096) == bytes(length)
",
    );
}

#[test]
fn a_thousand_requests_in_flight() {
    script(
        &server(),
        "m",
        "
for i in range(1000):
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i & 255]) * 4096), i * 4096)
while h.aio_in_flight() > 0:
    h.poll(-1)
buffers = [nbd.Buffer(4096) for i in range(1000)]
for i in range(1000):
    h.aio_pread(buffers[i], i * 4096)
while h.aio_in_flight() > 0:
    h.poll(-1)
for i in range(1000):
    assert buffers[i].to_bytearray() == bytes([i & 255]) * 4096, i
",
    );
}

#[test]
fn a_disconnect_behind_requests_waits_for_them() {
    script(
        &server(),
        "m",
        "
buffers = [nbd.Buffer(65536) for i in range(100)]
done = []
for i in range(100):
    h.aio_pread(buffers[i], i * 65536, lambda error, i=i: done.append((i, error.value)) or 1)
h.aio_disconnect()
while not h.aio_is_closed() and not h.aio_is_dead():
    h.poll(-1)
assert sorted(done) == [(i, 0) for i in range(100)], done
",
    );
}

#[test]
fn several_connections_see_the_same() {
    script(
        &server(),
        "m",
        "
assert h.can_multi_conn()
others = []
for i in range(4):
    other = nbd.NBD()
    other.connect_uri(uri)
    others.append(other)
for i, other in enumerate(others):
    other.pwrite(bytes([i + 1]) * 4096, 0)
    other.shutdown()
    assert h.pread(4096, 0) == bytes([i + 1]) * 4096
",
    );
}

#[test]
fn the_default_handshake_of_old_clients() {
    script(
        &server(),
        "",
        "
for structured in [True, False]:
    for option in [True, False]:
        old = nbd.NBD()
        old.set_request_structured_replies(structured)
        old.set_opt_mode(True)
        old.connect_uri(uri)
        names = []
        old.opt_list(lambda name, description: names.append(name) or 0)
        assert names == ['', 'm'], names
        if option:
            old.opt_info()
            assert old.get_size() == 1 << 20
        old.opt_go()
        assert old.get_size() == 1 << 20
        assert old.get_structured_replies_negotiated() == structured
        assert len(old.pread(512, 0)) == 512
        old.shutdown()
",
    );
}
