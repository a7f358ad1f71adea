//! What was asked for at attach.

use std::ops::Deref;
use std::time::Duration;

use nbd_control::attach_options::AttachOptions;
use nix::unistd::{Gid, Uid};

use super::program;
use crate::args::KernelApi;

/// What was asked for at attach. Its [`AttachOptions`] are read as if they were fields of it.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// For the next holder, which looks up user and group by itself.
    pub(crate) options: AttachOptions,
    pub(crate) api: KernelApi,
    pub(crate) user: Option<(String, Uid, Gid)>,
    pub(crate) group: Option<(String, Gid)>,
    pub(crate) program: Vec<String>,
    pub(crate) name: Option<String>,
    /// Which events to log, as the command line has it.
    pub(crate) log_level: Option<String>,
    pub(crate) ready_timeout: Option<Duration>,
}

impl Settings {
    /// The options, with nothing but their user and group looked up.
    ///
    /// # Errors
    ///
    /// The options do not go together, or there is no such user or group.
    pub(crate) fn new(options: AttachOptions) -> Result<Self, String> {
        options.check()?;
        let user = options.user.as_ref().map(|name| match program::look_up(name) {
            Ok((uid, gid)) => Ok((name.clone(), uid, gid)),
            Err(error) => Err(format!("--user {name}: {error}")),
        });
        let group = options.group.as_ref().map(|name| match program::look_up_group(name) {
            Ok(gid) => Ok((name.clone(), gid)),
            Err(error) => Err(format!("--group {name}: {error}")),
        });
        Ok(Self {
            api: options.kernel_api,
            user: user.transpose()?,
            group: group.transpose()?,
            options,
            program: Vec::new(),
            name: None,
            log_level: None,
            ready_timeout: None,
        })
    }
}

impl Deref for Settings {
    type Target = AttachOptions;

    fn deref(&self) -> &AttachOptions {
        &self.options
    }
}
