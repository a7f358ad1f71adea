//! Keeping a number of requests in flight on one connection, and measuring how long each takes.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read};
use std::time::{Duration, Instant};

use nbd_proto::{CommandType, NbdError, Request, SimpleReply};
use serde::Serialize;

use crate::end::End;
use crate::plan::{Author, Pattern, Plan};

/// Bytes to receive at once.
const WINDOW: usize = 1 << 20;
/// Pieces of memory to send at once; the kernel takes 1024.
const PARTS: usize = 256;

/// What came of it.
#[derive(Debug, Default)]
pub struct Record {
    /// Nanoseconds, one for each request that was answered.
    pub latencies: Vec<u32>,
    /// Bytes of data moved, either direction.
    pub bytes: u64,
    /// Requests answered with an error.
    pub errors: u64,
}

/// All connections together, for people and scripts.
#[derive(Debug, Serialize)]
pub struct Summary {
    requests: u64,
    seconds: f64,
    iops: f64,
    mb_per_second: f64,
    errors: u64,
    median_us: f64,
    p99_us: f64,
    p999_us: f64,
    worst_us: f64,
}

impl Summary {
    /// Puts together what connections recorded in a time.
    #[must_use]
    pub fn new(records: Vec<Record>, time: Duration) -> Self {
        let bytes: u64 = records.iter().map(|record| record.bytes).sum();
        let errors = records.iter().map(|record| record.errors).sum();
        let mut all: Vec<u32> = records.into_iter().flat_map(|record| record.latencies).collect();
        all.sort_unstable();
        let at = |share: f64| {
            let index = (all.len() as f64 * share) as usize;
            all.get(index.min(all.len().saturating_sub(1))).map_or(0.0, |&ns| f64::from(ns) / 1e3)
        };
        let seconds = time.as_secs_f64();
        Self {
            requests: all.len() as u64,
            seconds,
            iops: all.len() as f64 / seconds,
            mb_per_second: bytes as f64 / seconds / 1e6,
            errors,
            median_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            worst_us: at(1.0),
        }
    }
}

/// A request, and how much of the payload goes with it.
#[derive(Debug)]
struct Message {
    header: [u8; Request::LEN],
    payload: usize,
}

impl Message {
    fn new(request: &Request) -> Self {
        Self { header: request.encode(), payload: request.payload_len() as usize }
    }

    fn len(&self) -> usize {
        self.header.len() + self.payload
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    end: End,
    author: Author,
    plan: Plan,
    awake: bool,
    /// By cookie: what was asked, and when.
    asked: Vec<(CommandType, u32, Instant)>,
    in_flight: usize,
    begun: u64,
    /// Requests to send, and how much of the first one has gone.
    outgoing: VecDeque<Message>,
    sent: usize,
    window: Vec<u8>,
    /// Bytes in the window that are part of a header.
    kept: usize,
    /// Cookie of the reply whose data comes now.
    answered: Option<usize>,
    /// Bytes of that still to come.
    data: usize,
    payload: Vec<u8>,
    record: Record,
}

impl Connection {
    /// A connection in the transmission phase.
    #[must_use]
    pub fn new(end: End, plan: &Plan, job: usize, size: u64) -> Self {
        Self {
            end,
            author: Author::new(plan, job, size),
            awake: plan.is_awake(),
            plan: plan.clone(),
            asked: vec![(CommandType::DISC, 0, Instant::now()); plan.depth],
            in_flight: 0,
            begun: 0,
            outgoing: VecDeque::new(),
            sent: 0,
            window: vec![0; WINDOW],
            kept: 0,
            answered: None,
            data: 0,
            payload: (0..plan.block).map(|byte| (byte * 7 + byte / 251) as u8 | 1).collect(),
            record: Record::default(),
        }
    }

    /// Asks and hears until the plan is done.
    ///
    /// # Errors
    ///
    /// The connection fails, or the server answers what was not asked.
    pub fn run(mut self) -> io::Result<(Self, Record)> {
        let start = Instant::now();
        let end = start + Duration::from_secs_f64(self.plan.seconds);
        let most = self.plan.requests.unwrap_or(u64::MAX);
        let mut free: Vec<usize> = (0..self.plan.depth).rev().collect();
        let mut now = start;
        loop {
            let goes_on = match self.plan.requests {
                Some(most) => self.begun < most,
                None => now < end,
            };
            if goes_on && (!self.plan.lockstep || self.in_flight == 0) {
                while let Some(cookie) = free.pop_if(|_| self.begun < most) {
                    self.ask(cookie, now);
                }
            }
            if self.in_flight == 0 {
                break;
            }
            self.send()?;
            now = self.hear(&mut free)?;
        }
        let record = std::mem::take(&mut self.record);
        Ok((self, record))
    }

