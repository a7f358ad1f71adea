//! Errors of the system in words that name the way out.
//!
//! `No such file or directory (os error 2)` says what has happened, and not what to do. What can be done
//! depends on little else than the number.

use std::error::Error;
use std::io;

use nix::errno::Errno;
use nix::unistd::{Uid, User};

/// An error and its causes on one line. A cause that is the system's gets the user that was refused, and
/// a way out unless the words before it have one, which stands behind a semicolon.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let told = match error.downcast_ref::<io::Error>() {
            Some(system) if error.source().is_none() => {
                with_cause(system, !text.contains("; "), None)
            }
            _ => error.to_string(),
        };
        text = format!("{text}: {told}");
        cause = error.source();
    }
    text
}

/// The system's words for an error, and the way out.
#[must_use]
pub fn explain(error: &io::Error) -> String {
    with_cause(error, true, None)
}

/// The same of what another process was refused, as this user.
#[must_use]
pub fn explain_as(error: &io::Error, user: &str) -> String {
    with_cause(error, true, Some(user))
}

fn with_cause(error: &io::Error, with_way_out: bool, refused: Option<&str>) -> String {
    let Some(number) = error.raw_os_error() else {
        return error.to_string();
    };
    let errno = Errno::from_raw(number);
    let mut text = error.to_string();
    if matches!(errno, Errno::EACCES | Errno::EPERM) {
        text = format!("{text}, as {}", refused.map_or_else(user, str::to_owned));
    }
    match way_out(errno).filter(|_| with_way_out) {
        Some(way_out) => format!("{text}: {way_out}"),
        None => text,
    }
}

/// Who was refused: a unit's user is not the one who reads the message.
fn user() -> String {
    let uid = Uid::effective();
    match User::from_uid(uid) {
        Ok(Some(user)) => format!("user {} (uid {uid})", user.name),
        Ok(None) | Err(_) => format!("uid {uid}"),
    }
}

fn way_out(errno: Errno) -> Option<&'static str> {
    Some(match errno {
        Errno::EACCES | Errno::EPERM => {
            "change its owner or mode, or run this as another user; root may still be refused by a \
             sandbox, SELinux or NFS"
        }
        Errno::ENOENT => "check the path, or make what is missing",
        Errno::ENOTDIR => "a part of the path is a file: check the path",
        Errno::EISDIR => "it is a directory: name a file in it",
        Errno::EEXIST => "remove it, or choose another name",
        Errno::ELOOP => "its symbolic links lead nowhere: check them with `namei`",
        Errno::ENAMETOOLONG => "choose a shorter path",
        Errno::ENOSPC => "make room there (`df`, `df -i`)",
        Errno::EDQUOT => "make room there, or raise the quota (`quota`)",
        Errno::EROFS => "its file system is read-only: remount it, or choose another place",
        Errno::EMFILE => "raise the limit of open files (`ulimit -n`, LimitNOFILE=)",
        Errno::ENFILE => "raise fs.file-max (`sysctl`), or end programs with many open files",
        Errno::ENOMEM => "free memory, or raise the limit that this process is under",
        Errno::EAGAIN => "raise the limit of processes (`ulimit -u`, TasksMax=), or try again",
        Errno::ENOEXEC => {
            "it is not a program for this machine; a script must begin with a line like #!/bin/sh"
        }
        Errno::ETXTBSY => "the program is being written: try again",
        Errno::EADDRINUSE => {
            "another program listens there (`ss -lp`): end it, or choose another address"
        }
        Errno::EADDRNOTAVAIL => "this machine does not have that address (`ip address`)",
        Errno::ECONNREFUSED => "no program listens there: start it, or check the address",
        Errno::ETIMEDOUT | Errno::EHOSTUNREACH | Errno::ENETUNREACH => {
            "check the address, the network and firewalls"
        }
        Errno::EIO => "the storage itself has failed: see the kernel's log (`dmesg`)",
        Errno::ENOSYS => "this kernel lacks it, or a sandbox forbids it",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Failed(&'static str, #[source] io::Error);

    fn told(words: &'static str, errno: Errno) -> String {
        chain(&Failed(words, errno.into()))
    }

    #[test]
    fn a_cause_that_is_the_systems_has_a_way_out() {
        assert_eq!(
            told("/srv/a", Errno::ENOENT),
            "/srv/a: No such file or directory (os error 2): check the path, or make what is missing"
        );
        // Nothing can be said of this one.
        assert_eq!(told("/srv/a", Errno::EXDEV), "/srv/a: Invalid cross-device link (os error 18)");
        let own = Failed("/srv/a", io::Error::other("no such user"));
        assert_eq!(chain(&own), "/srv/a: no such user");
    }

    #[test]
    fn a_way_out_that_is_there_already_is_the_only_one() {
        assert_eq!(
            told("cannot listen; choose another path", Errno::ENOENT),
            "cannot listen; choose another path: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn the_user_that_was_refused_is_named() {
        let error = io::Error::from(Errno::EACCES);
        assert!(
            explain_as(&error, "user x").contains("(os error 13), as user x: change its owner")
        );
        let uid = Uid::effective();
        for words in ["/srv/a", "/srv/a; add the option `ro`"] {
            let text = told(words, Errno::EACCES);
            assert!(text.contains("Permission denied (os error 13), as "), "{text}");
            assert!(text.contains(&format!("uid {uid}")), "{text}");
            assert_eq!(text.contains("change its owner"), !words.contains(';'), "{text}");
        }
    }
}
