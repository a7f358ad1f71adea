//! The devices of this machine by name: `/etc/nbd-ctl/devices.toml`.
//!
//! A table a device, with a key for each option of `attach`. What is wrong is told with line and
//! key, and nothing of a file with a mistake in it is used.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use nbd_control::attach_options::AttachOptions;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;
use toml::Spanned;

use crate::cli::AttachArguments;
use crate::device::{Device, is_name};

const DEFAULT_FILE: &str = "/etc/nbd-ctl/devices.toml";
/// The environment variable that names another file.
const FILE_VARIABLE: &str = "NBD_CTL_CONFIG";

/// What a file says.
#[derive(Debug)]
pub(crate) struct Config {
    path: PathBuf,
    devices: BTreeMap<String, DeviceTable>,
}

/// A device of the file.
#[derive(Debug)]
struct DeviceTable {
    /// As if they had been typed.
    arguments: AttachArguments,
    /// Whether `attach --all` attaches it.
    auto: bool,
    device: Option<Device>,
    /// Where its keys are, by line; its header under no key.
    lines: BTreeMap<String, usize>,
}

/// Keys that are no [`AttachOptions`].
const OWN_KEYS: [&str; 6] = ["export", "program", "external", "auto", "device", "spare"];

/// The keys of a device as they stand in the file.
type Table = BTreeMap<Spanned<String>, Spanned<Value>>;

