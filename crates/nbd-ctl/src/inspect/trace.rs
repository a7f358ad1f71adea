//! `nbd-ctl trace`: the flight recorder.

use std::time::Duration;

use clap::ValueEnum;
use nbd_control::control::{Request, Response};
use nbd_control::text::printable;
use nbd_control::trace::Executed;
use serde::Serialize;

use crate::cli::{Kind, TraceArguments};
use crate::context::{Context, eprint, print};
use crate::device::Device;
use crate::error::Error;
use crate::holder::client::HolderClient;
use crate::text::wall_clock;

/// How long the holder may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often to look for more.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Shows what was executed, and with `--follow` what is.
pub(crate) fn trace(
    context: &Context,
    device: Device,
    wanted: &TraceArguments,
) -> Result<(), Error> {
    let mut holder = HolderClient::connect(context, device)?;
    let mut from = Vec::new();
    let mut last = wanted.last;
    let mut recording = None;
    let form = Form::of(wanted);
    loop {
        let mut found = match fetch(&mut holder, device, &mut from, &mut recording) {
            Ok(found) => found,
            // The device is gone, and with it what was recorded.
            Err(Error::Ended { .. }) if wanted.follow && !from.is_empty() => return Ok(()),
            Err(error) => return Err(error),
        };
        found.retain(|executed| is_wanted(executed, wanted));
        found.sort_by_key(|executed| executed.finished_at);
        let skipped = last.take().map_or(0, |last| found.len().saturating_sub(last));
        let lines: Result<String, Error> =
            found[skipped..].iter().map(|executed| line(executed, form)).collect();
        print(&lines?)?;
        if !wanted.follow || !context.sleep(POLL_INTERVAL) {
            break;
        }
    }
    if let Some(path) = recording {
        eprint(&format!("requests are written down with their data: nbd-ctl replay {path}"));
    }
    Ok(())
}

/// All that is new.
pub(crate) fn fetch(
    holder: &mut HolderClient<'_>,
    device: Device,
    from: &mut Vec<u64>,
    recording: &mut Option<String>,
) -> Result<Vec<Executed>, Error> {
    let mut found = Vec::new();
    loop {
        holder.send(&Request::Trace { from: from.clone() })?;
        let Response::Trace(trace) = holder.answer(Some(ANSWER_TIMEOUT), "")? else {
            return Err(Error::Confused { device });
        };
        found.extend(trace.requests);
        let is_all = trace.next == *from;
        from.clone_from(&trace.next);
        *recording = trace.recording;
        if is_all {
            return Ok(found);
        }
    }
}

fn is_wanted(executed: &Executed, wanted: &TraceArguments) -> bool {
    // Two words of a command are one on the command line.
    let command = executed.command.replace(' ', "-");
    let name = |kind: &Kind| kind.to_possible_value().is_some_and(|it| it.matches(&command, true));
    let touches = wanted.range.is_none_or(|range| {
        let end = executed.offset.saturating_add(executed.length.into());
        executed.offset < range.offset.saturating_add(range.length) && range.offset < end
    });
    (wanted.kind.is_empty() || wanted.kind.iter().any(name))
        && touches
        && wanted.slower_than.is_none_or(|limit| took(executed) > limit)
        && (!wanted.errors || executed.error != 0)
}

/// Milliseconds from being read to the end.
fn took(executed: &Executed) -> f64 {
    executed.finished_at.saturating_sub(executed.received_at) as f64 / 1e6
}

/// As JSON: what the holder tells, and what it means.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    executed: &'a Executed,
    took_ms: f64,
    /// The date of its end, in UTC: only if it is asked for, as it depends on when that is by a microsecond.
    #[serde(skip_serializing_if = "Option::is_none")]
    finished: Option<String>,
}

/// How requests are shown.
#[derive(Clone, Copy, Debug)]
struct Form {
    json: bool,
    wall_clock: bool,
    /// The date of the clock's zero, in nanoseconds.
    epoch: i128,
}

impl Form {
    fn of(wanted: &TraceArguments) -> Self {
        Self {
            json: wanted.json,
            wall_clock: wanted.wall_clock,
            epoch: wall_clock::monotonic_epoch(),
        }
    }

    fn date(self, at: u64) -> i128 {
        self.epoch + i128::from(at)
    }
}

