//! Values that cross ports: typed for the authors of nodes, erased for the engine.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::node::NodeError;

/// A type that may cross a port: a latent, a picture, a model, a table.
pub trait Payload: Any + Send + Sync + 'static {
    /// The name of the type in the language: `latent`, `image`, `model`.
    const TYPE: &'static str;

    /// File endings (without the dot) that [`Payload::encode`] knows; the first is the default. Empty: cannot be saved.
    const FORMATS: &'static [&'static str] = &[];

    /// Bytes of memory that the value holds, for the cache's budget.
    fn bytes(&self) -> usize;

    /// One line for people: `image 64x64, batch of 4`.
    fn summary(&self) -> String;

    /// The value as files: one for most types, one for each picture of a batch.
    ///
    /// # Errors
    /// When `format` is not in [`Payload::FORMATS`] or the encoder fails.
    fn encode(&self, format: &str) -> Result<Vec<Vec<u8>>, NodeError> {
        Err(NodeError::failed(format!(
            "a {} cannot be written as .{format}",
            Self::TYPE
        )))
    }
}

/// The object-safe side of [`Payload`].
trait Erased: Any + Send + Sync {
    fn type_name(&self) -> &'static str;
    fn formats(&self) -> &'static [&'static str];
    fn bytes(&self) -> usize;
    fn summary(&self) -> String;
    fn encode(&self, format: &str) -> Result<Vec<Vec<u8>>, NodeError>;
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl<T: Payload> Erased for T {
    fn type_name(&self) -> &'static str {
        T::TYPE
    }
    fn formats(&self) -> &'static [&'static str] {
        T::FORMATS
    }
    fn bytes(&self) -> usize {
        Payload::bytes(self)
    }
    fn summary(&self) -> String {
        Payload::summary(self)
    }
    fn encode(&self, format: &str) -> Result<Vec<Vec<u8>>, NodeError> {
        Payload::encode(self, format)
    }
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// A payload of any type; cloning shares it.
#[derive(Clone)]
pub struct Value(Arc<dyn Erased>);

impl Value {
    /// Wraps a payload.
    pub fn new<T: Payload>(payload: T) -> Self {
        Self(Arc::new(payload))
    }

    /// Wraps a payload that is shared already.
    pub fn from_arc<T: Payload>(payload: Arc<T>) -> Self {
        Self(payload)
    }

    /// The payload as `T`, or `None` when it is of another type.
    #[must_use]
    pub fn downcast<T: Payload>(&self) -> Option<Arc<T>> {
        self.0.clone().into_any().downcast::<T>().ok()
    }

    /// The name of the payload's type: `latent`.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        self.0.type_name()
    }

    /// File endings that [`Value::encode`] knows, the default one first.
    #[must_use]
    pub fn formats(&self) -> &'static [&'static str] {
        self.0.formats()
    }

    /// Bytes of memory that the payload holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// One line for people.
    #[must_use]
    pub fn summary(&self) -> String {
        self.0.summary()
    }

    /// The payload as files, see [`Payload::encode`].
    ///
    /// # Errors
    /// As [`Payload::encode`].
    pub fn encode(&self, format: &str) -> Result<Vec<Vec<u8>>, NodeError> {
        self.0.encode(format)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({})", self.summary())
    }
}
