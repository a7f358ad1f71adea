//! The devices of this machine by name: `/etc/nbd-ctl/devices.toml`.
//!
//! A table a device, with a key for each option of `attach`. What is wrong is told with line and
//! key, and nothing of a file with a mistake in it is used.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use nbd_control::policy::OnBackendLoss;
use serde::{Deserialize, Deserializer, de};
use thiserror::Error;
use toml::Spanned;

use crate::cli::{AttachArguments, KernelApi, Restart};
use crate::device::Device;

const DEFAULT_FILE: &str = "/etc/nbd-ctl/devices.toml";
/// The environment variable that names another file.
const FILE_VARIABLE: &str = "NBD_CTL_CONFIG";

/// What a file says.
#[derive(Debug)]
pub(crate) struct Config {
    path: PathBuf,
    devices: BTreeMap<String, Entry>,
}

/// A device of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Entry {
    export: Option<String>,
    program: Option<Vec<String>>,
    #[serde(default)]
    external: bool,
    /// Whether `attach --all` attaches it.
    #[serde(default = "yes")]
    auto: bool,
    #[serde(default, deserialize_with = "device")]
    device: Option<Device>,
    #[serde(default, deserialize_with = "choice")]
    kernel_api: Option<KernelApi>,
    #[serde(default, deserialize_with = "lanes")]
    lanes: Option<u32>,
    #[serde(default, deserialize_with = "choice")]
    restart: Option<Restart>,
    restart_limit: Option<u32>,
    #[serde(default, deserialize_with = "poison_limit")]
    poison_limit: Option<u32>,
    #[serde(default, deserialize_with = "on_backend_loss")]
    on_backend_loss: Option<OnBackendLoss>,
    #[serde(default = "yes")]
    spare: bool,
    user: Option<String>,
    #[serde(default, deserialize_with = "sandbox")]
    sandbox: Option<String>,
    group: Option<String>,
    #[serde(default, deserialize_with = "seconds")]
    ready_timeout: Option<u32>,
    #[serde(default)]
    survive_shutdown: bool,
}

/// Why a file is of no use.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    #[error(
        "{}: there is no such file: make one, with a table for each device as nbd-ctl-devices(5) tells, \
         or name another by `check-config FILE`, `--config FILE` or {FILE_VARIABLE}",
        path.display()
    )]
    Missing { path: PathBuf },
    #[error("{}: nbd-ctl-devices(5) says what belongs into it", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}:{line}: {key}: {cause}", path.display())]
    Wrong { path: PathBuf, line: usize, key: String, cause: String },
    #[error("{}: no device {name}{}", path.display(), known(names))]
    Unknown { path: PathBuf, name: String, names: Vec<String> },
}

/// The file that is meant if none is named on the command line.
pub(crate) fn default_file() -> PathBuf {
    env::var_os(FILE_VARIABLE).map_or_else(|| DEFAULT_FILE.into(), PathBuf::from)
}

/// Whether this names a device of the file, and not what to serve: a name has no colon.
pub(crate) fn is_name(text: &str) -> bool {
    let mut letters = text.chars();
    letters.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && letters.all(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(letter))
}

impl Config {
    /// Reads a file, and checks all of it.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path);
        let text = text.map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => ConfigError::Missing { path: path.into() },
            _ => ConfigError::Read { path: path.into(), source },
        })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let wrong = |offset: usize, cause: String| {
            let (line, key) = place(text, offset);
            ConfigError::Wrong { path: path.into(), line, key, cause }
        };
        let entries: BTreeMap<String, Spanned<Entry>> = toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            wrong(offset, error.message().replace('\n', ", "))
        })?;
        let mut devices = BTreeMap::new();
        let mut owners: BTreeMap<Device, String> = BTreeMap::new();
        for (name, entry) in entries {
            let offset = entry.span().start;
            let entry = entry.into_inner();
            if let Some(cause) = entry.trouble(&name) {
                return Err(wrong(offset, cause));
            }
            if let Some(device) = entry.device
                && let Some(other) = owners.insert(device, name.clone())
            {
                return Err(wrong(offset, format!("{device} belongs to {other} already")));
            }
            devices.insert(name, entry);
        }
        Ok(Self { path: path.into(), devices })
    }

    /// The options of a device, as if they had been typed.
    pub(crate) fn device(&self, name: &str) -> Result<AttachArguments, ConfigError> {
        match self.devices.get(name) {
            Some(entry) => Ok(entry.arguments(name)),
            None => Err(ConfigError::Unknown {
                path: self.path.clone(),
                name: name.into(),
                names: self.devices.keys().cloned().collect(),
            }),
        }
    }

    /// The devices that `attach --all` means.
    pub(crate) fn automatic(&self) -> impl Iterator<Item = &str> {
        let wanted = self.devices.iter().filter(|(_, entry)| entry.auto);
        wanted.map(|(name, _)| name.as_str())
    }

    /// Whose device this shall be.
    pub(crate) fn owner_of(&self, device: Device) -> Option<&str> {
        let mut devices = self.devices.iter();
        devices.find(|(_, entry)| entry.device == Some(device)).map(|(name, _)| name.as_str())
    }

    /// All devices.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.devices.keys().map(String::as_str)
    }
}

