//! Clients that ask for metrics, at the same time, each within a limit.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::http::{self, Answer};
use super::listen::{Address, Listen, UnixSocket, bind_tcp};
use super::{HostNames, collect};
use crate::context::{Context, eprint};
use crate::error::Error;

/// How long a client may take to ask, and again to take its answer, however it divides that.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// No more than this is read of what a client asks.
const MAX_REQUEST_BYTES: usize = 8192;
/// Clients that are answered at the same time: each has a thread.
const MAX_CLIENTS: usize = 16;
/// How long to wait where no connection can be accepted, as without descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Answers every client that asks by HTTP, until Ctrl-C.
pub(crate) fn serve(context: &Arc<Context>, listen: &Listen) -> Result<(), Error> {
    let failed = |source| Error::Listen { address: listen.address.to_string(), source };
    match &listen.address {
        Address::Loopback(at) => {
            let listener = bind_tcp(*at).map_err(failed)?;
            let at = listener.local_addr().map_err(failed)?;
            eprint(&format!("listening on {at}: every user of this machine can read it"));
            let next = || listener.accept().map(|(stream, _)| Arc::new(stream) as _);
            accept(context, listener.as_fd(), Some(&listen.hosts), next);
        }
        Address::Unix(path) => {
            let socket = UnixSocket::bind(path, listen.group).map_err(failed)?;
            eprint(&format!("listening on {}", path.display()));
            let next = || socket.listener.accept().map(|(stream, _)| Arc::new(stream) as _);
            accept(context, socket.listener.as_fd(), None, next);
            // One that stays is replaced by the next start.
            let _ = socket.remove();
        }
    }
    Ok(())
}

/// A connection over whatever socket. It is used by its thread, and ended by the one that accepts.
trait Client: Send + Sync {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;
    /// How long the next calls may take.
    fn limit(&self, time: Duration) -> io::Result<()>;
    /// Ends it, and with it all calls.
    fn hang_up(&self);
}

macro_rules! impl_client {
    ($($stream:ty),*) => {$(
        impl Client for $stream {
            fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
                Read::read(&mut &*self, buffer)
            }

            fn write(&self, bytes: &[u8]) -> io::Result<usize> {
                Write::write(&mut &*self, bytes)
            }

            fn limit(&self, time: Duration) -> io::Result<()> {
                self.set_read_timeout(Some(time)).and_then(|()| self.set_write_timeout(Some(time)))
            }

            fn hang_up(&self) {
                // An error means that the client was faster.
                let _ = self.shutdown(Shutdown::Both);
            }
        }
    )*};
}

impl_client!(TcpStream, UnixStream);

/// What a client's thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The client, to ask.
    Request,
    /// The holders, to tell.
    Holders,
    /// The client, to take its answer.
    Answer,
}

struct Seat {
    number: u64,
    phase: Phase,
    client: Arc<dyn Client>,
}

/// The clients that are connected, in the order in which they came.
#[derive(Default)]
struct Seats {
    next_number: u64,
    taken: Vec<Seat>,
}

impl Seats {
    /// Makes room for a client. If there are too many, the oldest one that keeps us waiting must go,
    /// so that clients which do nothing are in no way of one that asks. None if all wait for holders.
    fn take(&mut self, client: Arc<dyn Client>) -> Option<u64> {
        if self.taken.len() >= MAX_CLIENTS {
            let oldest_in = |phase| self.taken.iter().position(|seat| seat.phase == phase);
            let oldest = oldest_in(Phase::Request).or_else(|| oldest_in(Phase::Answer))?;
            self.taken.remove(oldest).client.hang_up();
        }
        let number = self.next_number;
        self.next_number += 1;
        self.taken.push(Seat { number, phase: Phase::Request, client });
        Some(number)
    }

    /// None if the client had to make way.
    fn change(&mut self, number: u64, phase: Phase) -> Option<()> {
        let seat = self.taken.iter_mut().find(|seat| seat.number == number)?;
        seat.phase = phase;
        Some(())
    }

    fn leave(&mut self, number: u64) {
        self.taken.retain(|seat| seat.number != number);
    }
}

/// Ctrl-C waits for no client.
fn accept(
    context: &Arc<Context>,
    listener: BorrowedFd<'_>,
    hosts: Option<&HostNames>,
    next: impl Fn() -> io::Result<Arc<dyn Client>>,
) {
    let seats = Arc::default();
    while context.wait_for_input(listener) {
        match next() {
            Ok(client) => start(context, &seats, hosts, client),
            // The client has left meanwhile.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) if context.sleep(ACCEPT_BACKOFF) => {}
            Err(_) => return,
        }
    }
}