fn line(executed: &Executed, form: Form) -> Result<String, Error> {
    if form.json {
        let date = || wall_clock::timestamp(form.date(executed.finished_at));
        let finished = form.wall_clock.then(date);
        let told = Told { executed, took_ms: took(executed), finished };
        let text = serde_json::to_string(&told).map_err(|error| Error::Output(error.into()))?;
        return Ok(format!("{text}\n"));
    }
    let Executed { lane, offset, length, attempts, backend, .. } = executed;
    let (seconds, rest) =
        (executed.finished_at / 1_000_000_000, executed.finished_at % 1_000_000_000 / 1000);
    let what = match length {
        0 => String::new(),
        length => format!("{offset}+{length}"),
    };
    let result = match executed.error {
        0 => "ok".into(),
        error => nix::errno::Errno::from_raw(error.cast_signed()).to_string(),
    };
    let again = if *attempts > 1 { format!(", attempt {attempts}") } else { String::new() };
    let when = match form.wall_clock {
        true => wall_clock::date(form.date(executed.finished_at)),
        false => format!("[{seconds:5}.{rest:06}]"),
    };
    Ok(format!(
        "{when} {:<12} {what:<22} {:>10.3} ms  {result}  (lane {lane}, backend {backend}{again})\n",
        printable(&executed.command, &[]),
        took(executed),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn executed() -> Executed {
        Executed {
            lane: 1,
            number: 0,
            command: "write zeroes".into(),
            flags: 1,
            offset: 4096,
            length: 512,
            cookie: 7,
            received_at: 2_000_000_000,
            started_at: 2_100_000_000,
            finished_at: 2_250_000_000,
            attempts: 2,
            error: 5,
            backend: 3,
        }
    }

    fn wanted(words: &[&str]) -> TraceArguments {
        use clap::Parser;
        let all = ["nbd-ctl", "trace", "nbd0"].iter().chain(words);
        let arguments = crate::cli::Arguments::parse_from(all);
        let crate::cli::Command::Trace(wanted) = arguments.command else { panic!("no trace") };
        wanted
    }

    #[test]
    fn a_line_tells_when_what_how_long_and_how_it_ended() {
        let form = |json, wall_clock| Form { json, wall_clock, epoch: 1_000_000_000_000_000_000 };
        let text = line(&executed(), form(false, false)).unwrap();
        for word in ["[    2.250000]", "write zeroes", "4096+512", "250.000 ms", "EIO", "attempt 2"]
        {
            assert!(text.contains(word), "{word}: {text}");
        }
        let value: serde_json::Value =
            serde_json::from_str(&line(&executed(), form(true, false)).unwrap()).unwrap();
        assert_eq!((&value["took_ms"], &value["error"]), (&250.0.into(), &5.into()));
        assert_eq!(value.get("finished"), None);
        let text = line(&executed(), form(true, true)).unwrap();
        assert!(text.contains("\"finished\":\"2001-09-09T01:46:42.250000Z\""), "{text}");
        let text = line(&executed(), form(false, true)).unwrap();
        assert!(text.starts_with("2001-09-09 01:46:42.250000 write zeroes "), "{text}");
    }

    #[test]
    fn filters_are_all_to_be_met() {
        let is = |words: &[&str]| is_wanted(&executed(), &wanted(words));
        for met in [
            &[][..],
            &["--kind", "read,write-zeroes"],
            &["--range", "0+4097"],
            &["--range", "4607+1"],
            &["--slower-than", "249.9"],
            &["--errors", "--kind", "write-zeroes", "--range", "4096+1"],
        ] {
            assert!(is(met), "{met:?}");
        }
        for missed in [
            &["--kind", "read"][..],
            &["--range", "0+4096"],
            &["--range", "4608+1"],
            &["--slower-than", "250"],
            &["--errors", "--kind", "write"],
        ] {
            assert!(!is(missed), "{missed:?}");
        }
    }

    #[test]
    fn a_scribbled_record_is_shown_and_no_more() {
        let wild = Executed {
            command: "\x1b[2J".into(),
            offset: u64::MAX,
            length: u32::MAX,
            received_at: u64::MAX,
            finished_at: u64::MAX,
            error: u32::MAX,
            ..executed()
        };
        for wall_clock in [true, false] {
            let form = Form { json: false, wall_clock, epoch: wall_clock::monotonic_epoch() };
            assert!(!line(&wild, form).unwrap().contains('\x1b'));
        }
        assert!(!is_wanted(&wild, &wanted(&["--range", "18446744073709551614+9"])));
    }
}
