//! The solver state of a multistep scheduler beside a latent, for the cache alone: no port has it.

use std::collections::HashMap;

use candle_core::Tensor;
use retouch_graph::{Environment, NodeError, Payload};

use super::tensors::{self, Packed};

/// What earlier steps gave that later ones need, in the solver's own order: at most four tensors.
#[derive(Debug)]
pub(crate) struct SolverState(pub Vec<Tensor>);

/// The names that the tensors have on disk.
const NAMES: [&str; 4] = ["0", "1", "2", "3"];

impl Payload for SolverState {
    // As it was first called: the tag is on disks.
    const TYPE: &'static str = "past";

    fn bytes(&self) -> usize {
        self.0.iter().map(|t| t.elem_count() * 4).sum()
    }

    fn summary(&self) -> String {
        format!("solver state: {} tensors", self.0.len())
    }

    fn on_device(&self) -> bool {
        self.0.iter().any(tensors::on_device)
    }

    fn is_on(&self, environment: &Environment) -> bool {
        self.0.iter().any(|t| tensors::is_on(t, environment))
    }

    fn to_host(&self) -> Result<Option<Self>, NodeError> {
        if !Payload::on_device(self) {
            return Ok(None);
        }
        let all = self.0.iter().map(tensors::to_host);
        Ok(Some(Self(all.collect::<Result<_, _>>()?)))
    }

    fn to_device(&self, environment: &Environment) -> Result<Option<Self>, NodeError> {
        Ok(tensors::all_to_device(&self.0, environment)?.map(Self))
    }

    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        let named: Vec<(&str, &Tensor)> = NAMES.into_iter().zip(&self.0).collect();
        if named.len() < self.0.len() {
            return None;
        }
        Some(tensors::pack(&named, HashMap::new()))
    }

    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError> {
        let mut packed = Packed::read(bytes)?;
        let count = packed.tensors.len();
        let names = NAMES.into_iter().take(count);
        let all: Vec<Tensor> = names
            .map(|name| packed.take(name))
            .collect::<Result<_, _>>()?;
        if all.is_empty() || !packed.tensors.is_empty() {
            return Err(NodeError::failed("not solver state"));
        }
        Ok(Self(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn solver_state_comes_back_from_disk_in_its_order() {
        let tensor = |value: f32| Tensor::full(value, (1, 2, 3, 4), &Device::Cpu).unwrap();
        let bytes = SolverState(vec![tensor(0.5), tensor(-2.0)])
            .to_disk()
            .unwrap()
            .unwrap();
        let back = SolverState::from_disk(&bytes).unwrap();
        let first = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
        assert_eq!(back.0.iter().map(first).collect::<Vec<_>>(), [0.5, -2.0]);
        assert!(SolverState::from_disk(&bytes[..bytes.len() - 1]).is_err());
        assert!(SolverState::from_disk(b"").is_err());
    }
}