/// Why a file is of no use.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    #[error(
        "{}: no such file: create it (nbd-ctl-devices(5) describes it), or name another by `check-config FILE`, `--config FILE` or {FILE_VARIABLE}",
        path.display()
    )]
    Missing { path: PathBuf },
    #[error("{}: nbd-ctl-devices(5) describes the file", path.display())]
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
        let tables: BTreeMap<String, Spanned<Table>> = toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            wrong(offset, error.message().replace('\n', ", "))
        })?;
        let mut devices = BTreeMap::new();
        let mut owners: BTreeMap<Device, String> = BTreeMap::new();
        for (name, table) in tables {
            let offset = table.span().start;
            let mut entry = DeviceTable::new(&name);
            entry.lines.insert(String::new(), place(text, offset).0);
            for (key, value) in table.into_inner() {
                let offset = key.span().start;
                entry.lines.insert(key.get_ref().clone(), place(text, offset).0);
                let set = entry.set(key.get_ref(), value.into_inner());
                set.map_err(|cause| wrong(offset, cause))?;
            }
            if let Some(cause) = entry.trouble(&name) {
                return Err(wrong(offset, cause));
            }
            if let Some(device) = entry.device
                && let Some(other) = owners.insert(device, name.clone())
            {
                return Err(wrong(
                    offset,
                    format!(
                        "{device} is also the device of {other}: choose another, or leave `device` out"
                    ),
                ));
            }
            devices.insert(name, entry);
        }
        Ok(Self { path: path.into(), devices })
    }

    /// The options of a device, as if they had been typed.
    pub(crate) fn device(&self, name: &str) -> Result<AttachArguments, ConfigError> {
        match self.devices.get(name) {
            Some(entry) => Ok(entry.arguments.clone()),
            None => Err(ConfigError::Unknown {
                path: self.path.clone(),
                name: name.into(),
                names: self.devices.keys().cloned().collect(),
            }),
        }
    }

    /// What is wrong with a key of a device, in the words for what [`read`](Self::read) finds.
    pub(crate) fn mistake(&self, name: &str, key: &str, cause: &str) -> ConfigError {
        let lines = self.devices.get(name).map(|entry| &entry.lines);
        let line = lines.and_then(|lines| lines.get(key).or_else(|| lines.get("")));
        ConfigError::Wrong {
            path: self.path.clone(),
            line: line.copied().unwrap_or_default(),
            key: format!("{name}.{key}"),
            cause: cause.into(),
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

impl DeviceTable {
    fn new(name: &str) -> Self {
        let arguments = AttachArguments {
            spec: None,
            program: Vec::new(),
            all: false,
            config: None,
            foreground: false,
            name: Some(name.into()),
            external: false,
            device: None,
            options: AttachOptions::default(),
            typed_options: false,
            no_spare: false,
        };
        Self { arguments, auto: true, device: None, lines: BTreeMap::new() }
    }

    /// Takes one key of the file.
    fn set(&mut self, key: &str, value: Value) -> Result<(), String> {
        let arguments = &mut self.arguments;
        match key {
            "export" => arguments.spec = Some(read(value)?),
            "program" => {
                arguments.program = read(value)?;
                if arguments.program.is_empty() {
                    return Err("the list is empty: write the program and its arguments".into());
                }
            }
            "external" => arguments.external = read(value)?,
            "auto" => self.auto = read(value)?,
            "device" => {
                let device = device(&read::<String>(value)?)?;
                arguments.device = Some(device.to_string());
                self.device = Some(device);
            }
            "spare" => arguments.no_spare = !read::<bool>(value)?,
            option => {
                let options = AttachOptions::names();
                if !options.iter().any(|name| name == option) {
                    let known = OWN_KEYS.into_iter().chain(options.iter().map(String::as_str));
                    let known: Vec<_> = known.map(|key| format!("`{key}`")).collect();
                    return Err(format!(
                        "unknown field `{key}`, expected one of {}",
                        known.join(", ")
                    ));
                }
                let set = arguments.options.set(&option.replace('-', "_"), value);
                set.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// What is wrong with it as a whole.
    fn trouble(&self, name: &str) -> Option<String> {
        if !is_name(name) {
            return Some("a name has letters, digits and -_. only".into());
        }
        if Device::literal(name).is_some() {
            return Some("the driver has a device of this name: choose another name, and write the device with the key `device`".into());
        }
        let AttachArguments { spec, program, external, .. } = &self.arguments;
        let given = [spec.is_some(), !program.is_empty(), *external];
        match given.into_iter().filter(|given| *given).count() {
            1 => None,
            0 => Some("one of the keys export, program or external is needed".into()),
            _ => Some("write only one of the keys export, program and external".into()),
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

fn read<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn device(text: &str) -> Result<Device, String> {
    Device::literal(text)
        .ok_or_else(|| format!("`{text}` is not an NBD device: write it like nbd0"))
}

#[cfg(test)]
mod tests {
    use nbd_control::attach_options::KernelApi;

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
        let options = &root.options;
        assert_eq!((root.device.as_deref(), options.lanes), (Some("nbd3"), 2));
        assert_eq!(options.kernel_api, KernelApi::Netlink);
        assert_eq!((root.no_spare, options.survive_shutdown), (true, true));
        assert_eq!(root.name.as_deref(), Some("root"));
        assert_eq!(config.automatic().collect::<Vec<_>>(), ["own"]);
        let error = config.device("rot").unwrap_err().to_string();
        assert_eq!(error, "f.toml: no device rot; it has own, root");
    }

    #[test]
    fn every_key_has_a_row_in_the_manual() {
        let manual = include_str!("../../../docs/reference/config.md");
        for key in OWN_KEYS.map(str::to_owned).into_iter().chain(AttachOptions::names()) {
            assert!(manual.contains(&format!("\n| `{key}` | ")), "{key}");
        }
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
            ("[a]\nexternal = true\nwarm-spare = true\n", 3, "a.warm-spare: unknown field"),
            ("[a]\nexternal = true\nsandbox = \"x\"\n", 3, "a.sandbox: `x` is none of local"),
            ("[a]\nexternal = true\npoison-limit = 1\n", 3, "a.poison-limit: use 0 for never"),
            ("[a]\nready-timeout = 0\n", 2, "a.ready-timeout: must be at least 1 second"),
            ("[a]\ndevice = \"sda\"\n", 2, "a.device: `sda` is not an NBD device"),
            ("\n[a]\nlanes = 1\n", 2, "a: one of the keys export, program or external"),
            ("[a]\nexport = \"m:\"\nexternal = true\n", 1, "a: write only one of the keys export,"),
            ("[nbd0]\nexternal = true\n", 1, "nbd0: the driver has a device of this name"),
            ("[\"a/b\"]\nexternal = true\n", 1, "\"a/b\": a name has letters"),
            ("[a]\nexport = mem:1M\n", 2, "a.export: "),
            (
                "[a]\nexternal = true\ndevice = \"nbd1\"\n[b]\nexternal = true\ndevice = \"1\"\n",
                4,
                "b: nbd1 is also the device of a",
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
        for words in ["/nonexistent/f.toml: no such file", "nbd-ctl-devices(5)", "--config"] {
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
