//! What a call of the U-Net gives besides its result: keys, values and queries of a site, or raw maps.

use std::collections::HashMap;

use candle_core::Tensor;
use retouch_graph::{Environment, NodeError, Payload};

use super::tensors::{self, Packed};
use retouch_diffusion::sampling::control::Captured;

/// A part of a call, kept in the cache and never on a port.
#[derive(Debug)]
pub(crate) struct Attention(pub Captured);

/// The name of the grid of keys and values among the metadata.
const GRID: &str = "grid";

impl Attention {
    fn parts(&self) -> Vec<(&'static str, &Tensor)> {
        match &self.0 {
            Captured::KeysValues { k, v, .. } => vec![("k", k), ("v", v)],
            Captured::Queries(q) => vec![("q", q)],
            Captured::Map(map) => vec![("map", map)],
        }
    }

    /// The same with each tensor replaced.
    fn map(
        &self,
        mut f: impl FnMut(&Tensor) -> Result<Option<Tensor>, NodeError>,
    ) -> Result<Option<Self>, NodeError> {
        Ok(match &self.0 {
            Captured::KeysValues { k, v, grid } => f(k)?.zip(f(v)?).map(|(k, v)| {
                let grid = *grid;
                Self(Captured::KeysValues { k, v, grid })
            }),
            Captured::Queries(q) => f(q)?.map(|q| Self(Captured::Queries(q))),
            Captured::Map(map) => f(map)?.map(|map| Self(Captured::Map(map))),
        })
    }

    /// A copy that does not hold on to the whole batch that it is a part of.
    pub(crate) fn of(given: &Captured) -> Result<Self, NodeError> {
        // `Tensor::copy` would copy all that the tensor is a part of.
        let copy = |t: &Tensor| t.force_contiguous().map_err(crate::runtime::tensor_error);
        Ok(Self(match given {
            Captured::KeysValues { k, v, grid } => Captured::KeysValues {
                k: copy(k)?,
                v: copy(v)?,
                grid: *grid,
            },
            Captured::Queries(q) => Captured::Queries(copy(q)?),
            Captured::Map(map) => Captured::Map(copy(map)?),
        }))
    }
}

impl Payload for Attention {
    const TYPE: &'static str = "attention";

    fn bytes(&self) -> usize {
        self.parts().iter().map(|(_, t)| t.elem_count() * 4).sum()
    }

    fn summary(&self) -> String {
        let names: Vec<&str> = self.parts().iter().map(|(name, _)| *name).collect();
        format!("attention: {}", names.join(", "))
    }

    fn on_device(&self) -> bool {
        self.parts().iter().any(|(_, t)| tensors::on_device(t))
    }

    fn is_on(&self, environment: &Environment) -> bool {
        self.parts()
            .iter()
            .any(|(_, t)| tensors::is_on(t, environment))
    }

    fn to_host(&self) -> Result<Option<Self>, NodeError> {
        self.map(|t| {
            tensors::on_device(t)
                .then(|| tensors::to_host(t))
                .transpose()
        })
    }

    fn to_device(&self, environment: &Environment) -> Result<Option<Self>, NodeError> {
        self.map(|t| tensors::to_device(t, environment))
    }

    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        let mut metadata = HashMap::new();
        if let Captured::KeysValues { grid, .. } = &self.0 {
            metadata.insert(GRID.to_owned(), format!("[{},{}]", grid.0, grid.1));
        }
        Some(tensors::pack(&self.parts(), metadata))
    }

    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError> {
        let mut packed = Packed::read(bytes)?;
        Ok(Self(if packed.tensors.contains_key("k") {
            Captured::KeysValues {
                grid: packed.know(GRID)?,
                k: packed.take("k")?,
                v: packed.take("v")?,
            }
        } else if packed.tensors.contains_key("q") {
            Captured::Queries(packed.take("q")?)
        } else {
            Captured::Map(packed.take("map")?)
        }))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::payload::tensors::numbers_held;

    #[test]
    fn a_copy_is_as_large_as_the_part() {
        let all = Tensor::arange(0f32, 240.0, &Device::Cpu).unwrap();
        let all = all.reshape((8, 5, 6)).unwrap();
        let part = all.narrow(0, 3, 2).unwrap();
        let given = Captured::KeysValues {
            k: part.clone(),
            v: Tensor::zeros((2, 5, 6), DType::F32, &Device::Cpu).unwrap(),
            grid: (1, 5),
        };
        let copy = Attention::of(&given).unwrap();
        assert_eq!(copy.bytes(), 2 * 60 * 4);
        for (name, tensor) in copy.parts() {
            assert_eq!(numbers_held(tensor), 60, "{name}");
        }
        let numbers = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(numbers(copy.parts()[0].1), numbers(&part));
    }
}
