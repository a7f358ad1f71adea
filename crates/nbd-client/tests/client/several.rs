//! Several connections.

use std::net::Shutdown;

use nbd_client::{Options, Remote};

use crate::script::{ALL, MULTI, Offer, Peer, READ, Server, Style, WRITE};
use crate::tasks::{Outcome, read, write};

fn offer() -> Offer {
    Offer::new(Style::Structured).flags(ALL | MULTI)
}

fn connect(server: &Server, count: u32, offer: Offer) -> (Remote, Vec<Peer>) {
    std::thread::scope(|scope| {
        let options = Options { connections: Some(count), ..Options::default() };
        let remote = scope.spawn(|| Remote::connect(server.target(), options).unwrap());
        let peers = (0..count).map(|_| server.accept(offer)).collect();
        (remote.join().unwrap(), peers)
    })
}

/// Waits until the client uses all of its connections.
fn settle(remote: &Remote, count: usize) {
    while remote.connections() < count {
        std::thread::yield_now();
    }
}

#[test]
fn requests_are_spread_over_all_connections() {
    let server = Server::new();
    let (remote, mut peers) = connect(&server, 4, offer());
    settle(&remote, 4);
    let pending: Vec<_> = (0..12).map(|index| read(&remote, index * 512, 512)).collect();
    for peer in &mut peers {
        for _ in 0..3 {
            let request = peer.request(READ);
            peer.data(&request, &[request.offset as u8; 512]);
        }
    }
    for (index, pending) in pending.iter().enumerate() {
        assert_eq!(pending.wait(), Outcome::Data(vec![(index * 512) as u8; 512]));
    }
}

#[test]
fn a_server_that_does_not_allow_several_gets_one() {
    let server = Server::new();
    let remote = std::thread::scope(|scope| {
        let options = Options { connections: Some(4), ..Options::default() };
        let remote = scope.spawn(|| Remote::connect(server.target(), options).unwrap());
        let mut peer = server.accept(Offer::new(Style::Structured));
        let remote = remote.join().unwrap();
        let pending = read(&remote, 0, 512);
        let request = peer.request(READ);
        peer.data(&request, &[1; 512]);
        assert_eq!(pending.wait(), Outcome::Data(vec![1; 512]));
        remote
    });
    assert!(server.is_left_alone());
    drop(remote);
}

#[test]
fn requests_of_a_lost_connection_go_over_the_others() {
    let server = Server::new();
    let (remote, mut peers) = connect(&server, 2, offer());
    settle(&remote, 2);
    let pending = [write(&remote, 0, &[0; 512]), write(&remote, 512, &[1; 512])];
    let requests: Vec<_> = peers.iter_mut().map(|peer| peer.request(WRITE)).collect();
    drop(peers.remove(0));
    let peer = &mut peers[0];
    let again = peer.request(WRITE);
    assert_eq!(again.offset, requests[0].offset);
    peer.answer(&again, 0);
    peer.answer(&requests[1], 0);
    for pending in pending {
        assert_eq!(pending.wait(), Outcome::Done);
    }
    // And the lost one comes back.
    server.accept(offer());
}

#[test]
fn all_connections_come_back_after_a_loss() {
    let server = Server::new();
    let (remote, mut peers) = connect(&server, 3, offer());
    for round in 0..3 {
        settle(&remote, 3);
        let pending: Vec<_> = (0..9).map(|index| write(&remote, index * 512, &[1; 512])).collect();
        for peer in &mut peers {
            peer.request(WRITE);
        }
        drop(peers);
        // Whichever comes back first gets all that waits.
        peers = (0..3).map(|_| server.accept(offer())).collect();
        let ends: Vec<_> = peers.iter().map(|peer| peer.stream.try_clone().unwrap()).collect();
        std::thread::scope(|scope| {
            for mut peer in peers {
                scope.spawn(move || {
                    while let Ok(request) = peer.try_request() {
                        peer.answer(&request, 0);
                    }
                });
            }
            for pending in pending {
                assert_eq!(pending.wait(), Outcome::Done, "round {round}");
            }
            for end in ends {
                end.shutdown(Shutdown::Both).unwrap();
            }
        });
        peers = (0..3).map(|_| server.accept(offer())).collect();
    }
}

#[test]
fn a_server_that_admits_fewer_connections_is_served_over_those() {
    let server = Server::new();
    std::thread::scope(|scope| {
        let options = Options { connections: Some(3), ..Options::default() };
        let remote = scope.spawn(|| Remote::connect(server.target(), options).unwrap());
        let mut peer = server.accept(offer());
        let remote = remote.join().unwrap();
        for _ in 0..4 {
            drop(server.accept_raw());
        }
        for _ in 0..3 {
            let pending = read(&remote, 0, 512);
            let request = peer.request(READ);
            peer.data(&request, &[1; 512]);
            assert_eq!(pending.wait(), Outcome::Data(vec![1; 512]));
        }
    });
}
