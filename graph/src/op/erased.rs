//! A node without its type, as the engine holds it.

use std::any::Any;
use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::base::error::{Fault, NodeError};
use crate::files::Files;
use crate::op::chain::{Chained, Upstream};
use crate::op::node::{Context, Node, ReadFile};
use crate::value::port::{KnownPorts, PortValues, Ports, Types};
use crate::value::value::Value;

/// What a node's check says of its outputs, and its warnings; or its faults.
pub(crate) type Findings = Result<(KnownPorts, Vec<Fault>), Vec<Fault>>;

/// The engine's side of a node: without its type.
pub(crate) trait ErasedNode: Send + Sync {
    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>>;
    fn check(&self, inputs: KnownPorts, files: &dyn Files) -> Findings;
    fn run(
        &self,
        inputs: PortValues,
        context: &Context<'_>,
    ) -> Result<BTreeMap<&'static str, Value>, NodeError>;
    fn params(&self) -> Result<Json, String>;
    fn chain(&self, upstream: &Upstream<'_>) -> Chained;
    fn as_any(&self) -> &dyn Any;
}

impl<N: Node> ErasedNode for N {
    fn reads(&self, files: &dyn Files) -> Result<Vec<ReadFile>, Vec<Fault>> {
        Node::reads(self, files)
    }

    fn check(&self, inputs: KnownPorts, files: &dyn Files) -> Findings {
        Node::check(self, &Types::from_known(inputs), files).map(Types::into_parts)
    }

    fn run(
        &self,
        inputs: PortValues,
        context: &Context<'_>,
    ) -> Result<BTreeMap<&'static str, Value>, NodeError> {
        let inputs = N::Inputs::from_values(inputs)?;
        Node::run(self, inputs, context).map(Ports::into_values)
    }

    fn params(&self) -> Result<Json, String> {
        serde_json::to_value(self).map_err(|error| error.to_string())
    }

    fn chain(&self, upstream: &Upstream<'_>) -> Chained {
        Node::chain(self, upstream)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A parameter that serde refuses: which one, and why.
pub(crate) struct Refusal {
    pub(crate) path: Vec<PathStep>,
    pub(crate) message: String,
}

/// A step of the path to a value inside a parameter.
pub(crate) enum PathStep {
    Key(String),
    Index(usize),
}

/// Reads the parameters of an op.
pub(super) fn make<N: Node>(params: &Json) -> Result<Box<dyn ErasedNode>, Refusal> {
    match serde_path_to_error::deserialize::<_, N>(params) {
        Ok(node) => Ok(Box::new(node)),
        Err(error) => {
            use serde_path_to_error::Segment;
            let path = error
                .path()
                .iter()
                .filter_map(|segment| match segment {
                    Segment::Seq { index } => Some(PathStep::Index(*index)),
                    Segment::Map { key } => Some(PathStep::Key(key.clone())),
                    Segment::Enum { .. } | Segment::Unknown => None,
                })
                .collect();
            Err(Refusal {
                path,
                message: error.into_inner().to_string(),
            })
        }
    }
}
