//! The command line, raw and then validated.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use nbd_control::attach_options::AttachOptions;
use nbd_log::Filter;

pub(crate) use nbd_control::attach_options::{KernelApi, RestartWhen, Sandbox};

/// Keeps a kernel NBD device while its backend is started, killed and replaced.
///
/// `nbd-ctl attach` starts it. Run by hand or by a service manager it stays in the foreground,
/// prints the device's path when it is ready, and detaches on SIGTERM.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  nbd-kernel-holder --device nbd0 -- nbd-serve file:disk.img"
)]
pub(crate) struct Args {
    /// Directory with the state of attached devices [default: /run/nbd]
    #[arg(long, value_name = "DIR")]
    pub(crate) runtime_dir: Option<PathBuf>,
    /// The device to use, like nbd0 [default: a free one]
    #[arg(long, value_name = "DEVICE", value_parser = device_index)]
    pub(crate) device: Option<u32>,
    #[command(flatten)]
    pub(crate) options: AttachOptions,
    /// Keep a second backend started, which takes over when the first one is lost
    #[arg(long)]
    pub(crate) warm_spare: bool,
    /// A name for the device, also below /dev/disk/by-nbd
    #[arg(long, value_name = "NAME", value_parser = device_name)]
    pub(crate) name: Option<String>,
    /// Start no backend: wait for one to join
    #[arg(long, conflicts_with = "program")]
    pub(crate) external: bool,
    /// Become the holder of a device whose holder has died
    #[arg(long, value_name = "DEVICE", value_parser = device_index,
          conflicts_with_all = ["program", "external", "device"])]
    pub(crate) adopt: Option<u32>,
    /// Take down what is left of a device that has lost its holder and cannot be adopted
    #[arg(long, value_name = "DEVICE", value_parser = device_index, hide = true,
          conflicts_with_all = ["program", "external", "device", "adopt"])]
    pub(crate) take_down: Option<u32>,
    /// Do so without writing back
    #[arg(long, requires = "take_down", hide = true)]
    pub(crate) force: bool,
    /// Tell the parent about progress on this descriptor, and become a daemon when ready
    #[arg(long, value_name = "FD", hide = true)]
    pub(crate) report_fd: Option<RawFd>,
    /// Go on as the holder that this process was, with what it left under this descriptor
    #[arg(long, value_name = "FD", hide = true)]
    pub(crate) take_over: Option<RawFd>,
    /// Tell whether this program could do that for a device
    #[arg(long, value_name = "DEVICE", value_parser = device_index, hide = true)]
    pub(crate) can_take_over: Option<u32>,
    /// Be the backend that answers every request with EIO
    #[arg(long, hide = true)]
    pub(crate) stand_in: bool,
    /// Lowest level to log: error, warn, info, debug, trace, or off [default: $NBD_LOG, which
    /// backends inherit, else info]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<Filter>,
    /// Log level debug; given twice, trace
    #[arg(short, long, action = clap::ArgAction::Count, conflicts_with = "log_level")]
    pub(crate) verbose: u8,
    /// The backend to start
    #[arg(last = true, required_unless_present_any =
          ["external", "adopt", "stand_in", "take_over", "can_take_over", "take_down"])]
    pub(crate) program: Vec<String>,
}

impl Args {
    /// What the command line says about the log.
    pub(crate) fn filter(&self) -> Option<Filter> {
        self.log_level.clone().or_else(|| Filter::verbose(self.verbose))
    }

    /// How long attaching may take.
    pub(crate) fn ready_timeout(&self) -> Option<Duration> {
        match (self.options.ready_timeout, self.external) {
            (Some(seconds), _) => Some(Duration::from_secs(seconds.into())),
            (None, true) => None,
            (None, false) => Some(Duration::from_secs(30)),
        }
    }
}

/// It becomes a line of a file and the name of a link.
fn device_name(text: &str) -> Result<String, String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) || !text.chars().all(fine) {
        return Err("a name has letters, digits and -_. only".into());
    }
    if device_index(text).is_ok() {
        return Err("a device of the driver is called so; choose another name".into());
    }
    Ok(text.into())
}

/// `nbd0`, `/dev/nbd0` or `0`.
fn device_index(text: &str) -> Result<u32, String> {
    let name = text.strip_prefix("/dev/").unwrap_or(text);
    let number = name.strip_prefix("nbd").unwrap_or(name);
    number.parse().map_err(|_| format!("{text} is not an NBD device (like nbd0)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_three_spellings() {
        for text in ["nbd7", "/dev/nbd7", "7"] {
            assert_eq!(device_index(text), Ok(7));
        }
        for text in ["nbd", "sda", "/dev/sda", "nbd7p1", "-1", ""] {
            assert!(device_index(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_is_one_word() {
        assert!(device_name("a-b_c.d0").is_ok());
        for text in ["", "-a", ".a", "a b", "a\nB=1", "a/b", "a:b", "nbd3", "3"] {
            assert!(device_name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_program_or_a_reason_for_none_is_needed() {
        assert!(Args::try_parse_from(["holder"]).is_err());
        assert!(Args::try_parse_from(["holder", "--external", "--", "x"]).is_err());
        assert!(Args::try_parse_from(["holder", "--lanes", "5", "--external"]).is_err());
        let args = Args::try_parse_from(["holder", "--", "nbd-serve", "mem:1M"]).unwrap();
        assert_eq!(args.program, ["nbd-serve", "mem:1M"]);
        assert_eq!(args.ready_timeout(), Some(Duration::from_secs(30)));
    }
}
