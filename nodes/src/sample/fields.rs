//! Parameters of samplers that the language writes in a way of their own.

use std::borrow::Cow;
use std::fmt;

use retouch_graph::fields::share_of;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use retouch_diffusion::sampling::solver::{Sigmas, Solver};

/// A scheduler: by its name, or the checkpoint's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum SchedulerField {
    /// DDIM.
    #[default]
    Ddim,
    /// Euler.
    Euler,
    /// Euler with ancestral noise.
    EulerAncestral,
    /// Heun: two evaluations of the network a step.
    Heun,
    /// The linear multistep method of order 4.
    Lms,
    /// PNDM without Runge-Kutta steps: PLMS.
    Pndm,
    /// DPM++ 2M.
    #[serde(rename = "dpmpp_2m")]
    Dpmpp2m,
    /// DPM++ 3M.
    #[serde(rename = "dpmpp_3m")]
    Dpmpp3m,
    /// DPM++ 2M SDE: adds noise at each step.
    #[serde(rename = "dpmpp_2m_sde")]
    Dpmpp2mSde,
    /// DPM++ 3M SDE: adds noise at each step.
    #[serde(rename = "dpmpp_3m_sde")]
    Dpmpp3mSde,
    /// DPM++ 2S.
    #[serde(rename = "dpmpp_2s")]
    Dpmpp2s,
    /// DPM++ SDE: adds noise, two evaluations of the network a step.
    DpmppSde,
    /// UniPC.
    Unipc,
    /// LCM, for latent consistency models: adds noise at each step.
    Lcm,
    /// The class and the options of the checkpoint's scheduler_config.json.
    Checkpoint,
}

impl SchedulerField {
    /// The solver of that name; `None` for the checkpoint's own.
    #[must_use]
    pub fn solver(self) -> Option<Solver> {
        Some(match self {
            Self::Ddim => Solver::Ddim,
            Self::Euler => Solver::Euler,
            Self::EulerAncestral => Solver::EulerAncestral,
            Self::Heun => Solver::Heun,
            Self::Lms => Solver::Lms,
            Self::Pndm => Solver::Pndm,
            Self::Dpmpp2m => Solver::Dpmpp2m,
            Self::Dpmpp3m => Solver::Dpmpp3m,
            Self::Dpmpp2mSde => Solver::Dpmpp2mSde,
            Self::Dpmpp3mSde => Solver::Dpmpp3mSde,
            Self::Dpmpp2s => Solver::Dpmpp2s,
            Self::DpmppSde => Solver::DpmppSde,
            Self::Unipc => Solver::Unipc,
            Self::Lcm => Solver::Lcm,
            Self::Checkpoint => return None,
        })
    }

    /// Whether it is the default, which is left out of keys.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The sigmas that `sigmas` and `karras` ask for, if either does.
pub(crate) fn sigmas_of(sigmas: Option<Sigmas>, karras: Option<bool>) -> Option<Sigmas> {
    sigmas.or(karras.map(|on| match on {
        true => Sigmas::Karras,
        false => Sigmas::Training,
    }))
}

/// Whether a number is the 0 that is left out of keys.
pub(crate) fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

/// How much of a picture is drawn anew: a number from 0 to 1, or a share such as `60%`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Strength(f64);

impl Strength {
    /// The share, 0 to 1.
    #[must_use]
    pub fn share(self) -> f64 {
        self.0
    }

    /// The first of T steps that is made: T less the share of T, rounded down. The share is decimal: 29% of 100 steps are
    /// 29, where diffusers' `int(100 * 0.29)` is 28.
    #[must_use]
    pub fn first(self, steps: usize) -> usize {
        let (part, of) = share_of(self.0, steps);
        let made = usize::try_from(part / of).unwrap_or(usize::MAX);
        steps - made.min(steps)
    }
}

impl fmt::Display for Strength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Strength {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // One spelling for each share, so that equal shares give equal keys.
        serializer.serialize_f64(self.0)
    }
}

struct StrengthVisitor;

impl Visitor<'_> for StrengthVisitor {
    type Value = Strength;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number from 0 to 1 or a share such as `60%`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Strength, E> {
        text.strip_suffix('%')
            .filter(|number| number.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
            // Shifted as text, so that `29.3%` and 0.293 are one number.
            .and_then(|number| format!("{number}e-2").parse::<f64>().ok())
            .filter(|share| (0.0..=1.0).contains(share))
            .map(Strength)
            .ok_or_else(|| {
                E::custom(format!(
                    "a strength is a number from 0 to 1, `0.6`, or a share, `60%`, not {text:?}"
                ))
            })
    }

    fn visit_f64<E: de::Error>(self, share: f64) -> Result<Strength, E> {
        if (0.0..=1.0).contains(&share) {
            Ok(Strength(share))
        } else {
            Err(E::custom(format!(
                "a strength is a number from 0 to 1 or a share such as `60%`, not {share}"
            )))
        }
    }

    fn visit_u64<E: de::Error>(self, share: u64) -> Result<Strength, E> {
        self.visit_f64(share as f64)
    }

    fn visit_i64<E: de::Error>(self, share: i64) -> Result<Strength, E> {
        self.visit_f64(share as f64)
    }
}

impl<'de> Deserialize<'de> for Strength {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrengthVisitor)
    }
}

impl JsonSchema for Strength {
    fn schema_name() -> Cow<'static, str> {
        "Strength".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            {"type": "number", "minimum": 0, "maximum": 1},
            {"type": "string", "format": "steps", "pattern": r"^[0-9]+(\.[0-9]+)?%$"}
        ]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_solver_has_its_name_in_the_language() {
        for solver in Solver::ALL {
            let name = format!("\"{}\"", solver.name());
            let field: SchedulerField = serde_json::from_str(&name).unwrap();
            assert_eq!(field.solver(), Some(solver));
        }
    }

    #[test]
    fn a_strength_is_a_number_or_a_share_and_is_rounded_down_to_steps() {
        let read = |text: &str| serde_json::from_str::<Strength>(text);
        assert_eq!(read("\"60%\"").unwrap(), read("0.6").unwrap());
        assert_eq!(read("1").unwrap().first(20), 0);
        assert_eq!(read("0").unwrap().first(20), 20);
        assert_eq!(read("0.6").unwrap().first(20), 8);
        assert_eq!(read("0.6").unwrap().first(7), 3); // int(4.2) steps are made
        assert_eq!(read("0.58").unwrap().first(50), 21); // 28.999999999999996 in binary
        assert_eq!(read("\"29%\"").unwrap().first(100), 71); // 28.999999999999996 too
        for tenths in 0..=1000usize {
            let share = read(&format!("\"{}.{}%\"", tenths / 10, tenths % 10)).unwrap();
            assert_eq!(share, read(&format!("{}", tenths as f64 / 1000.0)).unwrap());
            for steps in 1..=200 {
                assert_eq!(
                    steps - share.first(steps),
                    tenths * steps / 1000,
                    "{share} of {steps}"
                );
            }
        }
        for wrong in ["1.5", "-0.1", "\"120%\"", "\"x\"", "\"-1%\"", "60", "true"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
