//! An image that is open: requests, its lock, and what there is to know of it.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard, TryLockError, mpsc};
use std::time::{Duration, Instant};

use crate::sys::api::{self, Api};
use crate::sys::cluster::Pool;
use crate::sys::errno::Errno;
use crate::sys::names::{c_string, text};
use crate::sys::operation::{Operation, submit};

/// The most lock owners, snapshots, watchers or options that are asked for.
const MAX_ENTRIES: usize = 4096;

/// The image was closed before. Not ESHUTDOWN, which tells of the blocklist.
const CLOSED: Errno = Errno(libc::ECANCELED);
/// The first version of librbd, of Ceph 17, in which no release has the mistakes of
/// [`Image::has_fast_diff`].
const FAST_DIFF_VERSION: (c_int, c_int) = (1, 17);

/// What an asynchronous request does. Data and buffers are those of its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Read { offset: u64 },
    Write { offset: u64, fua: bool },
    Discard { offset: u64, length: u64 },
    Zero { offset: u64, length: u64, allocate: bool },
    Flush,
}

/// A client that has the image open for writing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Watcher {
    pub(crate) address: String,
    /// The number in `client.4123`.
    pub(crate) client: i64,
}

/// An image that is open.
pub(crate) struct Image {
    /// Null when it is closed.
    handle: RwLock<Handle>,
    api: &'static Api,
}

/// The image, and the pool that is closed after it.
struct Handle(api::RawImage, Option<Arc<Pool>>);

