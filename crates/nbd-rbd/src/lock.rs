//! Who may write, decided without a cluster: what a predecessor left, and who has the lock now.
//!
//! Each process is a client of the cluster with an address of its own, which it notes *before* it can write.
//! So a successor knows whom to shut out. The record also tells whether the image was ours all the time: a
//! lock that is not the predecessor's any more means that another client may have written, and then nothing
//! may be replayed.

use std::io;

use thiserror::Error;

use crate::sys::image::Watcher;

/// What is noted for a successor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Record {
    /// Nothing: no process of this device has written.
    #[default]
    Empty,
    /// The client with this address is about to take the lock, and nothing was written by this device. The
    /// one `from` has it until then, if one has, and is shut out already.
    Acquiring {
        /// The address of the next owner.
        address: String,
        /// The address of the last one.
        from: Option<String>,
    },
    /// The same for a device that has written: `from` is one of its own clients.
    Regaining {
        /// The address of the next owner.
        address: String,
        /// The address of the last one.
        from: String,
    },
    /// The client with this address writes.
    Owner(String),
    /// Another client has taken the image away.
    Lost,
}

/// Where the record is kept, beyond the end of this process.
pub trait RecordStore: Send + Sync {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or is none.
    fn load(&self) -> io::Result<Record>;

    /// Writes it. A process that is killed meanwhile leaves either the old or the new one.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    fn save(&self, record: &Record) -> io::Result<()>;
}

impl Record {
    /// As it is stored.
    #[must_use]
    pub fn to_text(&self) -> String {
        match self {
            Self::Empty => String::new(),
            Self::Acquiring { address, from: None } => format!("acquiring {address}"),
            Self::Acquiring { address, from: Some(from) } => format!("acquiring {address} {from}"),
            Self::Regaining { address, from } => format!("regaining {address} {from}"),
            Self::Owner(address) => format!("owner {address}"),
            Self::Lost => "lost".into(),
        }
    }

    /// What is stored; `None` if that is something else.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let words: Vec<_> = text.split(' ').collect();
        match words[..] {
            [""] => Some(Self::Empty),
            ["lost"] => Some(Self::Lost),
            [_, ""] | [_, _, ""] => None,
            ["owner", address] => Some(Self::Owner(address.into())),
            ["acquiring", address] => Some(Self::Acquiring { address: address.into(), from: None }),
            ["acquiring", address, from] => {
                Some(Self::Acquiring { address: address.into(), from: Some(from.into()) })
            }
            ["regaining", address, from] => {
                Some(Self::Regaining { address: address.into(), from: from.into() })
            }
            _ => None,
        }
    }

    /// The client that may have requests under way.
    fn address(&self) -> Option<&str> {
        match self {
            Self::Acquiring { address, .. }
            | Self::Regaining { address, .. }
            | Self::Owner(address) => Some(address),
            Self::Empty | Self::Lost => None,
        }
    }

    /// Whether a lock with this address is one that this device has, or was taking from another.
    fn is_of(&self, owner: &str) -> bool {
        let from = match self {
            Self::Acquiring { from, .. } => from.as_deref(),
            Self::Regaining { from, .. } => Some(&**from),
            _ => None,
        };
        self.address() == Some(owner) || from == Some(owner)
    }

    /// What is noted before the client with this address takes the lock, perhaps from another.
    pub(crate) fn next(self, address: String, from: Option<String>) -> Self {
        match self {
            Self::Owner(last) | Self::Regaining { from: last, .. } => {
                Self::Regaining { address, from: from.unwrap_or(last) }
            }
            Self::Empty | Self::Acquiring { .. } | Self::Lost => Self::Acquiring { address, from },
        }
    }

    /// Whether this device has written, so that a stranger's lock tells that the image was taken away.
    pub(crate) fn has_written(&self) -> bool {
        matches!(self, Self::Owner(_) | Self::Regaining { .. })
    }
}

/// Who has the exclusive lock now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LockOwner {
    pub(crate) address: String,
    /// Its number, if it has the image open and is alive, or has died a moment ago.
    pub(crate) client: Option<i64>,
}

