//! Makes sure that nothing but this process writes to an image: shuts out what came before, then takes
//! the exclusive lock.
//!
//! A process that was killed may have writes under way: in the kernel's send queues, in the cluster's own
//! queues. Its address is put on the cluster's blocklist, and then the map of the cluster that says so is
//! waited for. Requests of ours carry the number of that map. A server that knows only an older map gets
//! the newer one before it executes them, and refuses what it still has of the other client.

use crate::connect::denied;
use crate::error::RbdError;
use crate::lock::{LockOwner, Record, RecordStore, Refusal, decide, taken_away};
use crate::spec::ImageSpec;
use crate::sys::cluster::Cluster;
use crate::sys::errno::Errno;
use crate::sys::image::Image;

/// Fences, and locks the image if it has a lock. Nothing must be written before.
pub(crate) fn take(
    spec: &ImageSpec,
    cluster: &Cluster,
    image: &Image,
    store: &dyn RecordStore,
) -> Result<(), RbdError> {
    let has_lock = image.has_lock().map_err(|error| RbdError::Step("read its features", error))?;
    if !has_lock && !spec.unlocked {
        return Err(RbdError::NoLock(spec.image_name()));
    }
    let address = cluster.address();
    let address = address.map_err(|error| RbdError::Step("learn the own address", error))?;
    let record = store.load().map_err(RbdError::Record)?;
    let owner = if has_lock { owner(image)? } else { None };
    let fence = decide(&record, owner.as_ref(), has_lock, spec.take_over);
    let fence = fence.inspect_err(|refusal| note(spec, store, refusal))?;
    for other in fence.shut_out.iter().filter(|other| **other != address) {
        let added = cluster.blocklist(other);
        added.map_err(|error| denied(spec, "shut a dead client out (osd blocklist)", error))?;
        tracing::info!("{spec}: the client at {other} is shut out of the cluster (osd blocklist)");
    }
    let from = fence.break_lock;
    let has_written = record.has_written();
    store.save(&record.next(address.clone(), from.clone())).map_err(RbdError::Record)?;
    if has_lock {
        lock(spec, image, from.as_deref(), has_written).inspect_err(|error| {
            if let RbdError::Refused(refusal) = error {
                note(spec, store, refusal);
            }
        })?;
    }
    store.save(&Record::Owner(address)).map_err(RbdError::Record)
}

fn owner(image: &Image) -> Result<Option<LockOwner>, RbdError> {
    let owner = image.lock_owner();
    let Some(address) = owner.map_err(|error| RbdError::Step("ask for its lock", error))? else {
        return Ok(None);
    };
    let watchers = image.watchers();
    let watchers = watchers.map_err(|error| RbdError::Step("list who has it open", error))?;
    Ok(Some(LockOwner::new(address, &watchers)))
}

/// Another client may give the image back before the next successor looks.
fn note(spec: &ImageSpec, store: &dyn RecordStore, refusal: &Refusal) {
    if let Refusal::TakenAway(_) = refusal
        && let Err(error) = store.save(&Record::Lost)
    {
        tracing::error!("{spec}: cannot note for a successor that the image is lost: {error}");
    }
}

fn lock(
    spec: &ImageSpec,
    image: &Image,
    from: Option<&str>,
    has_written: bool,
) -> Result<(), RbdError> {
    if let Some(from) = from {
        match image.break_lock(from) {
            // The library had noticed itself that the owner is dead.
            Ok(()) | Err(Errno(libc::ENOENT)) => {}
            Err(error) => return Err(denied(spec, "break the lock of a dead client", error)),
        }
    }
    image.lock().map_err(|error| match (error.0, owner(image)) {
        (libc::EROFS | libc::EBUSY, Ok(Some(other))) if has_written => {
            taken_away(Some(&other)).into()
        }
        (libc::EROFS | libc::EBUSY, Ok(Some(other))) => other.in_use().into(),
        _ => denied(spec, "take the exclusive lock", error),
    })
}
