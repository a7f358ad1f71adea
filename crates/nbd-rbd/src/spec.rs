//! An image and how to reach it, as it is written: `[CLUSTER/]POOL[/NAMESPACE]/IMAGE[@SNAPSHOT][,OPTION]...`
//!
//! Three parts are pool, namespace and image, as for rbd(8). A cluster needs all four; its namespace may be
//! empty. A comma that belongs to a name is written twice.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use nbd_control::comma_list::{escape, split};
use thiserror::Error;

use crate::nearest::nearest;

const OPTIONS: [&str; 6] = ["conf", "user", "keyring", "ro", "take-over", "unlocked"];

/// An image of a Ceph cluster, and how to reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageSpec {
    /// The name of the cluster, which finds its configuration: `ceph` if there is none.
    pub cluster: Option<String>,
    /// The pool.
    pub pool: String,
    /// The namespace in the pool; empty for the one without a name.
    pub namespace: String,
    /// The image.
    pub image: String,
    /// A snapshot of it, which is read only.
    pub snapshot: Option<String>,
    /// The configuration file.
    pub conf: Option<PathBuf>,
    /// The user, without `client.`: `admin` if there is none.
    pub user: Option<String>,
    /// The file with the user's key.
    pub keyring: Option<PathBuf>,
    /// Never write.
    pub read_only: bool,
    /// Take the image from a client that uses it, at attach.
    pub take_over: bool,
    /// Write although nothing keeps other clients from writing.
    pub unlocked: bool,
}

/// Why a text names no image.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ImageSpecError {
    /// There is only one part.
    #[error("the pool is missing: write rbd:POOL/IMAGE, like rbd:rbd/{0}")]
    NoPool(String),
    /// There are more than four parts, or empty ones.
    #[error(
        "`{0}` names no image: write rbd:POOL/IMAGE, rbd:POOL/NAMESPACE/IMAGE or \
         rbd:CLUSTER/POOL/NAMESPACE/IMAGE, where only NAMESPACE may be empty"
    )]
    Parts(String),
    /// Nothing follows the `@`.
    #[error("the snapshot is missing: write rbd:POOL/IMAGE@SNAPSHOT, or leave the @ out")]
    NoSnapshot,
    /// An option that does not exist.
    #[error("unknown option `{option}`; {}", options(*.similar))]
    UnknownOption {
        /// What was written.
        option: String,
        /// What may have been meant.
        similar: Option<&'static str>,
    },
    /// An option comes twice.
    #[error("the option `{0}` is given twice")]
    Repeated(String),
    /// An option lacks its value.
    #[error("the option `{0}` needs a value: write {0}=…")]
    NoValue(&'static str),
    /// An option has a value that takes none.
    #[error("the option `{0}` takes no value: write just `{0}`")]
    NeedlessValue(&'static str),
    /// The user has the type in front.
    #[error("`user={}`: leave `client.` out, and write user={}", .0, .0.trim_start_matches("client."))]
    ClientPrefix(String),
    /// Options contradict each other.
    #[error("{0}, which is only read, needs no `{1}`: leave it out")]
    NeedlessLock(&'static str, &'static str),
    /// C strings cannot have it.
    #[error("a name contains a zero byte")]
    ZeroByte,
}

fn options(similar: Option<&str>) -> String {
    match similar {
        Some(option) => format!("did you mean `{option}`?"),
        None => {
            "there are conf=PATH, user=NAME, keyring=PATH, ro, take-over and unlocked; a comma \
                 in a name is written twice"
                .into()
        }
    }
}

impl ImageSpec {
    /// Whether nothing is written.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only || self.snapshot.is_some()
    }

    /// The image as rbd(8) takes it.
    #[must_use]
    pub fn image_name(&self) -> String {
        let namespace = Some(&self.namespace).filter(|namespace| !namespace.is_empty());
        let snapshot = self.snapshot.as_ref().map(|snapshot| format!("@{snapshot}"));
        let parts = [Some(&self.pool), namespace, Some(&self.image)];
        let parts: Vec<_> = parts.into_iter().flatten().map(String::as_str).collect();
        parts.join("/") + &snapshot.unwrap_or_default()
    }

    /// Changes the paths in it.
    #[must_use]
    pub fn map_paths(mut self, change: &mut dyn FnMut(PathBuf) -> PathBuf) -> Self {
        self.conf = self.conf.map(&mut *change);
        self.keyring = self.keyring.map(&mut *change);
        self
    }

    fn set(&mut self, option: &str) -> Result<(), ImageSpecError> {
        let (word, value) = match option.split_once('=') {
            Some((word, value)) => (word, Some(value)),
            None => (option, None),
        };
        let Some(name) = OPTIONS.into_iter().find(|known| *known == word) else {
            let similar = nearest(word, OPTIONS);
            return Err(ImageSpecError::UnknownOption { option: word.into(), similar });
        };
        let value = match (name, value) {
            ("conf" | "user" | "keyring", None | Some("")) => {
                return Err(ImageSpecError::NoValue(name));
            }
            ("conf" | "user" | "keyring", Some(value)) => value,
            (_, Some(_)) => return Err(ImageSpecError::NeedlessValue(name)),
            (_, None) => "",
        };
        let is_repeated = match name {
            "conf" => self.conf.replace(value.into()).is_some(),
            "user" if value.starts_with("client.") => {
                return Err(ImageSpecError::ClientPrefix(value.into()));
            }
            "user" => self.user.replace(value.into()).is_some(),
            "keyring" => self.keyring.replace(value.into()).is_some(),
            "ro" => std::mem::replace(&mut self.read_only, true),
            "take-over" => std::mem::replace(&mut self.take_over, true),
            _ => std::mem::replace(&mut self.unlocked, true),
        };
        if is_repeated { Err(ImageSpecError::Repeated(name.into())) } else { Ok(()) }
    }

    fn check(self) -> Result<Self, ImageSpecError> {
        let needless = [(self.take_over, "take-over"), (self.unlocked, "unlocked")];
        let what = if self.snapshot.is_some() { "a snapshot" } else { "an image with `ro`" };
        match needless.into_iter().find(|(given, _)| *given && self.is_read_only()) {
            Some((_, option)) => Err(ImageSpecError::NeedlessLock(what, option)),
            None => Ok(self),
        }
    }
}

