//! Where a training stands, for the cache alone: no port has it.

use std::collections::BTreeMap;

use retouch_diffusion::training::optimizer::Moments;
use retouch_diffusion::training::trainer::{State, StepReport};
use retouch_graph::{NodeError, Payload};

use crate::payload::tensors::{self, Entry};

/// All that the next step of a training depends on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TrainingState(pub State);

/// The metadata keys of the step and of the steps' reports.
const STEP: &str = "step";
const REPORTS: &str = "reports";

fn bytes_of(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// What `prefix/name` is of: the prefix and the name.
fn parted(name: &str) -> Option<(&str, &str)> {
    name.split_once('/')
}

impl TrainingState {
    fn file(&self) -> Result<Vec<u8>, NodeError> {
        let State {
            step,
            values,
            moments,
            ema,
            reports,
        } = &self.0;
        let mut all: Vec<(String, &str, Vec<u8>)> = Vec::new();
        for (name, numbers) in values {
            all.push((format!("value/{name}"), "F32", bytes_of(numbers)));
        }
        for (name, numbers) in ema {
            all.push((format!("ema/{name}"), "F32", bytes_of(numbers)));
        }
        for (name, moments) in moments {
            let mut put =
                |part: &str, dtype, bytes| all.push((format!("{part}/{name}"), dtype, bytes));
            match moments {
                Moments::Full(first, second) => {
                    put("first", "F32", bytes_of(first));
                    put("second", "F32", bytes_of(second));
                }
                Moments::Quantised { first, second } => {
                    put("first8", "U8", first.0.clone());
                    put("first8_scale", "F32", bytes_of(&first.1));
                    put("second8", "U8", second.0.clone());
                    put("second8_scale", "F32", bytes_of(&second.1));
                }
            }
        }
        let failed = |e: serde_json::Error| NodeError::failed(e.to_string());
        let rows: Vec<_> = reports
            .iter()
            .map(|r| (r.step, r.loss, r.prior, r.rate, r.norm))
            .collect();
        let metadata = BTreeMap::from([
            (STEP.to_owned(), step.to_string()),
            (
                REPORTS.to_owned(),
                serde_json::to_string(&rows).map_err(failed)?,
            ),
        ]);
        let shapes: Vec<[usize; 1]> = all
            .iter()
            .map(|(_, dtype, bytes)| {
                [if *dtype == "U8" {
                    bytes.len()
                } else {
                    bytes.len() / 4
                }]
            })
            .collect();
        let entries = all
            .iter()
            .zip(&shapes)
            .map(|((name, dtype, bytes), shape)| Entry {
                name,
                dtype,
                shape,
                bytes,
            });
        tensors::write(entries, &metadata)
    }
}

impl Payload for TrainingState {
    const TYPE: &'static str = "training_state";

    fn bytes(&self) -> usize {
        let State {
            values,
            moments,
            ema,
            ..
        } = &self.0;
        let numbers = values.values().chain(ema.values()).map(Vec::len);
        numbers.sum::<usize>() * 4 + moments.values().map(Moments::bytes).sum::<usize>()
    }

    fn summary(&self) -> String {
        format!("training at step {}", self.0.step)
    }

    fn to_disk(&self) -> Option<Result<Vec<u8>, NodeError>> {
        Some(self.file())
    }

    fn from_disk(bytes: &[u8]) -> Result<Self, NodeError> {
        let bad = || NodeError::failed("not the state of a training");
        let read = tensors::read(bytes)?;
        let known = |name: &str| read.metadata.get(name).ok_or_else(bad);
        let rows: Vec<(u64, f64, Option<f64>, f64, f64)> =
            serde_json::from_str(known(REPORTS)?).map_err(|_| bad())?;
        let mut state = State {
            step: known(STEP)?.parse().map_err(|_| bad())?,
            reports: rows
                .into_iter()
                .map(|(step, loss, prior, rate, norm)| StepReport {
                    step,
                    loss,
                    prior,
                    rate,
                    norm,
                })
                .collect(),
            ..State::default()
        };
        let mut parts: BTreeMap<String, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
        for (name, (_, _, bytes)) in read.tensors {
            let (part, name) = parted(&name).ok_or_else(bad)?;
            match part {
                "value" => {
                    state
                        .values
                        .insert(name.to_owned(), tensors::floats(&bytes));
                }
                "ema" => {
                    state.ema.insert(name.to_owned(), tensors::floats(&bytes));
                }
                _ => {
                    let own = parts.entry(name.to_owned()).or_default();
                    own.insert(part.to_owned(), bytes);
                }
            }
        }
        for (name, mut parts) in parts {
            let mut take = |part: &str| parts.remove(part).ok_or_else(bad);
            let moments = match take("first") {
                Ok(first) => {
                    Moments::Full(tensors::floats(&first), tensors::floats(&take("second")?))
                }
                Err(_) => Moments::Quantised {
                    first: (take("first8")?, tensors::floats(&take("first8_scale")?)),
                    second: (take("second8")?, tensors::floats(&take("second8_scale")?)),
                },
            };
            state.moments.insert(name, moments);
        }
        Ok(Self(state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_training_comes_back_from_disk_as_it_was() {
        let state = State {
            step: 7,
            values: BTreeMap::from([("unet/down/a.weight".into(), vec![0.5, -1e-30])]),
            ema: BTreeMap::from([("unet/down/a.weight".into(), vec![0.25, 3.0])]),
            moments: BTreeMap::from([
                ("a/b".into(), Moments::Full(vec![1.0], vec![2.0])),
                (
                    "c".into(),
                    Moments::Quantised {
                        first: (vec![1, 255, 0], vec![0.5]),
                        second: (vec![7, 8, 9], vec![1e-9]),
                    },
                ),
            ]),
            reports: vec![StepReport {
                step: 7,
                loss: 0.1,
                prior: Some(1.0 / 3.0),
                rate: 1e-4,
                norm: 2.0,
            }],
        };
        let bytes = TrainingState(state.clone()).to_disk().unwrap().unwrap();
        let back = TrainingState::from_disk(&bytes).unwrap();
        assert_eq!(back.0, state);
        assert_eq!(back.to_disk().unwrap().unwrap(), bytes);
        assert!(TrainingState::from_disk(&bytes[..bytes.len() - 1]).is_err());
        assert!(TrainingState::from_disk(b"").is_err());
    }
}