/// A client for which there is no room, or no thread, sees its connection closed and comes again.
fn start(
    context: &Arc<Context>,
    seats: &Arc<Mutex<Seats>>,
    hosts: Option<&HostNames>,
    client: Arc<dyn Client>,
) {
    let Some(number) = lock(seats).take(Arc::clone(&client)) else {
        return;
    };
    let (context, hosts, own_seats) = (Arc::clone(context), hosts.cloned(), Arc::clone(seats));
    let started = thread::Builder::new().spawn(move || {
        let change = |phase| lock(&own_seats).change(number, phase);
        // Nothing, if the client has left.
        let _ = answer(&context, &*client, hosts.as_ref(), change);
        lock(&own_seats).leave(number);
    });
    if started.is_err() {
        lock(seats).leave(number);
    }
}

fn lock(seats: &Mutex<Seats>) -> MutexGuard<'_, Seats> {
    seats.lock().unwrap_or_else(PoisonError::into_inner)
}

/// None if the client leaves, or has to, before its answer is made.
fn answer(
    context: &Context,
    client: &dyn Client,
    hosts: Option<&HostNames>,
    change: impl Fn(Phase) -> Option<()>,
) -> Option<()> {
    let request = read_head(client, Instant::now() + CLIENT_TIMEOUT)?;
    // What it had sent before it was hung up on can still be read.
    change(Phase::Holders)?;
    let answer = http::check(&request, hosts).map_or_else(
        |refusal| refusal,
        |()| match collect(context) {
            Ok((text, _)) => Answer::metrics(text),
            // The registry cannot be read, or Ctrl-C came.
            Err(error) => Answer::failure(&error.chain().unwrap_or_default()),
        },
    );
    change(Phase::Answer)?;
    send(client, &answer.into_bytes(), Instant::now() + CLIENT_TIMEOUT);
    Some(())
}

fn send(client: &dyn Client, mut rest: &[u8], deadline: Instant) {
    while !rest.is_empty() && limit_to(client, deadline).is_some() {
        match client.write(rest) {
            Ok(count) if count > 0 => rest = &rest[count..],
            _ => return,
        }
    }
}

/// None if the time is over.
fn limit_to(client: &dyn Client, deadline: Instant) -> Option<()> {
    let left = deadline.checked_duration_since(Instant::now())?;
    client.limit(left.max(Duration::from_millis(1))).ok()
}

fn read_head(client: &dyn Client, deadline: Instant) -> Option<String> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        limit_to(client, deadline)?;
        let count = client.read(&mut buffer).ok().filter(|&count| count > 0)?;
        head.extend_from_slice(&buffer[..count]);
        if head.len() > MAX_REQUEST_BYTES {
            return None;
        }
    }
    String::from_utf8(head).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[derive(Default)]
    struct Silent(AtomicBool);

    impl Client for Silent {
        fn read(&self, _: &mut [u8]) -> io::Result<usize> {
            Ok(0)
        }

        fn write(&self, _: &[u8]) -> io::Result<usize> {
            Ok(0)
        }

        fn limit(&self, _: Duration) -> io::Result<()> {
            Ok(())
        }

        fn hang_up(&self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Clients in all seats, in these phases from the oldest on; those behind wait for holders.
    fn full(phases: &[Phase]) -> (Seats, Vec<Arc<Silent>>) {
        let mut seats = Seats::default();
        let clients: Vec<_> = (0..MAX_CLIENTS).map(|_| Arc::new(Silent::default())).collect();
        for (place, client) in clients.iter().enumerate() {
            let number = seats.take(Arc::clone(client) as _).unwrap();
            seats.change(number, phases.get(place).copied().unwrap_or(Phase::Holders)).unwrap();
        }
        (seats, clients)
    }

    fn dropped(clients: &[Arc<Silent>]) -> Vec<usize> {
        let is_dropped = |place: &usize| clients[*place].0.load(Ordering::Relaxed);
        (0..clients.len()).filter(is_dropped).collect()
    }

    #[test]
    fn the_oldest_client_that_keeps_us_waiting_makes_way() {
        use Phase::{Answer, Holders, Request};
        for (phases, expected) in [
            (&[Holders, Answer, Request, Request][..], &[2][..]),
            (&[Holders, Answer, Answer], &[1]),
            (&[Request], &[0]),
        ] {
            let (mut seats, clients) = full(phases);
            assert!(seats.take(Arc::new(Silent::default())).is_some());
            assert_eq!(dropped(&clients), expected);
            assert_eq!(seats.taken.len(), MAX_CLIENTS);
            let gone = expected[0] as u64;
            assert!(seats.change(gone, Holders).is_none());
        }
    }

    #[test]
    fn a_client_whose_answer_is_made_is_not_dropped() {
        let (mut seats, clients) = full(&[]);
        assert!(seats.take(Arc::new(Silent::default())).is_none());
        assert_eq!(dropped(&clients), [0; 0]);
        seats.leave(3);
        assert!(seats.take(Arc::new(Silent::default())).is_some());
        assert_eq!(dropped(&clients), [0; 0]);
    }
}
