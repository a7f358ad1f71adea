use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::*;
use crate::backend::durability::ProcessDurability;
use crate::backend::{Completion, Geometry};

const DEADLINE: Duration = Duration::from_secs(60);
const READ: Command = Command::Read { offset: 0, length: 512 };
const WRITE: Command = Command::Write { offset: 0, length: 512, fua: false };

/// Reads are quick, so they say, and wait until they are let go. Writes are not quick.
struct Gate {
    opens: Mutex<Receiver<()>>,
    is_quick: AtomicBool,
}

impl Backend for Gate {
    fn geometry(&self) -> Geometry {
        Geometry { size: 512, block_size: 512, capabilities: crate::Capabilities::default() }
    }

    fn read_at(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<()> {
        let opens = self.opens.lock().unwrap_or_else(PoisonError::into_inner);
        opens.recv_timeout(DEADLINE).map_err(io::Error::other)
    }

    fn write_at(&self, _data: &[u8], _offset: u64, _fua: bool) -> io::Result<()> {
        Ok(())
    }

    fn is_quick(&self, command: &Command) -> bool {
        *command == READ && self.is_quick.load(Ordering::Relaxed)
    }
}

/// What was finished, whether its answer was held back, and on which thread.
type Finished = (Command, bool, Option<String>);

struct Request {
    command: Command,
    is_held_back: bool,
    durability: Arc<ProcessDurability>,
    finished: Sender<Finished>,
    socket: UnixStream,
}

impl ReceivedRequest for Request {
    fn payload(&self) -> &[u8] {
        &[]
    }

    fn durability(&self) -> &dyn Durability {
        &*self.durability
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Task for Request {
    fn command(&self) -> &Command {
        &self.command
    }

    fn payload(&self) -> &[u8] {
        &[]
    }

    fn begin(&self) {}

    fn hold_back(&mut self) {
        self.is_held_back = true;
    }

    fn durability(&self) -> &dyn Durability {
        &*self.durability
    }

    fn finish(self: Box<Self>, _completion: Completion<'_>) {
        let name = std::thread::current().name().map(str::to_owned);
        self.finished.send((self.command, self.is_held_back, name)).unwrap();
    }
}

struct Sink;

impl ReplySink for Sink {
    type Request = Request;
    type Refusal = ();
    type Blocked = ();

    fn check(&self, request: &Request) -> Result<Command, ()> {
        Ok(request.command)
    }

    fn refuse(&mut self, _request: Request, (): ()) {}

    fn room(&mut self, _request: &Request, _command: &Command) -> Room<'_> {
        Room::Inline(&mut [])
    }

    fn complete(&mut self, _request: Request, _command: &Command, _done: Result<(), NbdError>) {}

    fn queue(&mut self, request: Request, _command: Command) -> Result<Box<dyn Task>, ()> {
        Ok(Box::new(request))
    }
}

#[test]
fn a_call_that_is_not_quick_after_all_holds_up_no_other() {
    let (open, opens) = channel();
    let (finished, ends) = channel();
    let backend = Arc::new(Gate { opens: Mutex::new(opens), is_quick: true.into() });
    let workers = Workers::new(Arc::clone(&backend) as Arc<dyn Backend>);
    let commands = [READ, WRITE, READ];
    let receiving = Arc::clone(&workers);
    let thread = std::thread::Builder::new().name("receiving".into()).spawn(move || {
        let mut dispatcher = Dispatcher::new(&receiving);
        let durability = Arc::new(ProcessDurability::default());
        for command in commands {
            let (durability, finished) = (Arc::clone(&durability), finished.clone());
            let socket = UnixStream::pair().unwrap().0;
            let request = Request { command, is_held_back: false, durability, finished, socket };
            dispatcher.dispatch(&mut Sink, request, false).unwrap();
        }
        assert!(dispatcher.run_queued(), "answers were held back");
    });
    let thread = thread.unwrap();
    let end = || ends.recv_timeout(DEADLINE).unwrap();
    // It is between the two, and goes on while the first read hangs.
    let (command, is_held_back, name) = end();
    assert_eq!((command, is_held_back), (WRITE, false));
    assert!(name.unwrap().starts_with("worker-"));

    backend.is_quick.store(false, Ordering::Relaxed);
    open.send(()).unwrap();
    assert_eq!(end(), (READ, true, Some("receiving".into())));
    // The other one is left to a worker, as reads are not quick any more.
    open.send(()).unwrap();
    let (command, is_held_back, name) = end();
    assert_eq!((command, is_held_back), (READ, false));
    assert!(name.unwrap().starts_with("worker-"));
    thread.join().unwrap();
}
