//! What an old connection may still do.

use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nbd_backend::{Capabilities, Geometry};
use nbd_client::{CONNECTION_FD_PREFIX, FdStore, Fence, Options, Remote, fence};

use crate::script::{DISC, EVENT_TIMEOUT, Offer, READ, Server, Style, WRITE, pair_with};
use crate::tasks::{Outcome, read, write};

#[test]
fn nothing_is_replayed_before_the_old_connection_is_closed() {
    let offer = Offer::new(Style::Structured);
    let (server, remote, mut peer) = pair_with(offer, Options::default());
    let pending = write(&remote, 0, &[1; 512]);
    peer.request(WRITE);
    peer.send(b"this is no reply at all");
    peer.wait_for_end();
    // Now the server might still be writing. If the client does not wait for it, this may go
    // unnoticed; if it does, this never fails.
    std::thread::sleep(Duration::from_millis(200));
    assert!(server.is_left_alone());
    drop(peer);
    let mut peer = server.accept(offer);
    let request = peer.request(WRITE);
    peer.answer(&request, 0);
    assert_eq!(pending.wait(), Outcome::Done);
}

#[test]
fn a_server_that_does_not_close_is_waited_for() {
    let options = Options { fence_limit: Duration::from_millis(10), ..Options::default() };
    let offer = Offer::new(Style::Structured);
    let (server, remote, mut peer) = pair_with(offer, options);
    let pending = read(&remote, 0, 512);
    peer.request(READ);
    peer.send(b"this is no reply at all");
    peer.wait_for_end();
    std::thread::sleep(Duration::from_millis(1500));
    assert!(server.is_left_alone());
    drop(peer);
    let mut next = server.accept(offer);
    let request = next.request(READ);
    next.data(&request, &[1; 512]);
    assert_eq!(pending.wait(), Outcome::Data(vec![1; 512]));
}

/// A successor has no more than a descriptor.
#[test]
fn fencing_waits_until_the_server_closes() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // It takes what was sent, up to the end, and takes its time to carry that out.
            let mut requests = Vec::new();
            theirs.read_to_end(&mut requests).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            is_done.store(true, Ordering::Relaxed);
            drop(theirs);
        });
        assert_eq!(fence(ours.into(), EVENT_TIMEOUT).unwrap(), Fence::Closed);
        assert!(is_done.load(Ordering::Relaxed));
    });
}

#[test]
fn fencing_ends_at_its_limit() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    assert_eq!(fence(ours.into(), Duration::from_millis(20)).unwrap(), Fence::Open);
}

#[test]
fn fencing_a_closed_connection_succeeds_at_once() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    assert_eq!(fence(ours.into(), EVENT_TIMEOUT).unwrap(), Fence::Closed);
}

#[test]
fn a_successor_connects_when_all_that_its_predecessor_left_is_closed() {
    let offer = Offer::new(Style::Structured);
    let server = Server::new();
    let (left, peers): (Vec<_>, Vec<_>) = (0..2).map(|_| UnixStream::pair().unwrap()).unzip();
    let left = left.into_iter().enumerate();
    let left =
        left.map(|(index, fd)| (format!("{CONNECTION_FD_PREFIX}{index}"), fd.into())).collect();
    let capabilities = Capabilities::default();
    let attached = Geometry { size: 1 << 20, block_size: 512, capabilities };
    let remote = Remote::for_geometry(server.target(), Options::default(), attached);
    remote.begin(left);
    let pending = read(&remote, 0, 512);
    for mut peer in peers {
        peer.read_to_end(&mut Vec::new()).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert!(server.is_left_alone() && pending.is_waiting());
    }
    let mut peer = server.accept(offer);
    let request = peer.request(READ);
    peer.data(&request, &[1; 512]);
    assert_eq!(pending.wait(), Outcome::Data(vec![1; 512]));
}

#[derive(Default)]
struct TestFdStore(Mutex<Vec<(String, OwnedFd)>>);

impl FdStore for TestFdStore {
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let descriptor = descriptor.try_clone_to_owned()?;
        self.0.lock().unwrap().push((name.into(), descriptor));
        Ok(())
    }
}

#[test]
fn a_connection_is_deposited_before_the_first_request_and_can_be_fenced_by_a_successor() {
    let stored = Arc::<TestFdStore>::default();
    let fd_store = Some(Arc::clone(&stored) as Arc<dyn FdStore>);
    let offer = Offer::new(Style::Structured);
    let (server, remote, mut peer) = pair_with(offer, Options { fd_store, ..Options::default() });
    for _ in 0..2 {
        drop(peer);
        let _pending = write(&remote, 0, &[1; 512]);
        peer = server.accept(offer);
        peer.request(WRITE);
    }
    let mut kept = std::mem::take(&mut *stored.0.lock().unwrap());
    assert_eq!(kept.len(), 3);
    assert!(kept.iter().all(|(name, _)| *name == format!("{CONNECTION_FD_PREFIX}0")));
    let (_, last) = kept.pop().unwrap();
    for (_, old) in kept {
        assert_eq!(fence(old, EVENT_TIMEOUT).unwrap(), Fence::Closed);
    }
    std::thread::scope(|scope| {
        let fenced = scope.spawn(|| fence(last, EVENT_TIMEOUT).unwrap());
        peer.wait_for_end();
        drop(peer);
        // The client, which lives on in this test, reads from the same socket. Whether it or the fence
        // sees the end, the server has closed the connection.
        assert_eq!(fenced.join().unwrap(), Fence::Closed);
    });
}

#[test]
fn a_client_that_ends_waits_for_the_server_to_close() {
    let offer = Offer::new(Style::Extended);
    let (_server, remote, mut peer) = pair_with(offer, Options::default());
    let is_closed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            peer.request(DISC);
            std::thread::sleep(Duration::from_millis(50));
            is_closed.store(true, Ordering::Relaxed);
            drop(peer);
        });
        drop(remote);
        assert!(is_closed.load(Ordering::Relaxed));
    });
}
