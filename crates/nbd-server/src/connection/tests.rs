use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex};

use nbd_backend::{Backend, Capabilities, Geometry};
use nbd_net::socket::Socket;
use nbd_net::stream::Stream;
use nbd_proto::handshake::ReplyStyle;
use nbd_proto::{RequestRules as Rules, TransmissionFlags};

use super::*;
use crate::export::Export;
use crate::limits::Limits;
use crate::memory_budget::{MemoryBudget, STEP};
use crate::reply::ReplyEncoder;

const LENGTH: usize = 2 * STEP;

/// No test here gets as far as the storage.
struct NoStorage;

impl Backend for NoStorage {
    fn geometry(&self) -> Geometry {
        Geometry { size: 1 << 20, block_size: 512, capabilities: Capabilities::default() }
    }

    fn read_at(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_at(&self, _data: &[u8], _offset: u64, _fua: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A connection that has this memory, its receive buffer, and its client.
fn connection(memory: &Arc<MemoryBudget>) -> (Connection, RecvBuffer, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (receiver, sender) = Stream::plain(Socket::from_fd(ours.into()).unwrap()).split();
    let limits = Limits::default();
    let recv_buffer = RecvBuffer::new(receiver, &[], &limits, Arc::clone(memory)).unwrap();
    let rules = Rules {
        size: 1 << 20,
        flags: TransmissionFlags::HAS_FLAGS,
        min_block_size: 1,
        max_payload: limits.max_payload,
        block_status: false,
    };
    let connection = Connection {
        export: Arc::new(Export::new(String::new(), String::new(), Arc::new(NoStorage))),
        rules,
        replies: ReplyEncoder { style: ReplyStyle::Simple, allocation: None },
        limits,
        memory: Arc::clone(memory),
        socket: Arc::clone(sender.socket()),
        is_stopping: Arc::default(),
        shared: Mutex::new(SendState::new(SendBuffer::new(sender))),
        changed: Condvar::new(),
    };
    (connection, recv_buffer, theirs)
}

/// The memory of the next step is in use all the time.
#[test]
fn a_client_that_was_hung_up_does_not_keep_its_part_of_the_memory() {
    let memory = MemoryBudget::new(LENGTH as u64);
    let (connection, mut recv_buffer, mut client) = connection(&memory);
    std::thread::scope(|scope| {
        scope.spawn(|| client.write_all(&vec![7; STEP]).unwrap());
        while recv_buffer.bytes().len() < STEP {
            assert_ne!(connection.receive(&mut recv_buffer, LENGTH).unwrap(), 0);
        }
    });
    let others = memory.try_take(STEP as u64).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        connection.lock().send_buffer.hang_up();
        let received = connection.receive(&mut recv_buffer, LENGTH);
        sender.send(received.is_ok_and(|count| count == 0)).unwrap();
    });
    assert!(receiver.recv_timeout(Duration::from_secs(60)).unwrap());
    drop(others);
}