impl Entry {
    /// What is wrong with it as a whole.
    fn trouble(&self, name: &str) -> Option<String> {
        if !is_name(name) {
            return Some("a name has letters, digits and -_. only".into());
        }
        if Device::literal(name).is_some() {
            return Some("a device's own name; it belongs into the key `device`".into());
        }
        let program = self.program.as_ref();
        if program.is_some_and(Vec::is_empty) {
            return Some("program: no program in it".into());
        }
        let given = [self.export.is_some(), program.is_some(), self.external];
        match given.into_iter().filter(|given| *given).count() {
            1 => None,
            0 => Some("one of the keys export, program or external is needed".into()),
            _ => Some("only one of the keys export, program and external can be had".into()),
        }
    }

    fn arguments(&self, name: &str) -> AttachArguments {
        AttachArguments {
            spec: self.export.clone(),
            program: self.program.clone().unwrap_or_default(),
            external: self.external,
            device: self.device.map(|device| device.to_string()),
            kernel_api: self.kernel_api,
            lanes: self.lanes,
            restart: self.restart,
            restart_limit: self.restart_limit,
            poison_limit: self.poison_limit,
            on_backend_loss: self.on_backend_loss,
            no_spare: !self.spare,
            user: self.user.clone(),
            sandbox: self.sandbox.clone(),
            group: self.group.clone(),
            ready_timeout: self.ready_timeout,
            survive_shutdown: self.survive_shutdown,
            name: Some(name.into()),
            all: false,
            foreground: false,
            config: None,
        }
    }
}

/// Line, and device and key, of what is at an offset.
fn place(text: &str, offset: usize) -> (usize, String) {
    let before = &text[..offset.min(text.len())];
    let line = before.matches('\n').count();
    let header = |line: &&str| line.trim_start().starts_with('[');
    let device = text.lines().take(line + 1).filter(header).last().unwrap_or_default();
    let device = device.split(']').next().unwrap_or_default().trim_start_matches([' ', '[']);
    let here = text.lines().nth(line).unwrap_or_default();
    let key = here.split_once('=').map(|(key, _)| key.trim()).filter(|_| !header(&here));
    let words = [Some(device.trim()), key].into_iter().flatten().filter(|word| !word.is_empty());
    (line + 1, words.collect::<Vec<_>>().join("."))
}

fn known(names: &[String]) -> String {
    match names {
        [] => "; it has none".into(),
        names => format!("; it has {}", names.join(", ")),
    }
}

fn yes() -> bool {
    true
}

fn choice<'de, T: ValueEnum, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(from)?;
    T::from_str(&text, false).map(Some).map_err(|_| {
        let values = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let names: Vec<_> = values.map(|value| value.get_name().to_owned()).collect();
        de::Error::custom(format!("`{text}` is none of {}", names.join(", ")))
    })
}

fn on_backend_loss<'de, D: Deserializer<'de>>(from: D) -> Result<Option<OnBackendLoss>, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map(Some).map_err(de::Error::custom)
}

fn sandbox<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(from)?;
    match ["local", "network"].contains(&text.as_str()) {
        true => Ok(Some(text)),
        false => Err(de::Error::custom("use local or network")),
    }
}

