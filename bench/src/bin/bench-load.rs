//! Puts load on an NBD server or on a backend's lanes, and prints as JSON what came of it.

use std::error::Error;
use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use clap::Parser;
use nbd_bench::end::End;
use nbd_bench::handshake;
use nbd_bench::lane::Lanes;
use nbd_bench::load::{Connection, Record, Summary};
use nbd_bench::plan::Plan;

/// Puts load on an NBD server, or on the lanes of a backend that it starts.
///
///   bench-load unix:/run/nbd.sock --pattern randwrite --depth 16
///   bench-load lane -- nbd-serve mem:64M
#[derive(Debug, Parser)]
#[command(name = "bench-load", verbatim_doc_comment)]
struct Cli {
    /// `unix:PATH`, `tcp:HOST:PORT`, or `lane` for a backend that is named behind `--`.
    target: String,
    /// Name of the server's export.
    #[arg(long, default_value = "")]
    export: String,
    #[command(flatten)]
    plan: Plan,
    /// Write to all of the device first.
    #[arg(long)]
    fill: bool,
    /// Say "ready" once connected, begin when a line comes on standard input, and keep the
    /// connections open until it ends: so that somebody can look at the server meanwhile.
    #[arg(long)]
    wait: bool,
    /// The backend to start.
    #[arg(last = true)]
    backend: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), Box<dyn Error>> {
    let plan = &cli.plan;
    if cli.target == "lane" {
        let (lanes, ends) = Lanes::start(&cli.backend, plan.jobs)?;
        measure(cli, ends, lanes.size, Some(lanes.pid()))?;
        return lanes.end();
    }
    let mut ends = Vec::new();
    let mut size = 0;
    for _ in 0..plan.jobs {
        let connected = End::connect(&cli.target);
        let mut end = connected.map_err(|error| format!("{}: {error}", cli.target))?;
        size = handshake::join(&mut end, &cli.export)?;
        ends.push(end);
    }
    measure(cli, ends, size, None)
}

fn measure(
    cli: &Cli,
    mut ends: Vec<End>,
    size: u64,
    pid: Option<u32>,
) -> Result<(), Box<dyn Error>> {
    if cli.fill
        && let Some(end) = ends.pop()
    {
        ends.push(Connection::fill(end, size)?);
    }
    let connect = |(job, end)| Connection::new(end, &cli.plan, job, size);
    let connections: Vec<Connection> = ends.into_iter().enumerate().map(connect).collect();
    let mut input = io::stdin().lock();
    if cli.wait {
        writeln!(io::stdout(), "ready {}", pid.unwrap_or(0))?;
        io::stdout().flush()?;
        input.read_line(&mut String::new())?;
    }
    let (connections, records, time) = all(connections)?;
    writeln!(io::stdout(), "{}", serde_json::to_string(&Summary::new(records, time))?)?;
    io::stdout().flush()?;
    if cli.wait {
        input.read_line(&mut String::new())?;
    }
    Ok(connections.into_iter().try_for_each(Connection::leave)?)
}

/// Runs all connections at once.
fn all(connections: Vec<Connection>) -> io::Result<(Vec<Connection>, Vec<Record>, Duration)> {
    let gate = Barrier::new(connections.len() + 1);
    std::thread::scope(|scope| {
        let run = |connection: Connection| {
            let gate = &gate;
            scope.spawn(move || {
                gate.wait();
                connection.run()
            })
        };
        let threads: Vec<_> = connections.into_iter().map(run).collect();
        gate.wait();
        let start = Instant::now();
        let mut done = Vec::new();
        for thread in threads {
            done.push(thread.join().map_err(|_| io::Error::other("a connection panicked"))??);
        }
        let time = start.elapsed();
        let (connections, records) = done.into_iter().unzip();
        Ok((connections, records, time))
    })
}
