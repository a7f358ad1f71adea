use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::address::Address;
use crate::socket::Socket;
use crate::testing::Scratch;

const MOMENT: Duration = Duration::from_millis(20);
/// Longer than anything that succeeds takes.
const EVENT_TIMEOUT: Duration = Duration::from_secs(120);

fn bind(text: &str) -> Result<Listeners, ListenError> {
    Listeners::bind(&[text.parse().unwrap()])
}

fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}

/// Connects to an address and lets a byte through.
fn visit(listeners: &Listeners, address: &Address) {
    let (stop, _stopper) = io::pipe().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let client = Socket::connect(address, EVENT_TIMEOUT).unwrap();
            assert_eq!(client.receive(&mut [0; 8]).unwrap(), 1);
        });
        let socket = listeners.accept(stop.as_fd()).unwrap().unwrap();
        socket.try_send(&[io::IoSlice::new(b"x")]).unwrap();
    });
}

#[test]
fn clients_reach_a_unix_socket_that_is_private_and_tidied_up() {
    let scratch = Scratch::new();
    let path = scratch.path().join("socket");
    let listeners = bind(&unix(&path)).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    visit(&listeners, &listeners.addresses()[0]);
    drop(listeners);
    assert!(!path.exists());
    let shared = Listener::bind_with_mode(&Listen::Unix(path.clone()), 0o640).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);
    drop(shared);
}

#[test]
fn the_socket_of_a_dead_server_is_replaced() {
    let scratch = Scratch::new();
    let path = scratch.path().join("socket");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listeners = bind(&unix(&path)).unwrap();
    visit(&listeners, &Address::Unix(path));
}

#[test]
fn the_socket_of_a_living_server_is_left_alone() {
    let scratch = Scratch::new();
    let path = scratch.path().join("socket");
    let living = bind(&unix(&path)).unwrap();
    let error = bind(&unix(&path)).unwrap_err();
    assert!(matches!(error, ListenError::InUse(_)), "{error}");
    assert!(error.to_string().contains(&unix(&path)), "{error}");
    // The probe of the second server is nobody that a client would have to wait for.
    let (stop, _stopper) = io::pipe().unwrap();
    let probe = living.accept(stop.as_fd()).unwrap().unwrap();
    assert_eq!(probe.receive(&mut [0; 8]).unwrap(), 0);
    visit(&living, &Address::Unix(path));
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let scratch = Scratch::new();
    let path = scratch.path().join("file");
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(bind(&unix(&path)).unwrap_err(), ListenError::InTheWay(_)));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_socket_that_is_no_longer_ours_is_not_removed() {
    let scratch = Scratch::new();
    let path = scratch.path().join("socket");
    let ours = bind(&unix(&path)).unwrap();
    std::fs::remove_file(&path).unwrap();
    let theirs = bind(&unix(&path)).unwrap();
    drop(ours);
    visit(&theirs, &Address::Unix(path));
}

#[test]
fn of_many_servers_that_start_at_once_exactly_one_wins() {
    let scratch = Scratch::new();
    let path = scratch.path().join("socket");
    for _ in 0..20 {
        drop(UnixListener::bind(&path).unwrap());
        let servers: Vec<_> = thread::scope(|scope| {
            let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| bind(&unix(&path)).ok())).collect();
            starts.into_iter().filter_map(|start| start.join().unwrap()).collect()
        });
        assert_eq!(servers.len(), 1);
        UnixStream::connect(&path).unwrap();
    }
}

#[test]
fn errors_name_the_place_and_a_way_out() {
    let scratch = Scratch::new();
    let long = unix(&scratch.path().join("x".repeat(200)));
    assert!(matches!(bind(&long).unwrap_err(), ListenError::LongPath { .. }));
    let absent = unix(&scratch.path().join("no/such/directory"));
    assert!(bind(&absent).unwrap_err().to_string().contains(&absent));
    assert!(matches!(bind("tcp:host.invalid").unwrap_err(), ListenError::Lookup { .. }));
    // Reserved for documentation, so not one of ours.
    assert!(bind("tcp:192.0.2.1").unwrap_err().to_string().contains("192.0.2.1"));
    assert!(matches!(bind("systemd").unwrap_err(), ListenError::NotActivated));
}

