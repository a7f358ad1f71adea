#![allow(unsafe_code)]

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::Arc;

use nbd_backend::MappingOwner;
use nbd_net::socket::Socket;
use nbd_net::stream::Stream;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::*;

/// Size of the storage in bytes.
const CONTENT: usize = 1 << 20;

/// Mapped memory that cannot be read, like that of a truncated file.
struct Gone {
    start: NonNull<u8>,
    /// Whether reading it as a file succeeds.
    is_whole: bool,
}

// SAFETY: an address is the same in all threads.
unsafe impl Send for Gone {}
// SAFETY: as above.
unsafe impl Sync for Gone {}

impl Gone {
    fn range(offset: usize, len: usize, is_whole: bool) -> MappedRange {
        let length = CONTENT.try_into().unwrap();
        // SAFETY: the kernel picks the range.
        let start =
            unsafe { mmap_anonymous(None, length, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) };
        let start = start.unwrap().cast();
        let gone = Arc::new(Self { start, is_whole });
        // SAFETY: it is mapped until the owner is dropped.
        unsafe { MappedRange::new(start.add(offset), len, offset as u64, gone) }
    }
}

impl MappingOwner for Gone {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if !self.is_whole {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.copy_from_slice(&content()[offset as usize..offset as usize + buffer.len()]);
        Ok(())
    }
}

impl Drop for Gone {
    fn drop(&mut self) {
        // SAFETY: it was mapped by this object, and no range is left.
        unsafe { munmap(self.start.cast(), CONTENT) }.unwrap();
    }
}

struct Whole(Vec<u8>);

impl MappingOwner for Whole {
    fn read_at(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<()> {
        panic!("it can be sent from where it lies")
    }
}

impl Whole {
    fn range(self: &Arc<Self>, offset: usize, len: usize) -> MappedRange {
        let start = NonNull::from(&self.0[offset..offset + len]).cast();
        let owner: Arc<dyn MappingOwner> = Arc::<Self>::clone(self);
        // SAFETY: the bytes live as long as the owner.
        unsafe { MappedRange::new(start, len, offset as u64, owner) }
    }
}

fn content() -> Vec<u8> {
    (0..CONTENT).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect()
}

fn send_buffer() -> (SendBuffer, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (_, sender) = Stream::plain(Socket::from_fd(ours.into()).unwrap()).split();
    (SendBuffer::new(sender), theirs)
}

/// SplitMix64.
fn random(state: &mut u64, below: usize) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (word ^ word >> 31) as usize % below
}

/// Reads everything while the send_buffer sends.
fn send_all(send_buffer: &mut SendBuffer, mut peer: UnixStream, expected: &[u8]) {
    let mut got = Vec::new();
    let mut piece = vec![0; 70_001];
    while got.len() < expected.len() {
        let sent = send_buffer.send();
        assert!(sent.as_ref().map_or_else(|e| e.kind() == io::ErrorKind::WouldBlock, |()| true));
        assert_eq!(sent.is_ok(), send_buffer.unsent() == 0);
        let count = peer.read(&mut piece).unwrap();
        assert_ne!(count, 0, "only {} bytes of {}", got.len(), expected.len());
        got.extend_from_slice(&piece[..count]);
    }
    assert!(got == expected, "other bytes");
    assert_eq!(send_buffer.unsent(), 0);
}

#[test]
fn staged_bytes_and_mapped_data_are_sent_in_order() {
    let whole = Arc::new(Whole(content()));
    for seed in 0..20 {
        let state = &mut { seed };
        let (mut send_buffer, peer) = send_buffer();
        let mut expected = Vec::new();
        // More than the socket takes, and more pieces than one call does.
        for _ in 0..if seed == 0 { 3000 } else { 60 } {
            let len = random(state, if seed == 0 { 3000 } else { 200_000 });
            let offset = random(state, CONTENT - len);
            let bytes = &whole.0[offset..offset + len];
            if random(state, 2) == 0 {
                send_buffer.stage(bytes);
            } else if len > 0 {
                send_buffer.stage_mapped(whole.range(offset, len));
            }
            expected.extend_from_slice(bytes);
            assert_eq!(send_buffer.unsent(), expected.len());
        }
        send_all(&mut send_buffer, peer, &expected);
    }
}

#[test]
fn mapped_data_that_cannot_be_sent_is_copied() {
    let (mut send_buffer, peer) = send_buffer();
    send_buffer.stage(b"head");
    send_buffer.stage_mapped(Gone::range(5, 300_000, true));
    send_buffer.stage(b"tail");
    send_buffer.stage_mapped(Gone::range(7, 3_000, true));
    let content = content();
    let expected = [b"head", &content[5..300_005], b"tail", &content[7..3_007]].concat();
    send_all(&mut send_buffer, peer, &expected);
}

#[test]
fn a_client_is_disconnected_if_promised_data_cannot_be_read() {
    let whole = Arc::new(Whole(content()));
    let (mut send_buffer, mut peer) = send_buffer();
    send_buffer.stage_mapped(whole.range(0, 100_000));
    send_buffer.send().unwrap();
    send_buffer.stage(b"head");
    send_buffer.stage_mapped(Gone::range(5, 300_000, false));
    send_buffer.send().unwrap();
    assert_eq!(send_buffer.unsent(), 0);
    let mut got = Vec::new();
    peer.read_to_end(&mut got).unwrap();
    assert_eq!(got[..100_000], whole.0[..100_000]);
    assert!(got.len() <= 100_004);
    send_buffer.stage(b"more");
    send_buffer.send().unwrap();
    assert_eq!(send_buffer.unsent(), 0);
}

#[test]
fn a_client_must_read_fast_enough_while_the_connection_holds_any_common_memory() {
    let stall = Duration::from_secs(30);
    let (mut send_buffer, _peer) = send_buffer();
    assert!(!send_buffer.has_waited(2 * stall, stall));
    send_buffer.recv_holds_memory = true;
    assert!(send_buffer.has_waited(Duration::ZERO, stall));
}