// SAFETY: librbd locks what it does with an image; it may be used by any thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Image {
    /// Opens an image, or a snapshot of it.
    pub(crate) fn open(
        pool: &Arc<Pool>,
        name: &str,
        snapshot: Option<&str>,
        read_only: bool,
    ) -> Result<Self, Errno> {
        let api = pool.cluster.api;
        let name = c_string(name)?;
        let snapshot = snapshot.map(c_string).transpose()?;
        let snapshot = snapshot.as_ref().map_or(null(), |snapshot| snapshot.as_ptr());
        let mut image = null_mut();
        let open = if read_only { api.rbd_open_read_only } else { api.rbd_open };
        // SAFETY: the pool is open and outlives the image; strings, and a place for a handle.
        Errno::check(unsafe { open(pool.context, name.as_ptr(), &raw mut image, snapshot) })?;
        Ok(Self { handle: RwLock::new(Handle(image, Some(Arc::clone(pool)))), api })
    }

    /// Calls a function with the handle, which is not closed meanwhile.
    fn with(&self, function: impl FnOnce(api::RawImage) -> c_int) -> Result<(), Errno> {
        let handle = self.handle.read().unwrap_or_else(PoisonError::into_inner);
        if handle.0.is_null() {
            return Err(CLOSED);
        }
        Errno::check(function(handle.0))
    }

    /// Starts a request; the operation is told when it is done.
    pub(crate) fn submit<T: Operation>(&self, request: Request, operation: Box<T>) {
        let handle = self.handle.read().unwrap_or_else(PoisonError::into_inner);
        let image = handle.0;
        if image.is_null() {
            return operation.done(Err(CLOSED));
        }
        let api = self.api;
        submit(api, operation, |data, buffer, length, completion| match request {
            // SAFETY: the image is open; the operation keeps so many bytes until it is done.
            Request::Read { offset } => unsafe {
                (api.rbd_aio_read)(image, offset, length, buffer.cast(), completion)
            },
            Request::Write { offset, fua } => {
                let flags = if fua { api::OP_FADVISE_FUA } else { 0 };
                // SAFETY: as above.
                unsafe {
                    (api.rbd_aio_write2)(image, offset, length, data.cast(), completion, flags)
                }
            }
            // SAFETY: the image is open.
            Request::Discard { offset, length } => unsafe {
                (api.rbd_aio_discard)(image, offset, length, completion)
            },
            Request::Zero { offset, length, allocate } => {
                let flags = if allocate { api::ZEROES_THICK_PROVISION } else { 0 };
                // SAFETY: as above.
                unsafe {
                    (api.rbd_aio_write_zeroes)(image, offset, length as usize, completion, flags, 0)
                }
            }
            // SAFETY: as above.
            Request::Flush => unsafe { (api.rbd_aio_flush)(image, completion) },
        });
    }

    fn number(
        &self,
        function: unsafe extern "C" fn(api::RawImage, *mut u64) -> c_int,
    ) -> Result<u64, Errno> {
        let mut number = 0;
        // SAFETY: one of the functions that take an open image and a place for a number.
        self.with(|image| unsafe { function(image, &raw mut number) })?;
        Ok(number)
    }

    pub(crate) fn size(&self) -> Result<u64, Errno> {
        self.number(self.api.rbd_get_size)
    }

    /// Whether it has the exclusive lock.
    pub(crate) fn has_lock(&self) -> Result<bool, Errno> {
        Ok(self.number(self.api.rbd_get_features)? & api::FEATURE_EXCLUSIVE_LOCK != 0)
    }

    /// Whether its objects can be listed without asking for each. Older libraries may take data of a
    /// parent for holes (Ceph tracker 53787), and mix up stripes (53885).
    pub(crate) fn has_fast_diff(&self) -> Result<bool, Errno> {
        let invalid = api::FLAG_OBJECT_MAP_INVALID | api::FLAG_FAST_DIFF_INVALID;
        Ok(self.number(self.api.rbd_get_features)? & api::FEATURE_FAST_DIFF != 0
            && self.number(self.api.rbd_get_flags)? & invalid == 0
            && (self.version() >= FAST_DIFF_VERSION
                || self.number(self.api.rbd_get_overlap)? == 0
                    && self.number(self.api.rbd_get_stripe_count)? == 1))
    }

    fn version(&self) -> (c_int, c_int) {
        let (mut major, mut minor, mut extra) = (0, 0, 0);
        // SAFETY: places for three numbers.
        unsafe { (self.api.rbd_version)(&raw mut major, &raw mut minor, &raw mut extra) };
        (major, minor)
    }

    /// The ranges that are allocated, as offset and length, rounded to objects.
    pub(crate) fn diff(&self, offset: u64, length: u64) -> Result<Vec<(u64, u64)>, Errno> {
        // Older libraries shift what they find if this is not the start of an object (tracker 53784);
        // without stripes, that is one unit.
        let unit = self.number(self.api.rbd_get_stripe_unit)?.max(1);
        let start = offset - offset % unit;
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        self.each_allocated(start, offset + length - start, |offset, length| {
            match ranges.last_mut() {
                Some(last) if last.0 + last.1 == offset => last.1 += length,
                _ => ranges.push((offset, length)),
            }
        })?;
        Ok(ranges)
    }

    fn each_allocated(
        &self,
        offset: u64,
        length: u64,
        mut entry: impl FnMut(u64, u64),
    ) -> Result<(), Errno> {
        unsafe extern "C" fn each<F: FnMut(u64, u64)>(
            offset: u64,
            length: usize,
            exists: c_int,
            entry: *mut c_void,
        ) -> c_int {
            if exists != 0 {
                // SAFETY: the pointer that is given below, used by this call only while `diff` waits.
                unsafe { (*entry.cast::<F>())(offset, length as u64) };
            }
            0
        }
        fn callback_of<F: FnMut(u64, u64)>(_: &F) -> api::DiffFn {
            each::<F>
        }
        let callback = callback_of(&entry);
        let entry = (&raw mut entry).cast::<c_void>();
        // SAFETY: the image is open; the callback gets its own closure, which lives until the return.
        self.with(|image| unsafe {
            (self.api.rbd_diff_iterate2)(image, null(), offset, length, 1, 1, callback, entry)
        })
    }

    /// The addresses of the clients that have the exclusive lock: none or one.
    pub(crate) fn lock_owner(&self) -> Result<Option<String>, Errno> {
        let (mut mode, mut owners, mut count) = (0, [null_mut::<c_char>(); 8], 8);
        let (place, number) = (owners.as_mut_ptr(), &raw mut count);
        // SAFETY: the image is open; a place for the mode, and for so many strings.
        let found = self.with(|image| unsafe {
            (self.api.rbd_lock_get_owners)(image, &raw mut mode, place, number)
        });
        match found {
            Err(Errno(libc::ENOENT)) => return Ok(None),
            found => found?,
        }
        // SAFETY: strings, as many as the library says.
        let address = (count > 0).then(|| unsafe { text(owners[0]) });
        // SAFETY: the library allocated them; they are not used any more.
        unsafe { (self.api.rbd_lock_get_owners_cleanup)(place, count) };
        Ok(address)
    }

    /// Takes the exclusive lock, and does not give it to clients that ask for it.
    pub(crate) fn lock(&self) -> Result<(), Errno> {
        // SAFETY: the image is open.
        self.with(|image| unsafe { (self.api.rbd_lock_acquire)(image, api::LOCK_MODE_EXCLUSIVE) })
    }

    /// Takes the exclusive lock away from its owner.
    pub(crate) fn break_lock(&self, owner: &str) -> Result<(), Errno> {
        let owner = c_string(owner)?;
        // SAFETY: the image is open; a string.
        self.with(|image| unsafe {
            (self.api.rbd_lock_break)(image, api::LOCK_MODE_EXCLUSIVE, owner.as_ptr())
        })
    }

    /// The clients that have the image open for writing and are alive, we among them.
    pub(crate) fn watchers(&self) -> Result<Vec<Watcher>, Errno> {
        let mut raw = vec![api::RawWatcher { addr: null_mut(), id: 0, cookie: 0 }; 64];
        let mut count = raw.len();
        loop {
            let (place, number) = (raw.as_mut_ptr(), &raw mut count);
            // SAFETY: the image is open, and there is room for so many.
            let found =
                self.with(|image| unsafe { (self.api.rbd_watchers_list)(image, place, number) });
            match found {
                Err(Errno(libc::ERANGE)) if raw.len() < MAX_ENTRIES => {
                    raw.resize(count.max(raw.len() * 2), raw[0]);
                    count = raw.len();
                }
                found => break found?,
            }
        }
        let watchers = raw[..count]
            .iter()
            // SAFETY: the library filled in so many, each with a string.
            .map(|raw| Watcher { address: unsafe { text(raw.addr) }, client: raw.id })
            .collect();
        // SAFETY: the library allocated the strings; they are not used any more.
        unsafe { (self.api.rbd_watchers_list_cleanup)(raw.as_mut_ptr(), count) };
        Ok(watchers)
    }

    /// An option that is set for the image, its pool, or everything: what holds.
    pub(crate) fn option(&self, name: &str) -> Result<Option<String>, Errno> {
        let empty = api::RawConfigOption { name: null_mut(), value: null_mut(), source: 0 };
        let mut raw = vec![empty; 256];
        let mut count = raw.len() as c_int;
        loop {
            let (place, number) = (raw.as_mut_ptr(), &raw mut count);
            // SAFETY: the image is open, and there is room for so many.
            let found = self
                .with(|image| unsafe { (self.api.rbd_config_image_list)(image, place, number) });
            match found {
                Err(Errno(libc::ERANGE)) if raw.len() < MAX_ENTRIES => {
                    raw.resize(raw.len() * 2, empty);
                    count = raw.len() as c_int;
                }
                found => break found?,
            }
        }
        let filled = &raw[..usize::try_from(count).unwrap_or(0)];
        // SAFETY: the library filled in so many, each with two strings.
        let found = filled.iter().find(|raw| unsafe { text(raw.name) } == name);
        // SAFETY: as above.
        let value = found.map(|raw| unsafe { text(raw.value) });
        // SAFETY: the library allocated the strings; they are not used any more.
        unsafe { (self.api.rbd_config_image_list_cleanup)(raw.as_mut_ptr(), count) };
        Ok(value)
    }

    pub(crate) fn snapshots(&self) -> Result<Vec<String>, Errno> {
        let empty = api::RawSnapshot { id: 0, size: 0, name: null() };
        let mut raw = vec![empty; 64];
        let mut count = raw.len() as c_int;
        let found = loop {
            let (place, number) = (raw.as_mut_ptr(), &raw mut count);
            let mut found = 0;
            self.with(|image| {
                // SAFETY: the image is open, and there is room for so many.
                found = unsafe { (self.api.rbd_snap_list)(image, place, number) };
                found.min(0)
            })
            .or_else(|error| match error {
                Errno(libc::ERANGE) if raw.len() < MAX_ENTRIES => Ok(()),
                error => Err(error),
            })?;
            if found >= 0 {
                break usize::try_from(found).unwrap_or(0).min(raw.len());
            }
            raw = vec![empty; raw.len() * 2];
            count = raw.len() as c_int;
        };
        // SAFETY: the library filled in so many, each with a string.
        let names = raw[..found].iter().map(|raw| unsafe { text(raw.name) }).collect();
        if found > 0 {
            // SAFETY: the library allocated the strings; an entry without a name ends the list.
            unsafe { (self.api.rbd_snap_list_end)(raw.as_mut_ptr()) };
        }
        Ok(names)
    }

    /// Calls `changed` whenever the image has changed: its size, for instance. That is in a thread of the
    /// library, so it must not wait for anything.
    pub(crate) fn watch(&self, changed: impl Fn() + Send + Sync + 'static) -> Result<(), Errno> {
        type Callback = Box<dyn Fn() + Send + Sync>;
        unsafe extern "C" fn call(callback: *mut c_void) {
            // SAFETY: the pointer that is leaked below, to a function that any thread may call.
            let callback = unsafe { &*callback.cast::<Callback>() };
            callback();
        }
        // Leaked: the watch lasts as long as the image, and the image mostly as long as the process.
        let callback: Callback = Box::new(changed);
        let callback: &'static Callback = Box::leak(Box::new(callback));
        let callback = std::ptr::from_ref(callback).cast_mut().cast();
        let mut handle = 0;
        // SAFETY: the image is open; a place for a number; the callback lives for ever.
        self.with(|image| unsafe {
            (self.api.rbd_update_watch)(image, &raw mut handle, call, callback)
        })
    }

    /// Closes it, which gives the lock back, and ends the connection to the cluster if that has no other
    /// image. Returns whether that was done in time; if not, it is left as it is, and the process must end
    /// soon.
    pub(crate) fn close(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let Some(mut handle) = self.write_before(deadline) else { return false };
        let image = std::mem::replace(&mut handle.0, null_mut());
        let pool = handle.1.take();
        drop(handle);
        if image.is_null() {
            return true;
        }
        let (done, is_done) = mpsc::channel();
        // SAFETY: the image is open, and no other thread can start anything with it any more.
        submit(self.api, Box::new(Closing(done)), |_, _, _, completion| unsafe {
            (self.api.rbd_aio_close)(image, completion)
        });
        let is_closed =
            is_done.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok();
        // The library still works on one that is not closed: the pool and the cluster must never end.
        if is_closed {
            drop(pool);
        } else {
            std::mem::forget(pool);
        }
        is_closed
    }
}

impl Image {
    /// The handle for a change: not before calls that wait for the cluster have returned.
    fn write_before(&self, deadline: Instant) -> Option<RwLockWriteGuard<'_, Handle>> {
        loop {
            match self.handle.try_write() {
                Ok(handle) => return Some(handle),
                Err(TryLockError::Poisoned(handle)) => return Some(handle.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

struct Closing(mpsc::Sender<()>);

// SAFETY: there is no data.
unsafe impl Operation for Closing {
    fn data(&self) -> &[u8] {
        &[]
    }

    fn buffer(&mut self) -> &mut [u8] {
        &mut []
    }

    fn done(self: Box<Self>, _: Result<usize, Errno>) {
        // An error means that the wait for it has timed out.
        let _ = self.0.send(());
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let handle = self.handle.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !handle.0.is_null() {
            // SAFETY: the image is open, and not used any more.
            unsafe { (self.api.rbd_close)(handle.0) };
        }
    }
}
