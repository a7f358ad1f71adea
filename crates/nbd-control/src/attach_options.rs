//! How a device is attached: every option once, for all the places that have it.
//!
//! | place | an option is there as |
//! |---|---|
//! | command lines of nbd-ctl and the holder | `--restart-limit 3`, from the `clap` attributes |
//! | `devices.toml` | the key `restart-limit`, by [`AttachOptions::set`] |
//! | what nbd-ctl hands to the holder | [`AttachOptions::arguments`] |
//! | `state.json`, for the next holder | the key `restart_limit`, from the `serde` attributes |
//!
//! A new option is one field of [`AttachOptions`], and the code that obeys it. Give it
//! `#[serde(default)]`: the state that an older holder has written lacks it.
//!
//! A crate that needs command lines takes the feature `clap`; backends that only read a state do
//! without.

#[cfg(feature = "clap")]
mod command_line;
mod values;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::policy::OnBackendLoss;

/// What holders write down for a restart limit that was not asked for: one that is never reached,
/// also for older holders, which know of no devices without a limit.
const UNLIMITED_RESTARTS: u32 = u32::MAX;

/// How a device is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::Args))]
pub struct AttachOptions {
    /// The interface to the driver
    #[cfg_attr(feature = "clap", arg(long, value_enum, default_value = "ioctl"))]
    pub kernel_api: KernelApi,
    /// Lanes (socket pairs between driver and backend), 1 to 4 [default: number of CPUs, at most 4]
    #[cfg_attr(feature = "clap", arg(long, value_name = "N", hide_default_value = true,
        value_parser = clap::value_parser!(u32).range(1..=4),
        default_value_t = values::default_lanes()))]
    #[serde(deserialize_with = "lanes")]
    pub lanes: u32,
    /// When to start a lost backend again
    #[cfg_attr(feature = "clap", arg(long, value_enum, default_value = "on-failure"))]
    pub restart: RestartWhen,
    /// Stop starting backends after N failures in a row without an answered request [default: never]
    #[cfg_attr(feature = "clap", arg(long, value_name = "N"))]
    #[serde(with = "restart_limit")]
    pub restart_limit: Option<u32>,
    /// Answer a request with EIO after it has crashed N backends, 2 or more; 0: never
    #[cfg_attr(feature = "clap", arg(long, value_name = "N", default_value_t = 3,
        value_parser = values::poison_limit))]
    #[serde(deserialize_with = "poison_limit")]
    pub poison_limit: u32,
    /// Requests while there is no backend: hold (they wait), fail:SECONDS (they get EIO after the
    /// backend has been gone for SECONDS), or fail (after 30 s)
    #[cfg_attr(feature = "clap", arg(long, value_name = "WHAT", default_value = "hold"))]
    pub on_backend_loss: OnBackendLoss,
    /// Keep a second backend started. The command lines have different words for it.
    #[cfg_attr(feature = "clap", arg(skip))]
    pub warm_spare: bool,
    /// Survive systemd's last kill at shutdown: for a device with the root filesystem
    #[cfg_attr(feature = "clap", arg(long))]
    #[serde(default)]
    pub survive_shutdown: bool,
    /// The user that backends run as
    #[cfg_attr(feature = "clap", arg(long, value_name = "USER"))]
    pub user: Option<String>,
    /// Confine backends: own namespaces, no privileges, filtered system calls; with local, the
    /// default, no network. Needs --user
    #[cfg_attr(feature = "clap", arg(long, value_enum, value_name = "KIND", num_args = 0..=1,
        require_equals = true, default_missing_value = "local"))]
    #[serde(default)]
    pub sandbox: Option<Sandbox>,
    /// Allow members of this group to use list, status, why, trace and metrics [default: root only]
    #[cfg_attr(feature = "clap", arg(long, value_name = "GROUP"))]
    #[serde(default)]
    pub group: Option<String>,
    /// Seconds that an attach may take [default: 30; no limit with --external]
    #[cfg_attr(feature = "clap", arg(long, value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(1..)))]
    #[serde(default, deserialize_with = "ready_timeout")]
    pub ready_timeout: Option<u32>,
}

impl AttachOptions {
    /// Changes the option with the name of a field, like `restart_limit`.
    ///
    /// # Errors
    ///
    /// The option cannot have this value. The options are as they were.
    pub fn set(&mut self, field: &str, value: Value) -> Result<(), serde_json::Error> {
        let mut fields = self.fields();
        fields.insert(field.into(), value);
        *self = serde_json::from_value(Value::Object(fields))?;
        Ok(())
    }

    /// What no option can tell alone.
    ///
    /// # Errors
    ///
    /// Some of the options do not go together.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.sandbox.is_some() && self.user.is_none() {
            return Err("--sandbox needs --user: root's files need no privileges to be reached");
        }
        Ok(())
    }

    fn fields(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            other => unreachable!("options are an object and not {other:?}"),
        }
    }
}

/// An enum whose values have names, the same wherever they are written and read.
macro_rules! named {
    ($(#[$about:meta])* $enum:ident { $($(#[$doc:meta])* $variant:ident = $name:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        #[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
        pub enum $enum {
            $($(#[$doc])* #[cfg_attr(feature = "clap", value(name = $name))] $variant,)+
        }

        impl $enum {
            /// Its name, like on a command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }

        impl TryFrom<String> for $enum {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                match text.as_str() {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(format!("`{text}` is none of {}", [$($name),+].join(", "))),
                }
            }
        }

        impl From<$enum> for String {
            fn from(value: $enum) -> Self {
                value.name().into()
            }
        }
    };
}

named! {
    /// How the driver is told to set up a device.
    KernelApi {
        /// The older interface, which works everywhere: a process sits in the NBD_DO_IT ioctl.
        Ioctl = "ioctl",
        /// The newer interface: generic netlink, and nothing that a signal could end.
        Netlink = "netlink",
    }
}

named! {
    /// When a lost backend is started again.
    RestartWhen {
        /// Unless it ended by itself with exit status 0.
        OnFailure = "on-failure",
        /// However it ended.
        Always = "always",
        /// Not at all: wait for one to join, or for `nbd-ctl restart`.
        Never = "never",
    }
}

named! {
    /// How much a backend is confined.
    Sandbox {
        /// Without a network.
        Local = "local",
        /// With the machine's network, for backends in front of other servers.
        Network = "network",
    }
}

/// A limit that was not asked for is a number in `state.json`.
mod restart_limit {
    use super::{Deserialize, Deserializer, Serializer, UNLIMITED_RESTARTS};

    pub(super) fn serialize<S: Serializer>(limit: &Option<u32>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(limit.unwrap_or(UNLIMITED_RESTARTS))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
        let limit = u32::deserialize(from)?;
        Ok(Some(limit).filter(|limit| *limit != UNLIMITED_RESTARTS))
    }
}

fn lanes<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    match u32::deserialize(from)? {
        lanes @ 1..=4 => Ok(lanes),
        _ => Err(Error::custom("1 to 4 lanes are possible")),
    }
}

fn poison_limit<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    values::check_poison_limit(Some(u32::deserialize(from)?)).map_err(Error::custom)
}

fn ready_timeout<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    match Option::deserialize(from)? {
        Some(0) => Err(Error::custom("must be at least 1 second")),
        seconds => Ok(seconds),
    }
}

#[cfg(all(test, feature = "clap"))]
mod tests;
