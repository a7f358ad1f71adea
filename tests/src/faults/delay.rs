//! Packets that a process has sent and that arrive late, also after its death.

use std::time::Duration;

use serde_json::Value;

use crate::command::run;
use crate::wait::{EVENT_TIMEOUT, wait_until};

/// Delays what a process sends over the connections that it has now, to this machine. Its later
/// connections and those of other processes are as quick as ever. There is one at a time.
#[derive(Debug)]
pub struct Delay {
    ports: Vec<String>,
}

impl Delay {
    /// Begins it.
    #[track_caller]
    #[must_use]
    pub fn of(pid: i32, time: Duration) -> Self {
        let ports = ports_of(pid);
        assert!(!ports.is_empty(), "process {pid} has no connections");
        let delay = Self { ports };
        let time = format!("{}ms", time.as_millis());
        // What no filter takes goes into the first three bands, which are quick.
        tc("qdisc add dev lo root handle 1: prio bands 4");
        tc(&format!("qdisc add dev lo parent 1:4 handle 40: netem delay {time}"));
        for port in &delay.ports {
            let port = format!("match ip sport {port} 0xffff");
            tc(&format!("filter add dev lo parent 1: protocol ip u32 {port} flowid 1:4"));
        }
        delay
    }

    /// Bytes that were sent and have not arrived.
    #[track_caller]
    #[must_use]
    pub fn on_the_way(&self) -> u64 {
        let output = run("tc", ["-s", "-j", "qdisc", "show", "dev", "lo"]).succeeds();
        let value: Value = serde_json::from_str(&output.stdout).expect("JSON of tc");
        let all = value.as_array().expect("a list of tc");
        let netem = all.iter().find(|one| one["kind"] == "netem").expect("a queue that delays");
        netem["backlog"].as_u64().expect("a number of tc")
    }

    /// Waits until all that the process has sent was taken by its receivers: it must be dead.
    #[track_caller]
    pub fn arrives(&self) {
        wait_until("what was sent has arrived", EVENT_TIMEOUT, || self.on_the_way() == 0);
        // A receiver closes its end when it has read all.
        wait_until("the connections are closed", EVENT_TIMEOUT, || {
            let open = run("ss", ["-tnH", "state", "established", "state", "close-wait"])
                .succeeds()
                .stdout;
            let ends_with = |word: &str, port: &String| word.ends_with(&format!(":{port}"));
            !open.split_whitespace().any(|word| self.ports.iter().any(|port| ends_with(word, port)))
        });
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        let _ = run("tc", ["qdisc", "del", "dev", "lo", "root"]);
    }
}

#[track_caller]
fn tc(command: &str) {
    run("tc", command.split(' ')).succeeds();
}

/// The local ports of a process's connections.
fn ports_of(pid: i32) -> Vec<String> {
    let all = run("ss", ["-tnpH", "state", "established"]).succeeds().stdout;
    let owner = format!("pid={pid},");
    let own = all.lines().filter(|line| line.contains(&owner));
    // Recv-Q, Send-Q, local, peer.
    own.filter_map(|line| line.split_whitespace().nth(2)?.rsplit_once(':'))
        .map(|(_, port)| port.to_owned())
        .collect()
}