impl LockOwner {
    pub(crate) fn new(address: String, watchers: &[Watcher]) -> Self {
        let client = watchers.iter().find(|watcher| watcher.address == address);
        Self { client: client.map(|watcher| watcher.client), address }
    }

    pub(crate) fn in_use(&self) -> Refusal {
        Refusal::InUse(self.name())
    }

    fn name(&self) -> String {
        match self.client {
            Some(client) => format!("client.{client} at {}", self.address),
            None => format!("a client at {}", self.address),
        }
    }
}

/// What to do before the lock is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fence {
    /// Clients to be shut out of the cluster.
    pub(crate) shut_out: Vec<String>,
    /// The owner that the lock is to be taken from.
    pub(crate) break_lock: Option<String>,
}

/// Why the image is not ours to write.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// Another client has it.
    #[error(
        "in use by {0}, which has the exclusive lock: `rbd lock ls` and `rbd status` show it. A client that \
         is gone is forgotten after half a minute; ,take-over takes the image from one that is alive, which \
         is shut out of the cluster"
    )]
    InUse(String),
    /// Another client has taken it from this device.
    #[error(
        "another client has taken the image from this device{0}, so what it had not written is lost: detach \
         the device by force, and attach it again when the other client is done"
    )]
    TakenAway(String),
}

/// Decides how to come by the lock. `owner` is who has it now; without a lock there is none.
pub(crate) fn decide(
    record: &Record,
    owner: Option<&LockOwner>,
    has_lock: bool,
    take_over: bool,
) -> Result<Fence, Refusal> {
    let mut fence = Fence::default();
    fence.shut_out.extend(record.address().map(Into::into));
    let is_predecessor = |owner: &LockOwner| record.is_of(&owner.address);
    match (record, owner) {
        (Record::Lost, owner) => return Err(taken_away(owner)),
        // Without a lock nothing tells what others did.
        (Record::Owner(_), owner) if has_lock && !owner.is_some_and(is_predecessor) => {
            return Err(taken_away(owner));
        }
        (Record::Regaining { .. }, Some(owner)) if has_lock && !is_predecessor(owner) => {
            return Err(taken_away(Some(owner)));
        }
        (_, None) => {}
        (_, Some(owner)) if is_predecessor(owner) => {
            fence.break_lock = Some(owner.address.clone());
        }
        // One that does not watch the image has been silent for so long that the cluster forgot it.
        (_, Some(owner)) if owner.client.is_none() || take_over => {
            fence.shut_out.push(owner.address.clone());
            fence.break_lock = Some(owner.address.clone());
        }
        (_, Some(owner)) => return Err(owner.in_use()),
    }
    Ok(fence)
}

