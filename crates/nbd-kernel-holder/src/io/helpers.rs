//! Helper processes: system calls that may block for ever, and programs that are asked something. The
//! event loop hears of their reports; one that is late is left behind.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::process::{Command, Stdio};
use std::time::Duration;

use nbd_control::service;
use nbd_control::system_error::explain;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::Pid;

use crate::core::event::UsersUnknown;
use crate::core::{Event, HelperId, HelperTask, Report};
use crate::holder::Holder;
use crate::holder::helper::{Helper, Kind};
use crate::io::become_program::judge_answer;
use crate::io::udev;
use crate::io::words::describe_errno;
use crate::kernel::device_users;
use crate::kernel::helper_process::{self, HelperProcess};
use crate::kernel::limits::DIFFERENCES;
use crate::system::{Process, open_child};

/// How often what a scan has found is taken from its helper, so that it never waits for room.
pub(crate) const SCAN_INTERVAL: Duration = Duration::from_millis(20);

impl Holder {
    pub(crate) fn start_helper(&mut self, id: HelperId, task: HelperTask) {
        let wanted = task.clone();
        match self.run_helper(task) {
            Ok(Some(helper)) => {
                self.processes.helpers.insert(id, helper);
            }
            Ok(None) => self.feed(Event::HelperEnded { id, report: Report::Status(0) }),
            Err(error) => {
                match wanted {
                    HelperTask::SilenceTimeouts => self.timeouts_not_silenced(&explain(&error)),
                    HelperTask::CompareLimits => self.tell_differences(None),
                    _ => {}
                }
                let report = match wanted == HelperTask::FindUsers {
                    true => Report::Users(Err(UsersUnknown::NoHelper(explain(&error)))),
                    false => Report::Status(error.raw_os_error().unwrap_or(libc::EAGAIN)),
                };
                self.feed(Event::HelperEnded { id, report });
            }
        }
    }

    /// Nothing if there is nothing to wait for.
    fn run_helper(&mut self, task: HelperTask) -> io::Result<Option<Helper>> {
        let (device, api) = (&self.device, self.settings.api);
        let (process, kind) = match task {
            HelperTask::FindUsers => {
                let (process, scan) = device_users::scan(device, &self.our_processes())?;
                (HelperProcess::program(process), Kind::Users(scan))
            }
            HelperTask::TellUdev { leaving } => match self.tell_udev_leaving(leaving)? {
                Some(process) => (HelperProcess::program(process), Kind::Status),
                None => return Ok(None),
            },
            HelperTask::SettleUdev { limit } => match udev::settle(limit) {
                Some(process) => (HelperProcess::program(process), Kind::Status),
                None => return Ok(None),
            },
            HelperTask::FlushAndDisconnect => {
                (helper_process::flush_and_disconnect(device, api)?, Kind::Flush)
            }
            HelperTask::Disconnect => (helper_process::disconnect_now(device, api)?, Kind::Status),
            HelperTask::TryLock => (helper_process::try_lock(device)?, Kind::Status),
            HelperTask::SilenceTimeouts => {
                (helper_process::silence_timeouts(device)?, Kind::SilenceTimeouts)
            }
            HelperTask::RestoreTimeouts => match self.data.io_timeout.take() {
                Some(before) => (helper_process::restore_timeouts(device, before)?, Kind::Status),
                None => return Ok(None),
            },
            HelperTask::CompareLimits => {
                (helper_process::compare_limits(device, self.export())?, Kind::CompareLimits)
            }
            HelperTask::TestRead => {
                (helper_process::test_read(device, self.export().block_size)?, Kind::Status)
            }
            HelperTask::Resize { size, guard } => {
                let block_size = self.export().block_size;
                (helper_process::resize(device, api, size, block_size, guard)?, Kind::Resize)
            }
            HelperTask::AskProgram { program } => {
                let (process, answer) = self.ask_program(&program)?;
                (HelperProcess::program(process), Kind::Program { name: program, answer })
            }
        };
        Ok(Some(Helper { process, kind }))
    }

    /// Processes that have the device open on our behalf.
    fn our_processes(&self) -> Vec<i32> {
        let sitter = self.processes.sitter.as_ref().map(|sitter| &sitter.process);
        // Helpers that are done and still have it open, among others.
        let helpers = self.processes.orphans.iter().chain(sitter);
        let us = nix::unistd::getpid().as_raw();
        helpers.map(|process| process.pid.as_raw()).chain([us]).collect()
    }