#[test]
fn clients_reach_tcp_ports_on_all_interfaces() {
    let listeners = bind("tcp::0").unwrap();
    let Address::Tcp { port, .. } = listeners.addresses()[0].clone() else { panic!() };
    visit(&listeners, &Address::Tcp { host: "127.0.0.1".into(), port });
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        visit(&listeners, &Address::Tcp { host: "::1".into(), port });
    }
    let second = bind(&format!("tcp::{port}")).unwrap_err();
    assert!(matches!(second, ListenError::InUse(_)), "{second}");
}

#[test]
fn all_addresses_of_a_host_have_the_same_port() {
    let listeners = bind("tcp:localhost:0").unwrap();
    let addresses = listeners.addresses();
    let port = |address: &Address| match address {
        Address::Tcp { port, .. } => *port,
        other => panic!("{other}"),
    };
    for address in &addresses {
        assert_eq!(port(address), port(&addresses[0]));
        visit(&listeners, address);
    }
}

#[test]
fn sources_of_all_kinds_are_waited_for_together() {
    let scratch = Scratch::new();
    let paths = ["a", "b"].map(|name| scratch.path().join(name));
    let listens = paths.clone().map(Listen::Unix);
    let mut all: Vec<_> =
        listens.iter().flat_map(|listen| Listener::bind(listen).unwrap()).collect();
    let (one, mut peer) = UnixStream::pair().unwrap();
    all.push(Listener::one(Socket::from_fd(one.into()).unwrap()));
    let listeners = Listeners::new(all);
    let (stop, _stopper) = io::pipe().unwrap();
    let socket = listeners.accept(stop.as_fd()).unwrap().unwrap();
    peer.write_all(b"x").unwrap();
    assert_eq!(socket.receive(&mut [0; 8]).unwrap(), 1);
    for path in paths {
        visit(&listeners, &Address::Unix(path));
    }
}

#[test]
fn it_stops_when_told_to_and_when_nobody_can_come() {
    let scratch = Scratch::new();
    let listeners = bind(&unix(&scratch.path().join("socket"))).unwrap();
    let (stop, mut stopper) = io::pipe().unwrap();
    thread::scope(|scope| {
        let accepting = scope.spawn(|| listeners.accept(stop.as_fd()).unwrap());
        thread::sleep(MOMENT);
        stopper.write_all(b"x").unwrap();
        assert!(accepting.join().unwrap().is_none());
    });
    assert!(listeners.accept(stop.as_fd()).unwrap().is_none());

    let (stop, _stopper) = io::pipe().unwrap();
    let (one, mut peer) = UnixStream::pair().unwrap();
    let single = Listeners::new(vec![Listener::one(Socket::from_fd(one.into()).unwrap())]);
    drop(single.accept(stop.as_fd()).unwrap().unwrap());
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    assert!(single.accept(stop.as_fd()).unwrap().is_none());
}

#[test]
fn a_lack_is_waited_out_and_other_errors_are_not() {
    let listeners = Listeners::new(Vec::new());
    let consider = |errno: nix::Error| listeners.consider(errno.into());
    assert!(!consider(nix::Error::ECONNABORTED).unwrap());
    for errno in [nix::Error::EMFILE, nix::Error::ENFILE, nix::Error::ENOMEM, nix::Error::EPERM] {
        assert!(consider(errno).unwrap());
    }
    assert!(consider(nix::Error::EINVAL).is_err());
}

#[test]
fn a_pause_ends_when_it_is_time_to_stop() {
    let (stop, mut stopper) = io::pipe().unwrap();
    let started = Instant::now();
    assert!(!accept::is_readable_within(stop.as_fd(), 20u16.into()).unwrap());
    assert!(started.elapsed() >= MOMENT);
    stopper.write_all(b"x").unwrap();
    assert!(accept::is_readable_within(stop.as_fd(), 60_000u16.into()).unwrap());
}