pub(crate) fn taken_away(owner: Option<&LockOwner>) -> Refusal {
    let by = owner.map(|owner| format!(", and {} has it now", owner.name()));
    Refusal::TakenAway(by.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "10.0.0.1:0/1";
    const OTHER: &str = "10.0.0.2:0/2";

    fn owner(address: &str, client: Option<i64>) -> LockOwner {
        LockOwner { address: address.into(), client }
    }

    fn acquiring(from: Option<&str>) -> Record {
        Record::Acquiring { address: OLD.into(), from: from.map(Into::into) }
    }

    fn fence(shut_out: &[&str], break_lock: Option<&str>) -> Result<Fence, Refusal> {
        let shut_out = shut_out.iter().copied().map(Into::into).collect();
        Ok(Fence { shut_out, break_lock: break_lock.map(Into::into) })
    }

    #[test]
    fn the_predecessor_is_shut_out_and_loses_the_lock_even_if_it_seems_alive() {
        for record in [acquiring(None), Record::Owner(OLD.into())] {
            for client in [None, Some(7)] {
                let decided = decide(&record, Some(&owner(OLD, client)), true, false);
                assert_eq!(decided, fence(&[OLD], Some(OLD)), "{record:?}");
            }
        }
        // It died before it had the lock.
        let record = acquiring(None);
        assert_eq!(decide(&record, None, true, false), fence(&[OLD], None));
        // It died before it had taken the lock from its own predecessor.
        let (record, first) = (acquiring(Some(OTHER)), owner(OTHER, Some(9)));
        assert_eq!(decide(&record, Some(&first), true, false), fence(&[OLD], Some(OTHER)));
    }

    #[test]
    fn one_that_died_before_it_had_the_lock_again_leaves_the_history() {
        let own = Record::Owner(OLD.into()).next("new".into(), Some(OLD.into()));
        // Before it had broken the lock, after that, and when it had its own.
        assert_eq!(decide(&own, Some(&owner(OLD, None)), true, false), fence(&["new"], Some(OLD)));
        assert_eq!(decide(&own, None, true, false), fence(&["new"], None));
        let now = owner("new", Some(3));
        assert_eq!(decide(&own, Some(&now), true, false), fence(&["new"], Some("new")));
        // The one after that, too, must know that the device has written.
        for record in [own.clone(), own.next("newer".into(), None)] {
            for client in [None, Some(9)] {
                let decided = decide(&record, Some(&owner(OTHER, client)), true, true);
                assert!(matches!(decided, Err(Refusal::TakenAway(_))), "{record:?} {client:?}");
            }
        }
        // A device that has not written only waits its turn.
        let next = acquiring(Some(OTHER)).next("new".into(), None);
        assert_eq!(next, Record::Acquiring { address: "new".into(), from: None });
    }

    #[test]
    fn an_image_that_was_taken_away_is_never_written_again() {
        let record = Record::Owner(OLD.into());
        for take_over in [false, true] {
            for now in [None, Some(owner(OTHER, Some(9))), Some(owner(OTHER, None))] {
                let decided = decide(&record, now.as_ref(), true, take_over);
                assert!(matches!(decided, Err(Refusal::TakenAway(_))), "{now:?}");
            }
            for now in [None, Some(owner(OLD, None)), Some(owner(OTHER, None))] {
                let decided = decide(&Record::Lost, now.as_ref(), true, take_over);
                assert!(matches!(decided, Err(Refusal::TakenAway(_))), "{now:?}");
            }
        }
        let now = owner(OTHER, Some(9));
        let told = decide(&record, Some(&now), true, false).unwrap_err().to_string();
        assert!(told.contains(&format!("client.9 at {OTHER} has it now")), "{told}");
    }

    #[test]
    fn another_client_keeps_its_lock_unless_it_is_dead_or_the_operator_says_so() {
        let alive = owner(OTHER, Some(9));
        for record in [Record::Empty, acquiring(None)] {
            let refused = decide(&record, Some(&alive), true, false).unwrap_err();
            assert_eq!(refused, Refusal::InUse(format!("client.9 at {OTHER}")));
        }
        assert_eq!(decide(&Record::Empty, None, true, false), fence(&[], None));
        let taken = fence(&[OTHER], Some(OTHER));
        assert_eq!(decide(&Record::Empty, Some(&alive), true, true), taken);
        let dead = owner(OTHER, None);
        assert_eq!(decide(&Record::Empty, Some(&dead), true, false), taken);
    }

    #[test]
    fn without_a_lock_the_predecessor_is_shut_out_all_the_same() {
        let record = Record::Owner(OLD.into());
        assert_eq!(decide(&record, None, false, false), fence(&[OLD], None));
    }

    #[test]
    fn a_record_survives_being_stored() {
        let acquiring = [acquiring(None), acquiring(Some(OTHER))];
        let regaining = Record::Owner(OTHER.into()).next(OLD.into(), None);
        let records = [Record::Empty, Record::Owner(OLD.into()), Record::Lost, regaining];
        for record in records.into_iter().chain(acquiring) {
            assert_eq!(Record::from_text(&record.to_text()), Some(record));
        }
        for strange in ["owner", "owner ", "lost ", "nonsense", "acquiring a ", "owner a b"] {
            assert_eq!(Record::from_text(strange), None, "{strange}");
        }
    }

    #[test]
    fn an_owner_that_watches_is_found_by_its_address() {
        let watchers = [Watcher { address: OTHER.into(), client: 9 }];
        assert_eq!(LockOwner::new(OTHER.into(), &watchers), owner(OTHER, Some(9)));
        assert_eq!(LockOwner::new(OLD.into(), &watchers), owner(OLD, None));
    }
}
