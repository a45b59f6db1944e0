//! Typed ports: structs for the authors of nodes, data for the engine.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::base::error::Fault;
use crate::base::error::NodeError;
use crate::value::payload::{Payload, Value};

/// What is known of each link of each port.
pub(crate) type KnownPorts = BTreeMap<&'static str, Vec<Known>>;

/// How many links a port takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Arity {
    /// Exactly one: `model: $base`.
    One,
    /// One or none.
    Optional,
    /// A list: `images: [$a, $b]`; a single reference is a list of one.
    Many,
}

/// A port as data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortSpec {
    /// The port's name in the language.
    pub name: &'static str,
    /// The types of value that it takes (an input) or may give (an output), at least one.
    pub types: &'static [&'static str],
    /// How many links it takes. For an output, `Optional`: not given at every run.
    pub arity: Arity,
    /// Its documentation, from the doc comment.
    pub docs: &'static str,
    /// File endings that its values can be saved as; `None` when that is known only once the value is there.
    pub formats: Option<&'static [&'static str]>,
    /// Whether an input is part of its node's key even when nothing is linked to it.
    #[serde(skip)]
    pub keyed: bool,
    /// Whether its values may read files after the node that made them has finished; see [`Payload::LAZY`].
    #[serde(skip)]
    pub lazy: bool,
}

/// What one field of a port struct can be: `Arc<T>`, `Option<Arc<T>>`, `Vec<Arc<T>>`, or a type of one's own.
pub trait PortField: Sized + Send {
    /// The types of value that the field takes.
    const TYPES: &'static [&'static str];
    /// How many of them.
    const ARITY: Arity;
    /// File endings that the value can be saved as; `None`: not known before the value is there.
    const FORMATS: Option<&'static [&'static str]> = None;
    /// Whether an input is part of its node's key even when nothing is linked to it.
    const KEYED: bool = true;
    /// Whether the value may read files after the node that made it has finished; see [`Payload::LAZY`].
    const LAZY: bool = false;

    /// Makes the field from the values that are linked to the port `name`.
    ///
    /// # Errors
    /// When the number or the type of the values does not fit.
    fn take(name: &'static str, values: Vec<Value>) -> Result<Self, NodeError>;

    /// The field's value as an output; `None` when it was not made.
    fn give(self) -> Option<Value>;
}

/// A value that a single-valued port can take; implement it for an enum to take several types.
pub trait FromValue: Sized + Send {
    /// The types that can be taken.
    const TYPES: &'static [&'static str];
    /// File endings that the value can be saved as; `None`: not known before the value is there.
    const FORMATS: Option<&'static [&'static str]> = None;
    /// Whether the value may read files after the node that made it has finished; see [`Payload::LAZY`].
    const LAZY: bool = false;
    /// Takes the value, or `None` when its type is not one of [`FromValue::TYPES`].
    fn from_value(value: &Value) -> Option<Self>;
    /// The value again.
    fn into_value(self) -> Value;
}

impl<T: Payload> FromValue for Arc<T> {
    const TYPES: &'static [&'static str] = &[T::TYPE];
    const FORMATS: Option<&'static [&'static str]> = Some(T::FORMATS);
    const LAZY: bool = T::LAZY;
    fn from_value(value: &Value) -> Option<Self> {
        value.downcast::<T>()
    }
    fn into_value(self) -> Value {
        Value::from_arc(self)
    }
}

fn convert<F: FromValue>(name: &'static str, value: &Value) -> Result<F, NodeError> {
    F::from_value(value).ok_or_else(|| {
        NodeError::failed(format!(
            "the port `{name}` takes {}, not a {}",
            F::TYPES.join(" or "),
            value.type_name()
        ))
    })
}

impl<F: FromValue> PortField for F {
    const TYPES: &'static [&'static str] = F::TYPES;
    const ARITY: Arity = Arity::One;
    const FORMATS: Option<&'static [&'static str]> = F::FORMATS;
    const LAZY: bool = F::LAZY;
    fn take(name: &'static str, values: Vec<Value>) -> Result<Self, NodeError> {
        match values.as_slice() {
            [value] => convert(name, value),
            other => Err(NodeError::failed(format!(
                "the port `{name}` takes one value, not {}",
                other.len()
            ))),
        }
    }
    fn give(self) -> Option<Value> {
        Some(self.into_value())
    }
}