impl FromStr for ImageSpec {
    type Err = ImageSpecError;

    fn from_str(text: &str) -> Result<Self, ImageSpecError> {
        if text.contains('\0') {
            return Err(ImageSpecError::ZeroByte);
        }
        let mut words = split(text).into_iter();
        let name = words.next().unwrap_or_default();
        let (place, snapshot) = match name.split_once('@') {
            Some((_, "")) => return Err(ImageSpecError::NoSnapshot),
            Some((place, snapshot)) => (place, Some(snapshot.to_owned())),
            None => (&*name, None),
        };
        let parts: Vec<_> = place.split('/').collect();
        let [cluster, pool, namespace, image] = match parts[..] {
            [image] if !image.is_empty() => return Err(ImageSpecError::NoPool(name)),
            [pool, image] => [None, Some(pool), None, Some(image)],
            [pool, namespace, image] => [None, Some(pool), Some(namespace), Some(image)],
            [cluster, pool, namespace, image] => {
                [Some(cluster), Some(pool), Some(namespace), Some(image)]
            }
            _ => return Err(ImageSpecError::Parts(name)),
        };
        if [cluster, pool, image].contains(&Some("")) {
            return Err(ImageSpecError::Parts(name));
        }
        let text = |part: Option<&str>| part.unwrap_or_default().to_owned();
        let mut spec = Self {
            cluster: cluster.map(Into::into),
            pool: text(pool),
            namespace: text(namespace),
            image: text(image),
            snapshot,
            ..Self::default()
        };
        // A comma at the end separates nothing.
        words.filter(|word| !word.is_empty()).try_for_each(|word| spec.set(&word))?;
        spec.check()
    }
}

