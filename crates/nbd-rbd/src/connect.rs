//! From a specification to an image that is open.

use std::sync::Arc;

use crate::error::RbdError;
use crate::nearest::hint;
use crate::spec::ImageSpec;
use crate::sys::api::Api;
use crate::sys::cluster::{Cluster, Pool};
use crate::sys::errno::Errno;
use crate::sys::image::Image;

/// How long to wait for a monitor at first, in seconds; Ceph's own default is five minutes. One that
/// is configured otherwise is kept. Shorter than a holder waits for a first backend, which would else
/// not hear why.
const CONNECT_SECONDS: &str = "15";
const CEPH_CONNECT_SECONDS: [&str; 3] = ["300", "300s", "5m"];
/// Options with which a write is answered before it is in the cluster, and the value that they must have.
const WRITE_BACK: [(&str, &str); 2] =
    [("rbd_cache", "false"), ("rbd_persistent_cache_mode", "disabled")];

/// Loads the library, so that it is known at once if there is none.
///
/// # Errors
///
/// It is not there, or too old.
pub fn load_library() -> Result<(), RbdError> {
    Ok(Api::get().map(drop)?)
}

/// A client that is connected to the cluster of an image.
pub(crate) fn connect(spec: &ImageSpec) -> Result<Arc<Cluster>, RbdError> {
    let name = spec.cluster.as_deref().unwrap_or("ceph");
    let user = user(spec);
    let cluster = Cluster::new(name, &format!("client.{user}"))?;
    let cluster =
        cluster.map_err(|error| RbdError::Option("the name of cluster or user", error))?;
    let path = |path: &std::path::PathBuf| path.to_string_lossy().into_owned();
    let conf = spec.conf.as_ref().map(path);
    cluster.read_conf(conf.as_deref()).map_err(|source| {
        let conf = conf.unwrap_or_else(|| format!("/etc/ceph/{name}.conf"));
        RbdError::Conf { conf, source }
    })?;
    if let Some(keyring) = spec.keyring.as_ref().map(path) {
        let set = cluster.set("keyring", &keyring);
        set.map_err(|error| RbdError::Option("the option `keyring`", error))?;
    }
    let seconds = cluster.get("client_mount_timeout").unwrap_or_default();
    if CEPH_CONNECT_SECONDS.contains(&&*seconds) {
        let set = cluster.set("client_mount_timeout", CONNECT_SECONDS);
        set.map_err(|error| RbdError::Option("client_mount_timeout", error))?;
    }
    for (option, value) in WRITE_BACK {
        cluster.set(option, value).map_err(|error| RbdError::Option(option, error))?;
    }
    cluster.connect().map_err(|error| connect_failed(&cluster, user, error))?;
    Ok(Arc::new(cluster))
}

fn user(spec: &ImageSpec) -> &str {
    spec.user.as_deref().unwrap_or("admin")
}

fn connect_failed(cluster: &Cluster, user: &str, source: Errno) -> RbdError {
    let get = |option| cluster.get(option).unwrap_or_default();
    let (user, keyring, monitors) = (user.to_owned(), get("keyring"), get("mon_host"));
    match source.0 {
        libc::ETIMEDOUT => RbdError::NoMonitor { seconds: get("client_mount_timeout"), monitors },
        libc::EACCES | libc::EPERM => RbdError::Key { user, keyring, source },
        libc::ENOENT => RbdError::NoKey { user, keyring, monitors },
        _ => RbdError::Connect(source),
    }
}

/// The pool of an image, in its namespace.
pub(crate) fn open_pool(spec: &ImageSpec, cluster: &Arc<Cluster>) -> Result<Arc<Pool>, RbdError> {
    let mut pool = Pool::open(cluster, &spec.pool).map_err(|error| match error.0 {
        libc::ENOENT => {
            let hint = hint(&spec.pool, &cluster.pools().unwrap_or_default());
            RbdError::NoPool { name: spec.pool.clone(), hint }
        }
        _ => denied(spec, "open the pool", error),
    })?;
    if !spec.namespace.is_empty() {
        let exists = pool.has_namespace(&spec.namespace);
        if !exists.map_err(|error| denied(spec, "look for the namespace", error))? {
            let hint = hint(&spec.namespace, &pool.namespaces().unwrap_or_default());
            let (pool, name) = (spec.pool.clone(), spec.namespace.clone());
            return Err(RbdError::NoNamespace { pool, name, hint });
        }
        let entered = pool.enter(&spec.namespace);
        entered.map_err(|error| RbdError::Step("enter the namespace", error))?;
    }
    Ok(Arc::new(pool))
}

/// The image, or its snapshot.
pub(crate) fn open_image(
    spec: &ImageSpec,
    pool: &Arc<Pool>,
    read_only: bool,
) -> Result<Image, RbdError> {
    let image = Image::open(pool, &spec.image, spec.snapshot.as_deref(), read_only);
    image.map_err(|error| match error.0 {
        libc::ENOENT => not_found(spec, pool),
        libc::ENOSYS | libc::ENOTSUP => RbdError::Features(spec.image_name()),
        _ => denied(spec, "open the image", error),
    })
}

fn not_found(spec: &ImageSpec, pool: &Arc<Pool>) -> RbdError {
    let images = pool.images().unwrap_or_default();
    if let (Some(name), true) = (&spec.snapshot, images.contains(&spec.image)) {
        let image = Image::open(pool, &spec.image, None, true);
        let snapshots = image.and_then(|image| image.snapshots()).unwrap_or_default();
        return RbdError::NoSnapshot { name: name.clone(), hint: hint(name, &snapshots) };
    }
    let place = match &*spec.namespace {
        "" => format!("pool `{}`", spec.pool),
        namespace => format!("pool `{}`, namespace `{namespace}`", spec.pool),
    };
    RbdError::NoImage { name: spec.image.clone(), place, hint: hint(&spec.image, &images) }
}

/// Whether the user may not, or something else is wrong.
pub(crate) fn denied(spec: &ImageSpec, what: &'static str, source: Errno) -> RbdError {
    match source.0 {
        libc::EPERM | libc::EACCES => RbdError::Denied { user: user(spec).into(), what, source },
        _ => RbdError::Step(what, source),
    }
}

/// Refuses an image whose own settings have writes answered before they are in the cluster: they come
/// before those of the client.
pub(crate) fn check_cache(spec: &ImageSpec, image: &Image) -> Result<(), RbdError> {
    for (option, wanted) in WRITE_BACK {
        let value =
            image.option(option).map_err(|error| RbdError::Step("read its settings", error))?;
        if let Some(value) = value.filter(|value| value != wanted) {
            return Err(RbdError::Cache { image: spec.image_name(), option, value });
        }
    }
    Ok(())
}