    /// Starts a program that is to tell whether it could take over, and where it will have told.
    fn ask_program(&self, program: &str) -> io::Result<(Process, File)> {
        let answer = File::from(memfd_create(c"answer", MFdFlags::MFD_CLOEXEC)?);
        let mut command = Command::new(program);
        service::withhold(&mut command);
        let child = command
            .arg("--runtime-dir")
            .arg(self.place.registry.directory())
            .arg("--can-take-over")
            .arg(self.device.name())
            .stdin(Stdio::null())
            .stdout(answer.try_clone()?)
            .stderr(answer.try_clone()?)
            .spawn()?;
        Ok((open_child(Pid::from_raw(child.id().cast_signed()))?, answer))
    }

    /// Takes what scans have found so far.
    pub(crate) fn take_findings(&mut self) {
        for helper in self.processes.helpers.values_mut() {
            if let Kind::Users(scan) = &mut helper.kind {
                scan.take();
            }
        }
    }

    /// A helper process has reported. It has still to end, and may be slow to: see [`HelperProcess`].
    pub(crate) fn on_helper_readable(&mut self, id: HelperId) {
        let Some(mut helper) = self.processes.helpers.remove(&id) else {
            return;
        };
        let report = helper.process.read_report();
        let (status, value) = report.unwrap_or(helper_process::KILLED);
        self.processes.orphans.push(helper.process.process);
        let report = match helper.kind {
            Kind::Status => Report::Status(status),
            Kind::Users(scan) => Report::Users(scan.result().map_err(UsersUnknown::TimedOut)),
            Kind::Flush => Report::Flushed(helper_process::flushed(status)),
            Kind::Resize => Report::Resized(helper_process::resized(report)),
            Kind::SilenceTimeouts => {
                match status {
                    0 => self.data.io_timeout = Some(value),
                    errno => self.timeouts_not_silenced(describe_errno(errno)),
                }
                Report::Status(status)
            }
            Kind::CompareLimits => {
                self.tell_differences((status == 0).then_some(value));
                Report::Status(status)
            }
            Kind::Program { name, mut answer } => {
                let mut said = String::new();
                let read = answer.rewind().and_then(|()| answer.read_to_string(&mut said));
                if let Err(error) = read {
                    said = error.to_string();
                }
                Report::Program(judge_answer(&name, status, said.trim()))
            }
        };
        self.feed(Event::HelperEnded { id, report });
    }

    /// Leaves a helper process behind that takes too long. It may sit in an uninterruptible call; it
    /// dies when that returns, doing no more.
    pub(crate) fn leave_helper(&mut self, id: HelperId) {
        let Some(helper) = self.processes.helpers.remove(&id) else {
            return;
        };
        let process = helper.process.process;
        if let Err(error) = process.kill() {
            self.warn(&format!("helper process {}: {}", process.pid, explain(&error)));
        }
        self.processes.orphans.push(process);
        match helper.kind {
            Kind::Users(scan) => {
                let report = Report::Users(scan.result().map_err(UsersUnknown::TimedOut));
                self.feed(Event::HelperEnded { id, report });
            }
            Kind::SilenceTimeouts => {
                self.timeouts_not_silenced("the kernel has not done it in time");
            }
            Kind::CompareLimits => self.tell_differences(None),
            _ => {}
        }
    }

    fn timeouts_not_silenced(&self, error: &str) {
        self.notice(&format!(
            "cannot set queue/io_timeout ({error}): the kernel logs requests that wait for longer than 30 s, and with several lanes the driver drops a lane then"
        ));
    }

    /// Tells the operator what the kernel makes of the device beyond what its export offers.
    fn tell_differences(&self, found: Option<u64>) {
        let Some(found) = found else {
            return self.warn("cannot compare what the kernel sends with what the export offers");
        };
        let name = self.device.name();
        for (_, meaning) in DIFFERENCES.iter().filter(|(bit, _)| found & bit != 0) {
            self.notice(&format!(
                "{name}: the kernel {meaning} (it may keep what an earlier export had set)"
            ));
        }
    }
}