    /// Writes to all of the device, so that nobody is measured reading holes.
    ///
    /// # Errors
    ///
    /// As for [`run`](Self::run).
    pub fn fill(end: End, size: u64) -> io::Result<End> {
        let block = 1 << 20;
        let requests = Some(size / u64::from(block));
        let (pattern, lockstep) = (Pattern::Write, false);
        let (depth, jobs, seconds, sleep) = (4, 1, 0.0, true);
        let plan = Plan { pattern, block, depth, jobs, seconds, requests, lockstep, sleep };
        Ok(Self::new(end, &plan, 0, size).run()?.0.end)
    }

    /// Disconnects as the specification wants it.
    ///
    /// # Errors
    ///
    /// The request cannot be sent.
    pub fn leave(mut self) -> io::Result<()> {
        let request = self.author.next(0);
        let request = Request { command: CommandType::DISC, offset: 0, length: 0, ..request };
        self.outgoing.push_back(Message::new(&request));
        self.send()
    }

    fn ask(&mut self, cookie: usize, now: Instant) {
        let request = self.author.next(cookie as u64);
        self.asked[cookie] = (request.command, request.length, now);
        self.outgoing.push_back(Message::new(&request));
        self.begun += 1;
        self.in_flight += 1;
    }

    /// Sends what is there, unless the server must first get rid of replies.
    fn send(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            let count = self.end.send_now(&self.parts())?;
            self.sent += count;
            while let Some(first) = self.outgoing.front().filter(|first| first.len() <= self.sent) {
                self.sent -= first.len();
                self.outgoing.pop_front();
            }
            if count == 0 {
                if self.end.has_bytes()? {
                    return Ok(());
                }
                self.end.wait()?;
            }
        }
        Ok(())
    }

    /// What is not sent, as it lies in memory: all writes have the same data, and copying that
    /// first would be measured as well.
    fn parts(&self) -> Vec<IoSlice<'_>> {
        let mut gone = self.sent;
        let mut parts = Vec::with_capacity(2 * self.outgoing.len().min(PARTS / 2));
        for message in self.outgoing.iter().take(PARTS / 2) {
            for part in [&message.header[..], &self.payload[..message.payload]] {
                let skipped = gone.min(part.len());
                gone -= skipped;
                if skipped < part.len() {
                    parts.push(IoSlice::new(&part[skipped..]));
                }
            }
        }
        parts
    }

    /// Receives once, and takes the replies that are there.
    fn hear(&mut self, free: &mut Vec<usize>) -> io::Result<Instant> {
        if self.awake {
            self.end.look()?;
        }
        let count = self.end.read(&mut self.window[self.kept..])?;
        if count == 0 {
            return Err(io::Error::other("the server has closed the connection"));
        }
        let now = Instant::now();
        let filled = self.kept + count;
        let mut at = 0;
        loop {
            let skipped = self.data.min(filled - at);
            at += skipped;
            self.data -= skipped;
            self.settle(now, free);
            let Some(header) = self.window[at..filled].first_chunk() else { break };
            let reply = SimpleReply::decode(header)
                .map_err(|wrong| io::Error::other(format!("not a simple reply: {wrong}")))?;
            at += SimpleReply::LEN;
            self.begin(reply)?;
        }
        self.window.copy_within(at..filled, 0);
        self.kept = filled - at;
        Ok(now)
    }

    /// Takes a reply whose data is still to come.
    fn begin(&mut self, reply: SimpleReply) -> io::Result<()> {
        let cookie = reply.cookie as usize;
        let &(command, length, _) =
            self.asked.get(cookie).ok_or_else(|| io::Error::other("an unknown cookie"))?;
        if reply.error == NbdError::SUCCESS {
            self.record.bytes += u64::from(length);
            self.data = if command == CommandType::READ { length as usize } else { 0 };
        } else {
            self.record.errors += 1;
        }
        self.answered = Some(cookie);
        Ok(())
    }

    /// A request is done once all of its data is there.
    fn settle(&mut self, now: Instant, free: &mut Vec<usize>) {
        let Some(cookie) = self.answered.take_if(|_| self.data == 0) else { return };
        let time = now - self.asked[cookie].2;
        self.record.latencies.push(u32::try_from(time.as_nanos()).unwrap_or(u32::MAX));
        free.push(cookie);
        self.in_flight -= 1;
    }
}