impl<F: FromValue> PortField for Option<F> {
    const TYPES: &'static [&'static str] = F::TYPES;
    const ARITY: Arity = Arity::Optional;
    const FORMATS: Option<&'static [&'static str]> = F::FORMATS;
    const LAZY: bool = F::LAZY;
    fn take(name: &'static str, values: Vec<Value>) -> Result<Self, NodeError> {
        match values.as_slice() {
            [] => Ok(None),
            [value] => convert(name, value).map(Some),
            other => Err(NodeError::failed(format!(
                "the port `{name}` takes one value, not {}",
                other.len()
            ))),
        }
    }
    fn give(self) -> Option<Value> {
        self.map(FromValue::into_value)
    }
}

impl<F: FromValue> PortField for Vec<F> {
    const TYPES: &'static [&'static str] = F::TYPES;
    const ARITY: Arity = Arity::Many;
    const FORMATS: Option<&'static [&'static str]> = F::FORMATS;
    const LAZY: bool = F::LAZY;
    fn take(name: &'static str, values: Vec<Value>) -> Result<Self, NodeError> {
        values.iter().map(|value| convert(name, value)).collect()
    }
    fn give(self) -> Option<Value> {
        None // an output is one value; the `ports!` macro is not used for lists of outputs
    }
}

/// One value or none, of an input that was added to an op later: where nothing is linked, the node's key is the one that
/// it had without the port, so that cached results stay valid.
#[derive(Clone, Debug)]
pub struct Added<F>(pub Option<F>);

impl<F: FromValue> PortField for Added<F> {
    const TYPES: &'static [&'static str] = F::TYPES;
    const ARITY: Arity = Arity::Optional;
    const FORMATS: Option<&'static [&'static str]> = F::FORMATS;
    const LAZY: bool = F::LAZY;
    const KEYED: bool = false;
    fn take(name: &'static str, values: Vec<Value>) -> Result<Self, NodeError> {
        <Option<F> as PortField>::take(name, values).map(Self)
    }
    fn give(self) -> Option<Value> {
        self.0.give()
    }
}

/// Any number of values, of an input that was added to an op later; see [`Added`].
#[derive(Clone, Debug, Default)]
pub struct AddedList<F>(pub Vec<F>);

impl<F: FromValue> PortField for AddedList<F> {
    const TYPES: &'static [&'static str] = F::TYPES;
    const ARITY: Arity = Arity::Many;
    const FORMATS: Option<&'static [&'static str]> = F::FORMATS;
    const LAZY: bool = F::LAZY;
    const KEYED: bool = false;
    fn take(name: &'static str, values: Vec<Value>) -> Result<Self, NodeError> {
        <Vec<F> as PortField>::take(name, values).map(Self)
    }
    fn give(self) -> Option<Value> {
        self.0.give()
    }
}

/// The values that are linked to a node's input ports, by port name.
pub type PortValues = BTreeMap<&'static str, Vec<Value>>;

/// A struct whose fields are ports; made by [`ports!`](crate::ports).
pub trait Ports: Sized + Send + 'static {
    /// The ports in the order of declaration; the first output is the node's default port.
    fn specs() -> &'static [PortSpec];

    /// Makes the struct from the linked values.
    ///
    /// # Errors
    /// When a value is missing or of another type (the checker has excluded both).
    fn from_values(values: PortValues) -> Result<Self, NodeError>;

    /// The values that were made, by port name; a port that was not made is left out.
    fn into_values(self) -> BTreeMap<&'static str, Value>;
}

/// What is known of the value behind a port before anything runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Known {
    /// Only its type.
    #[default]
    Unknown,
    /// Facts that the producing node gave (a model's family, a latent's size), as JSON. They are shared: a sweep of thousands of cells
    /// has those of its model once.
    Facts(Arc<serde_json::Value>),
    /// The producing node, as it is set up, will not make this value; the text says why and what to change.
    Absent(String),
}

/// What is known of a node's inputs or outputs before anything runs.
#[derive(Debug)]
pub struct Types<P> {
    ports: BTreeMap<&'static str, Vec<Known>>,
    warnings: Vec<Fault>,
    marker: PhantomData<fn() -> P>,
}

impl<P: Ports> Types<P> {
    /// Nothing is known of any port, and none is linked.
    #[must_use]
    pub fn unknown() -> Self {
        Self {
            ports: BTreeMap::new(),
            warnings: Vec::new(),
            marker: PhantomData,
        }
    }

    /// The engine's side: what is known of each link of each port.
    #[must_use]
    pub fn from_known(ports: BTreeMap<&'static str, Vec<Known>>) -> Self {
        Self {
            ports,
            warnings: Vec::new(),
            marker: PhantomData,
        }
    }

