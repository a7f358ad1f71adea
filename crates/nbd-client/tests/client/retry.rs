//! How long requests wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_backend::{Command, Durability, ProcessDurability};
use nbd_client::{Options, Retry};
use nbd_proto::NbdError;

use crate::script::{FLUSH, Offer, READ, Style, pair, pair_with};
use crate::tasks::{Outcome, read, start, start_with};

fn for_a_moment() -> Options {
    Options { retry: Retry::For(Duration::from_millis(100)), ..Options::default() }
}

#[test]
fn requests_fail_after_the_retry_limit_until_the_server_is_back() {
    let offer = Offer::new(Style::Structured);
    let (mut server, remote, peer) = pair_with(offer, for_a_moment());
    server.leave();
    drop(peer);
    let durability = Arc::<ProcessDurability>::default();
    let flush = start_with(&remote, Command::Flush, Vec::new(), &durability);
    let early = read(&remote, 0, 512);
    assert_eq!(early.wait(), Outcome::Error(NbdError::EIO));
    assert_eq!(flush.wait(), Outcome::Error(NbdError::EIO));
    assert_eq!(durability.failed_flush(), None, "nothing was lost");
    assert_eq!(read(&remote, 0, 512).wait(), Outcome::Error(NbdError::EIO));
    server.return_();
    let mut peer = server.accept(offer);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let request = peer.request(READ);
            peer.data(&request, &[1; 512]);
            let request = peer.request(FLUSH);
            peer.answer(&request, 0);
        });
        // The client may not have noticed yet.
        while read(&remote, 0, 512).wait() != Outcome::Data(vec![1; 512]) {}
        assert_eq!(start(&remote, Command::Flush).wait(), Outcome::Done);
    });
}

#[test]
fn the_retry_limit_starts_with_each_loss() {
    let offer = Offer::new(Style::Simple);
    let (server, remote, mut peer) = pair_with(offer, for_a_moment());
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(50));
        drop(peer);
        let pending = read(&remote, 0, 512);
        peer = server.accept(offer);
        let request = peer.request(READ);
        peer.data(&request, &[2; 512]);
        assert_eq!(pending.wait(), Outcome::Data(vec![2; 512]));
    }
}

#[test]
fn the_retry_limit_holds_while_the_old_connection_is_fenced() {
    let offer = Offer::new(Style::Simple);
    let (server, remote, mut peer) = pair_with(offer, for_a_moment());
    let pending = read(&remote, 0, 512);
    peer.request(READ);
    peer.send(&[0; 64]);
    peer.wait_for_end();
    // It stays open, and no client connects as long as it does.
    assert_eq!(pending.wait(), Outcome::Error(NbdError::EIO));
    assert!(server.is_left_alone());
    drop(peer);
    server.accept(offer);
}

#[test]
fn requests_wait_through_any_number_of_attempts() {
    let offer = Offer::new(Style::Simple);
    let (server, remote, peer) = pair(offer);
    let pending = read(&remote, 0, 512);
    drop(peer);
    for _ in 0..6 {
        drop(server.accept_raw());
        assert!(pending.is_waiting());
    }
    let mut peer = server.accept(offer);
    let request = peer.request(READ);
    peer.data(&request, &[1; 512]);
    assert_eq!(pending.wait(), Outcome::Data(vec![1; 512]));
}

#[test]
fn retries_slow_down_if_the_server_breaks_every_connection() {
    let offer = Offer::new(Style::Simple);
    let (server, remote, mut peer) = pair(offer);
    let _pending = read(&remote, 0, 512);
    let began = Instant::now();
    for _ in 0..7 {
        peer.request(READ);
        peer.send(&[0; 64]);
        peer.wait_for_end();
        drop(peer);
        peer = server.accept(offer);
    }
    // Half of 10 ms, 20 ms, and so on: pauses are never shorter than that.
    assert!(began.elapsed() > Duration::from_millis(5 + 10 + 20 + 40 + 80 + 160 + 320));
}
