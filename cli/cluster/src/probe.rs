//! Whether a store can be relied on: tried before a run is submitted, and by each worker before its first claim.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::objects::{Fault, Objects};

/// The folder of what is tried.
const FOLDER: &str = "probe";

/// A name that no other process takes.
#[must_use]
pub fn unique() -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

/// Writes one object twice on the condition that there is none, and expects the second to be refused.
///
/// Several stores that speak S3's protocol take `If-None-Match: *` and ignore it: on those two workers would both be told that
/// they won. No version number tells them apart, so it is tried.
///
/// # Errors
/// When the store takes both, loses the first, or cannot be used at all.
pub fn probe(store: &dyn Objects) -> Result<(), Fault> {
    let name = format!("{FOLDER}/{}", unique());
    let result = tried(store, &name);
    // What is left of a probe is a few bytes; the fault that came first is the one to tell.
    let removed = store.delete(&name);
    result.and(removed)
}

fn tried(store: &dyn Objects, name: &str) -> Result<(), Fault> {
    let unusable = |what: &str| {
        Fault::Unusable(format!(
            "the store {} {what}: workers could not tell who does what",
            store.shown()
        ))
    };
    if !store.create(name, b"first".to_vec())? {
        return Err(unusable(
            "says of a name that was never used that it is taken",
        ));
    }
    if store.create(name, b"second".to_vec())? {
        return Err(unusable(
            "ignores the condition of a conditional put (it took `If-None-Match: *` for an object that is there)",
        ));
    }
    match store.get(name)?.as_deref() {
        Some(b"first") => {}
        Some(_) => {
            return Err(unusable(
                "refuses a conditional put and overwrites the object all the same",
            ));
        }
        None => return Err(unusable("does not show an object that it took")),
    }
    let listed = store.list(FOLDER)?;
    if !listed.iter().any(|one| one.name == name) {
        return Err(unusable("does not list an object that it took"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use crate::objects::Listed;

    /// A store with one vice.
    struct Vicious {
        inner: Memory,
        ignores: bool,
        overwrites: bool,
        hides: bool,
    }

    impl Objects for Vicious {
        fn create(&self, name: &str, bytes: Vec<u8>) -> Result<bool, Fault> {
            if self.ignores {
                self.inner.put(name, bytes)?;
                return Ok(true);
            }
            let created = self.inner.create(name, bytes.clone())?;
            if !created && self.overwrites {
                self.inner.put(name, bytes)?;
            }
            Ok(created)
        }
        fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), Fault> {
            self.inner.put(name, bytes)
        }
        fn get(&self, name: &str) -> Result<Option<Vec<u8>>, Fault> {
            self.inner.get(name)
        }
        fn has(&self, name: &str) -> Result<bool, Fault> {
            self.inner.has(name)
        }
        fn list(&self, folder: &str) -> Result<Vec<Listed>, Fault> {
            match self.hides {
                true => Ok(Vec::new()),
                false => self.inner.list(folder),
            }
        }
        fn delete(&self, name: &str) -> Result<(), Fault> {
            self.inner.delete(name)
        }
        fn shown(&self) -> String {
            "s3://vicious".to_owned()
        }
    }

    #[test]
    fn a_store_that_ignores_conditions_is_refused_by_name_and_nothing_is_left_on_it() {
        let store = |ignores, overwrites, hides| Vicious {
            inner: Memory::new(),
            ignores,
            overwrites,
            hides,
        };
        for (store, says) in [
            (store(true, false, false), "ignores the condition"),
            (store(false, true, false), "overwrites"),
            (store(false, false, true), "does not list"),
        ] {
            let Err(Fault::Unusable(message)) = probe(&store) else {
                panic!("{says} was accepted");
            };
            assert!(
                message.contains(says) && message.contains("s3://vicious"),
                "{message}"
            );
            assert!(store.inner.list(FOLDER).unwrap().is_empty());
        }
        assert_eq!(probe(&store(false, false, false)), Ok(()));
    }
}