/// The canonical form.
impl fmt::Display for ImageSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("rbd:")?;
        if let Some(cluster) = &self.cluster {
            write!(f, "{}/{}/", escape(cluster), escape(&self.pool))?;
            write!(f, "{}/{}", escape(&self.namespace), escape(&self.image))?;
            if let Some(snapshot) = &self.snapshot {
                write!(f, "@{}", escape(snapshot))?;
            }
        } else {
            f.write_str(&escape(&self.image_name()))?;
        }
        if let Some(conf) = &self.conf {
            write!(f, ",conf={}", escape(&conf.to_string_lossy()))?;
        }
        if let Some(user) = &self.user {
            write!(f, ",user={}", escape(user))?;
        }
        if let Some(keyring) = &self.keyring {
            write!(f, ",keyring={}", escape(&keyring.to_string_lossy()))?;
        }
        let flags =
            [(self.read_only, "ro"), (self.take_over, "take-over"), (self.unlocked, "unlocked")];
        flags.iter().filter(|(given, _)| *given).try_for_each(|(_, word)| write!(f, ",{word}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ImageSpec {
        text.parse().unwrap()
    }

    fn wrong(text: &str) -> ImageSpecError {
        text.parse::<ImageSpec>().unwrap_err()
    }

    #[test]
    fn parts_are_read_as_rbd_reads_them() {
        let two = parse("rbd/disk");
        assert_eq!((&*two.pool, &*two.namespace, &*two.image), ("rbd", "", "disk"));
        let three = parse("rbd/team/disk@monday");
        assert_eq!((&*three.pool, &*three.namespace, &*three.image), ("rbd", "team", "disk"));
        assert_eq!(three.snapshot.as_deref(), Some("monday"));
        assert!(three.is_read_only() && !two.is_read_only());
        let four = parse("far/rbd//disk");
        assert_eq!((four.cluster.as_deref(), &*four.namespace), (Some("far"), ""));
        assert_eq!(four.image_name(), "rbd/disk");
        assert_eq!(three.image_name(), "rbd/team/disk@monday");
    }

    #[test]
    fn what_is_written_is_read_again() {
        for text in [
            "rbd/disk",
            "rbd/team/disk@monday",
            "far/rbd//disk",
            "far/rbd/team/disk@a",
            "rbd/a,,b,conf=/etc/a,,b.conf,user=me,keyring=/k,take-over,unlocked",
            "rbd/disk,ro",
        ] {
            let spec = parse(text);
            assert_eq!(spec.to_string(), format!("rbd:{text}"));
            assert_eq!(parse(&spec.to_string()["rbd:".len()..]), spec);
        }
        assert_eq!(parse("rbd/disk,"), parse("rbd/disk"));
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(wrong("disk"), ImageSpecError::NoPool("disk".into()));
        for text in ["", "/disk", "rbd/", "a/b/c/d/e", "/rbd//disk", "c//n/disk"] {
            assert_eq!(wrong(text), ImageSpecError::Parts(text.into()), "{text}");
        }
        assert_eq!(wrong("rbd/disk@"), ImageSpecError::NoSnapshot);
        let similar = wrong("rbd/disk,keyrin=/k").to_string();
        assert!(similar.contains("did you mean `keyring`?"), "{similar}");
        assert!(wrong("rbd/disk,what").to_string().contains("conf=PATH"));
        assert_eq!(wrong("rbd/disk,ro,ro"), ImageSpecError::Repeated("ro".into()));
        assert_eq!(wrong("rbd/disk,conf"), ImageSpecError::NoValue("conf"));
        assert_eq!(wrong("rbd/disk,user="), ImageSpecError::NoValue("user"));
        assert_eq!(wrong("rbd/disk,ro=1"), ImageSpecError::NeedlessValue("ro"));
        assert!(wrong("rbd/disk,user=client.a").to_string().contains("user=a"));
        assert!(wrong("rbd/disk@s,unlocked").to_string().starts_with("a snapshot"));
        assert!(wrong("rbd/disk,ro,take-over").to_string().contains("`take-over`"));
        assert_eq!(wrong("rbd/di\0sk"), ImageSpecError::ZeroByte);
    }
}