fn device<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Device>, D::Error> {
    let text = String::deserialize(from)?;
    match Device::literal(&text) {
        Some(device) => Ok(Some(device)),
        None => Err(de::Error::custom(format!("`{text}` is no NBD device, like nbd0"))),
    }
}

fn lanes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    match u32::deserialize(from)? {
        lanes @ 1..=4 => Ok(Some(lanes)),
        _ => Err(de::Error::custom("1 to 4 lanes are possible")),
    }
}

fn poison_limit<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    match u32::deserialize(from)? {
        1 => Err(de::Error::custom("use 0 for never, or a number from 2 on")),
        limit => Ok(Some(limit)),
    }
}

fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    match u32::deserialize(from)? {
        0 => Err(de::Error::custom("must be at least 1 second")),
        seconds => Ok(Some(seconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("f.toml"), text)
    }

    #[test]
    fn every_key_of_attach_can_be_given() {
        let config = parse(
            "[root]\nexport = \"file:/srv/root.img\"\ndevice = \"nbd3\"\nlanes = 2\n\
             kernel-api = \"netlink\"\nrestart = \"always\"\nrestart-limit = 4\n\
             poison-limit = 0\nspare = false\nuser = \"nobody\"\nready-timeout = 7\n\
             survive-shutdown = true\nauto = false\n[own]\nprogram = [\"./x\", \"y\"]\n",
        );
        let config = config.unwrap();
        let root = config.device("root").unwrap();
        assert_eq!(root.spec.as_deref(), Some("file:/srv/root.img"));
        assert_eq!((root.device.as_deref(), root.lanes), (Some("nbd3"), Some(2)));
        assert_eq!(root.kernel_api, Some(KernelApi::Netlink));
        assert_eq!((root.no_spare, root.survive_shutdown), (true, true));
        assert_eq!(root.name.as_deref(), Some("root"));
        assert_eq!(config.automatic().collect::<Vec<_>>(), ["own"]);
        let error = config.device("rot").unwrap_err().to_string();
        assert_eq!(error, "f.toml: no device rot; it has own, root");
    }

    #[test]
    fn a_mistake_is_told_with_line_and_key() {
        for (text, line, says) in [
            ("[a]\nexport = \"mem:1M\"\nsise = 3\n", 3, "a.sise: unknown field `sise`, expected"),
            ("[a]\nexport = 3\n", 2, "a.export: invalid type: integer `3`, expected a string"),
            ("[a]\nexport = \"mem:1M\"\nlanes = 9\n", 3, "a.lanes: 1 to 4 lanes are possible"),
            (
                "[a]\nexport = \"mem:1M\"\nkernel-api = \"x\"\n",
                3,
                "a.kernel-api: `x` is none of ioctl, netlink",
            ),
            ("[a]\ndevice = \"sda\"\n", 2, "a.device: `sda` is no NBD device"),
            ("\n[a]\nlanes = 1\n", 2, "a: one of the keys export, program or external"),
            ("[a]\nexport = \"m:\"\nexternal = true\n", 1, "a: only one of the keys export,"),
            ("[nbd0]\nexternal = true\n", 1, "nbd0: a device's own name"),
            ("[\"a/b\"]\nexternal = true\n", 1, "\"a/b\": a name has letters"),
            ("[a]\nexport = mem:1M\n", 2, "a.export: "),
            (
                "[a]\nexternal = true\ndevice = \"nbd1\"\n[b]\nexternal = true\ndevice = \"1\"\n",
                4,
                "b: nbd1 belongs to a already",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            let start = format!("f.toml:{line}: {says}");
            assert!(error.starts_with(&start), "{error}\n{start}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_told_with_the_way_out() {
        let error = Config::read(Path::new("/nonexistent/f.toml")).unwrap_err().to_string();
        for words in
            ["/nonexistent/f.toml: there is no such file", "nbd-ctl-devices(5)", "--config"]
        {
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_name_is_told_from_an_export() {
        for name in ["root", "0a", "a-b_c.d"] {
            assert!(is_name(name), "{name}");
        }
        for other in ["file:a", "./a", "a/b", "", "-a", "mem:1G"] {
            assert!(!is_name(other), "{other}");
        }
    }
}
