//! Values that cross ports: typed for the authors of nodes, erased for the engine.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::base::error::Environment;
use crate::base::error::NodeError;

/// A type that may cross a port: a latent, a picture, a model, a table.
pub trait Payload: Any + Send + Sync + 'static {
    /// The name of the type in the language: `latent`, `image`, `model`.
    const TYPE: &'static str;

    /// File endings (without the dot) that [`Payload::encode`] knows; the first is the default. Empty: cannot be saved.
    const FORMATS: &'static [&'static str] = &[];

    /// Whether the value reads files after the node that made it has finished: weights that are loaded when they are first
    /// used. A node that uses it then depends on these files too, and they are compared before its results are kept.
    const LAZY: bool = false;

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
            "{} cannot be written as .{format}",
            crate::base::suggest::a(&[Self::TYPE])
        )))
    }

    /// Whether it holds memory of a compute device other than the host's.
    fn on_device(&self) -> bool {
        false
    }

    /// Whether it holds memory of the compute device of that environment, where that is not the host's.
    fn is_on(&self, environment: &Environment) -> bool {
        let _ = environment;
        false
    }

    /// The same value in the host's memory; `None` when it is there already.
    ///
    /// # Errors
    /// When the device fails.
    fn to_host(&self) -> Result<Option<Self>, NodeError>
    where
        Self: Sized,
    {
        Ok(None)
    }

    /// The same value on the compute device of the run's environment; `None` when it is where it is computed with.
    ///
    /// # Errors
    /// When the device fails or has no room.
    fn to_device(&self, environment: &Environment) -> Result<Option<Self>, NodeError>
    where
        Self: Sized,
    {
        let _ = environment;
        Ok(None)
    }

    /// Releases what none of these ops needs, the ones that are still to use the value in this run. It is called when one
    /// of those that used it is done, and the value is not shared: by no cache, by no other value.
    fn trim(&self, consumers: &[&'static str]) {
        let _ = consumers;
    }

    /// The value as bytes for a disk cache, safetensors for tensors; `None` for a type that is not kept there.
    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        None
    }

    /// The value again, in the host's memory, bit for bit.
    ///
    /// # Errors
    /// When the bytes are not what [`Payload::to_disk`] gave.
    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError>
    where
        Self: Sized,
    {
        let _ = bytes;
        Err(NodeError::failed(format!(
            "{} cannot be kept on disk",
            crate::base::suggest::a(&[Self::TYPE])
        )))
    }
}

/// Reads a value back from a disk cache.
type Decoder = fn(&[u8]) -> Result<Value, NodeError>;

/// The types of value that can be read from a disk cache, by name.
#[derive(Clone, Debug, Default)]
pub struct Decoders(BTreeMap<&'static str, Decoder>);

impl Decoders {
    /// Knows no type.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a type.
    #[must_use]
    pub fn with<T: Payload>(mut self) -> Self {
        self.0
            .insert(T::TYPE, |bytes| T::from_disk(bytes).map(Value::new));
        self
    }

    /// The value of that type.
    ///
    /// # Errors
    /// When the type is not known, or the bytes are not its.
    pub fn decode(&self, type_name: &str, bytes: &[u8]) -> Result<Value, NodeError> {
        match self.0.get(type_name) {
            Some(decode) => decode(bytes),
            None => Err(NodeError::failed(format!(
                "no value of type {type_name:?} is kept on disk"
            ))),
        }
    }
}

/// The object-safe side of [`Payload`].
trait Erased: Any + Send + Sync {
    fn type_name(&self) -> &'static str;
    fn formats(&self) -> &'static [&'static str];
    fn is_lazy(&self) -> bool;
    fn bytes(&self) -> usize;
    fn summary(&self) -> String;
    fn encode(&self, format: &str) -> Result<Vec<Vec<u8>>, NodeError>;
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    fn on_device(&self) -> bool;
    fn is_on(&self, environment: &Environment) -> bool;
    fn to_host(&self) -> Result<Option<Value>, NodeError>;
    fn to_device(&self, environment: &Environment) -> Result<Option<Value>, NodeError>;
    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>>;
    fn trim(&self, consumers: &[&'static str]);
}

impl<T: Payload> Erased for T {
    fn type_name(&self) -> &'static str {
        T::TYPE
    }
    fn formats(&self) -> &'static [&'static str] {
        T::FORMATS
    }
    fn is_lazy(&self) -> bool {
        T::LAZY
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
    fn trim(&self, consumers: &[&'static str]) {
        Payload::trim(self, consumers);
    }
    fn on_device(&self) -> bool {
        Payload::on_device(self)
    }
    fn is_on(&self, environment: &Environment) -> bool {
        Payload::is_on(self, environment)
    }
    fn to_host(&self) -> Result<Option<Value>, NodeError> {
        Ok(Payload::to_host(self)?.map(Value::new))
    }
    fn to_device(&self, environment: &Environment) -> Result<Option<Value>, NodeError> {
        Ok(Payload::to_device(self, environment)?.map(Value::new))
    }
    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        Payload::to_disk(self)
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

    /// Whether the payload may still read files; see [`Payload::LAZY`].
    #[must_use]
    pub fn is_lazy(&self) -> bool {
        self.0.is_lazy()
    }

    /// Bytes of memory that the payload holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// Releases what none of these ops needs, unless the payload is shared; see [`Payload::trim`].
    pub fn trim(&self, consumers: &[&'static str]) {
        if Arc::strong_count(&self.0) == 1 {
            self.0.trim(consumers);
        }
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

    /// Whether the payload holds memory of a compute device other than the host's.
    #[must_use]
    pub fn on_device(&self) -> bool {
        self.0.on_device()
    }

    /// Whether the payload holds memory of the compute device of that environment, where that is not the host's.
    #[must_use]
    pub fn is_on(&self, environment: &Environment) -> bool {
        self.0.is_on(environment)
    }

    /// The value in the host's memory.
    ///
    /// # Errors
    /// When the device fails.
    pub fn to_host(&self) -> Result<Self, NodeError> {
        Ok(self.0.to_host()?.unwrap_or_else(|| self.clone()))
    }

    /// The value where it is computed with.
    ///
    /// # Errors
    /// When the device fails or has no room.
    pub fn to_device(&self, environment: &Environment) -> Result<Self, NodeError> {
        Ok(self
            .0
            .to_device(environment)?
            .unwrap_or_else(|| self.clone()))
    }

    /// The payload as bytes for a disk cache; `None` for a type that is not kept there.
    #[must_use]
    pub fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        self.0.to_disk()
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({})", self.summary())
    }
}
