//! What is asked of an object store: whole objects by name, and one operation that only one of many can win.

/// An object as a listing names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name below the store's address.
    pub name: String,
    /// When it was written, by the store's clock: milliseconds since 1970.
    pub modified: u64,
    /// Its bytes.
    pub size: u64,
}

/// Why a store did not do what it was asked. Messages hold no credentials: see [`crate::redact`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It does not let us: no credentials, or not enough rights.
    #[error("{0}")]
    Refused(String),
    /// It cannot be reached, or answers with faults of its own; another time it may go better.
    #[error("{0}")]
    Unreachable(String),
    /// It cannot do what is asked, or gives what cannot be.
    #[error("{0}")]
    Unusable(String),
}

/// A store of objects. Names are paths of plain letters, digits, `.`, `-` and `_`, parts apart by `/`.
///
/// A store is strongly consistent: what was written is seen by whoever reads or lists afterwards.
pub trait Objects: Send + Sync {
    /// Writes an object unless there is one of that name; whether it was written. Of many who try, one is told `true`.
    ///
    /// # Errors
    /// When the store does not do it. The object may be there all the same: the answer may have been lost.
    fn create(&self, name: &str, bytes: Vec<u8>) -> Result<bool, Fault>;

    /// Writes an object in place of what is there. It is seen as a whole or not at all.
    ///
    /// # Errors
    /// As [`Objects::create`].
    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), Fault>;

    /// The bytes of an object; `None`: there is none.
    ///
    /// # Errors
    /// When the store does not give them.
    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, Fault>;

    /// Whether there is an object of that name.
    ///
    /// # Errors
    /// When the store does not say.
    fn has(&self, name: &str) -> Result<bool, Fault>;

    /// The objects below a folder, by name.
    ///
    /// # Errors
    /// When the store does not list them.
    fn list(&self, folder: &str) -> Result<Vec<Listed>, Fault>;

    /// Removes an object, if there is one.
    ///
    /// # Errors
    /// When the store does not.
    fn delete(&self, name: &str) -> Result<(), Fault>;

    /// The store's address as people know it; it holds no credentials.
    fn shown(&self) -> String;
}

impl<T: Objects + ?Sized> Objects for &T {
    fn create(&self, name: &str, bytes: Vec<u8>) -> Result<bool, Fault> {
        (**self).create(name, bytes)
    }
    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), Fault> {
        (**self).put(name, bytes)
    }
    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, Fault> {
        (**self).get(name)
    }
    fn has(&self, name: &str) -> Result<bool, Fault> {
        (**self).has(name)
    }
    fn list(&self, folder: &str) -> Result<Vec<Listed>, Fault> {
        (**self).list(folder)
    }
    fn delete(&self, name: &str) -> Result<(), Fault> {
        (**self).delete(name)
    }
    fn shown(&self) -> String {
        (**self).shown()
    }
}

impl<T: Objects + ?Sized> Objects for std::sync::Arc<T> {
    fn create(&self, name: &str, bytes: Vec<u8>) -> Result<bool, Fault> {
        (**self).create(name, bytes)
    }
    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), Fault> {
        (**self).put(name, bytes)
    }
    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, Fault> {
        (**self).get(name)
    }
    fn has(&self, name: &str) -> Result<bool, Fault> {
        (**self).has(name)
    }
    fn list(&self, folder: &str) -> Result<Vec<Listed>, Fault> {
        (**self).list(folder)
    }
    fn delete(&self, name: &str) -> Result<(), Fault> {
        (**self).delete(name)
    }
    fn shown(&self) -> String {
        (**self).shown()
    }
}