    /// The engine's side: everything that is known.
    #[must_use]
    pub fn into_known(self) -> BTreeMap<&'static str, Vec<Known>> {
        self.ports
    }

    /// The engine's side: everything that is known, and the warnings.
    pub(crate) fn into_parts(self) -> (BTreeMap<&'static str, Vec<Known>>, Vec<Fault>) {
        (self.ports, self.warnings)
    }

    /// The warnings given so far.
    #[must_use]
    pub fn warnings(&self) -> &[Fault] {
        &self.warnings
    }

    /// Whether anything is linked to the input port `name`.
    #[must_use]
    pub fn is_linked(&self, name: &str) -> bool {
        self.ports.get(name).is_some_and(|links| !links.is_empty())
    }

    /// The number of links of the input port `name`.
    #[must_use]
    pub fn links(&self, name: &str) -> usize {
        self.ports.get(name).map_or(0, Vec::len)
    }

    /// The facts of the (first) value behind `name`; `None` when nothing is known or they are not of type `F`.
    #[must_use]
    pub fn facts<F: DeserializeOwned>(&self, name: &str) -> Option<F> {
        self.facts_at(name, 0)
    }

    /// The facts of value `index` of a port that takes a list.
    #[must_use]
    pub fn facts_at<F: DeserializeOwned>(&self, name: &str, index: usize) -> Option<F> {
        match self.ports.get(name)?.get(index)? {
            Known::Facts(facts) => F::deserialize(&**facts).ok(),
            _ => None,
        }
    }

    /// States facts of the output `name`.
    #[must_use]
    pub fn with(mut self, name: &'static str, facts: &impl Serialize) -> Self {
        let known = serde_json::to_value(facts)
            .map_or(Known::Unknown, |facts| Known::Facts(Arc::new(facts)));
        self.ports.insert(name, vec![known]);
        self
    }

    /// States that the output `name` will not be made, and why: "`invert` makes `report` when `measure: true`".
    #[must_use]
    pub fn without(mut self, name: &'static str, reason: impl Into<String>) -> Self {
        self.ports.insert(name, vec![Known::Absent(reason.into())]);
        self
    }

    /// Adds warnings of the node's check: the node runs, but something in a parameter is not as it seems. They are reported
    /// where the parameter is written, with the code R0703 whatever their kind.
    #[must_use]
    pub fn warn(mut self, warnings: impl IntoIterator<Item = Fault>) -> Self {
        self.warnings.extend(warnings);
        self
    }
}

/// Declares a struct of ports. Field types: `Arc<T>`, `Option<Arc<T>>`, `Vec<Arc<T>>` with `T: Payload`, or any
/// [`PortField`]. Doc comments become the ports' documentation.
///
/// ```
/// # use std::sync::Arc;
/// # use retouch_graph::{Payload, Ports, ports};
/// # struct Latent;
/// # impl Payload for Latent {
/// #     const TYPE: &'static str = "latent";
/// #     fn bytes(&self) -> usize { 0 }
/// #     fn summary(&self) -> String { String::new() }
/// # }
/// ports! {
///     /// What an inversion needs.
///     pub struct Inputs {
///         /// The latent to invert.
///         pub latent: Arc<Latent>,
///     }
/// }
/// assert_eq!(Inputs::specs()[0].docs, "The latent to invert.");
/// ```
#[macro_export]
macro_rules! ports {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $( $(#[doc = $docs:literal])* $field_vis:vis $field:ident : $kind:ty ),* $(,)?
        }
    ) => {
        $(#[$meta])*
        $vis struct $name { $( $(#[doc = $docs])* $field_vis $field: $kind ),* }

        impl $crate::Ports for $name {
            fn specs() -> &'static [$crate::PortSpec] {
                const SPECS: &[$crate::PortSpec] = &[ $( $crate::PortSpec {
                    name: stringify!($field),
                    types: <$kind as $crate::PortField>::TYPES,
                    arity: <$kind as $crate::PortField>::ARITY,
                    docs: concat!($($docs, "\n"),*).trim_ascii(),
                    formats: <$kind as $crate::PortField>::FORMATS,
                    keyed: <$kind as $crate::PortField>::KEYED,
                    lazy: <$kind as $crate::PortField>::LAZY,
                } ),* ];
                SPECS
            }

            #[allow(unused_mut, unused_variables)]
            fn from_values(mut values: $crate::PortValues) -> Result<Self, $crate::NodeError> {
                Ok(Self { $( $field: <$kind as $crate::PortField>::take(
                    stringify!($field),
                    values.remove(stringify!($field)).unwrap_or_default(),
                )? ),* })
            }

            fn into_values(self) -> std::collections::BTreeMap<&'static str, $crate::Value> {
                #[allow(unused_mut)]
                let mut values = std::collections::BTreeMap::new();
                $( if let Some(value) = <$kind as $crate::PortField>::give(self.$field) {
                    values.insert(stringify!($field), value);
                } )*
                values
            }
        }
    };
}
