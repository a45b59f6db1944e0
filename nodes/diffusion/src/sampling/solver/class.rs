//! The schedulers by their names, here and in the files of diffusers.

use super::*;

/// The schedulers that are built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Solver {
    /// DDIM (Song et al. 2021), with eta.
    #[default]
    Ddim,
    /// Euler's method on sigma (Karras et al. 2022, algorithm 2 without churn).
    Euler,
    /// The same with ancestral noise: each step goes further down and adds noise again.
    EulerAncestral,
    /// Heun's method on sigma (Karras et al. 2022, algorithm 1): two evaluations a step.
    Heun,
    /// The linear multistep method on sigma, order 4.
    Lms,
    /// Pseudo linear multistep on DDIM's levels, order 4 (Liu et al. 2022, F-PNDM), without Runge-Kutta steps: PLMS.
    Pndm,
    /// DPM-Solver++ (Lu et al. 2022), second order, multistep, midpoint.
    #[serde(rename = "dpmpp_2m")]
    Dpmpp2m,
    /// The same of third order.
    #[serde(rename = "dpmpp_3m")]
    Dpmpp3m,
    /// DPM-Solver++ for the stochastic equation, second order, multistep, midpoint.
    #[serde(rename = "dpmpp_2m_sde")]
    Dpmpp2mSde,
    /// The same of third order.
    #[serde(rename = "dpmpp_3m_sde")]
    Dpmpp3mSde,
    /// DPM-Solver++, second order, singlestep: every other step starts from the latent before the last.
    #[serde(rename = "dpmpp_2s")]
    Dpmpp2s,
    /// DPM-Solver++ for the stochastic equation, second order, singlestep: two evaluations a step.
    DpmppSde,
    /// UniPC (Zhao et al. 2023) of order 2 with B2(h) and the corrector.
    Unipc,
    /// The sampling of latent consistency models (Luo et al. 2023).
    Lcm,
}

impl Solver {
    /// All of them, in the order of the language's page.
    pub const ALL: [Self; 14] = [
        Self::Ddim,
        Self::Euler,
        Self::EulerAncestral,
        Self::Heun,
        Self::Lms,
        Self::Pndm,
        Self::Dpmpp2m,
        Self::Dpmpp3m,
        Self::Dpmpp2mSde,
        Self::Dpmpp3mSde,
        Self::Dpmpp2s,
        Self::DpmppSde,
        Self::Unipc,
        Self::Lcm,
    ];

    /// The name in the language.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddim => "ddim",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler_ancestral",
            Self::Heun => "heun",
            Self::Lms => "lms",
            Self::Pndm => "pndm",
            Self::Dpmpp2m => "dpmpp_2m",
            Self::Dpmpp3m => "dpmpp_3m",
            Self::Dpmpp2mSde => "dpmpp_2m_sde",
            Self::Dpmpp3mSde => "dpmpp_3m_sde",
            Self::Dpmpp2s => "dpmpp_2s",
            Self::DpmppSde => "dpmpp_sde",
            Self::Unipc => "unipc",
            Self::Lcm => "lcm",
        }
    }

    /// The solver of a configuration's class, if it is built.
    #[must_use]
    pub fn of_config(config: &SchedulerConfig) -> Option<Self> {
        let of = &config.sigmas;
        let stochastic = of.algorithm_type.as_deref() == Some("sde-dpmsolver++");
        let third = of.solver_order == Some(3);
        Some(match config.class_name.as_str() {
            "DDIMScheduler" => Self::Ddim,
            "EulerDiscreteScheduler" => Self::Euler,
            "EulerAncestralDiscreteScheduler" => Self::EulerAncestral,
            "HeunDiscreteScheduler" => Self::Heun,
            "LMSDiscreteScheduler" => Self::Lms,
            "PNDMScheduler" => Self::Pndm,
            "DPMSolverMultistepScheduler" => match (stochastic, third) {
                (false, false) => Self::Dpmpp2m,
                (false, true) => Self::Dpmpp3m,
                (true, false) => Self::Dpmpp2mSde,
                (true, true) => Self::Dpmpp3mSde,
            },
            "DPMSolverSinglestepScheduler" => Self::Dpmpp2s,
            "DPMSolverSDEScheduler" => Self::DpmppSde,
            "UniPCMultistepScheduler" => Self::Unipc,
            "LCMScheduler" => Self::Lcm,
            _ => return None,
        })
    }

    /// Whether such sigmas can be had with it.
    #[must_use]
    pub fn takes(self, sigmas: Sigmas) -> bool {
        match sigmas {
            Sigmas::Training => true,
            Sigmas::Karras | Sigmas::Exponential | Sigmas::Beta => !matches!(
                self,
                Self::Ddim | Self::EulerAncestral | Self::Pndm | Self::Lcm
            ),
            Sigmas::Lu => self.is_dpm_multistep(),
        }
    }

    /// How it lays out timesteps by a configuration; one that does not say counts as diffusers' class of this solver has it.
    #[must_use]
    pub fn spacing(self, config: &SchedulerConfig) -> Spacing {
        match self {
            // Its class has no such option.
            Self::Dpmpp2s => Spacing::Linspace,
            Self::Ddim | Self::Pndm | Self::Lcm => config.timestep_spacing.unwrap_or_default(),
            _ => config.timestep_spacing.unwrap_or(Spacing::Linspace),
        }
    }

    /// Whether steps add noise whatever the options.
    #[must_use]
    pub fn is_stochastic(self) -> bool {
        matches!(
            self,
            Self::EulerAncestral | Self::DpmppSde | Self::Dpmpp2mSde | Self::Dpmpp3mSde | Self::Lcm
        )
    }

    /// Whether it is one of the solvers of diffusers' DPMSolverMultistepScheduler.
    pub(super) fn is_dpm_multistep(self) -> bool {
        matches!(
            self,
            Self::Dpmpp2m | Self::Dpmpp3m | Self::Dpmpp2mSde | Self::Dpmpp3mSde
        )
    }

    /// Whether diffusers' class counts in whole timesteps and keeps latents as they are kept here.
    pub(super) fn preserves_variance(self) -> bool {
        self.is_dpm_multistep() || matches!(self, Self::Dpmpp2s | Self::Unipc)
    }

    /// Whether it evaluates the network twice at a step that does not end without noise.
    pub(super) fn evaluates_twice(self) -> bool {
        matches!(self, Self::Heun | Self::DpmppSde)
    }

    /// The order that its name says.
    pub(super) fn order(self) -> usize {
        match self {
            Self::Lms | Self::Pndm => 4,
            Self::Dpmpp3m | Self::Dpmpp3mSde => 3,
            Self::Dpmpp2m | Self::Dpmpp2mSde | Self::Dpmpp2s | Self::Unipc => 2,
            _ => 1,
        }
    }

    /// What a configuration asks of this solver that is not built. What the solver's name says itself (order, kind of
    /// solver) counts only if it was chosen by the configuration's class.
    pub(super) fn fault(self, config: &SchedulerConfig, by_class: bool) -> Option<String> {
        let of = &config.sigmas;
        let on = |flag: Option<bool>| flag == Some(true);
        let names = |text: &Option<String>, known: &[&str]| {
            text.as_deref().is_none_or(|text| known.contains(&text))
        };
        let dpm = self.is_dpm_multistep() || self == Self::Dpmpp2s;
        let unipc = self == Self::Unipc;
        let continuous = of.timestep_type.as_deref() == Some("continuous")
            && config.prediction_type == Prediction::VPrediction;
        let class = by_class && (dpm || unipc);
        let algorithms: &[&str] = match self {
            Self::Dpmpp2s => &["dpmsolver++", "deis"],
            _ => &["dpmsolver++", "deis", "sde-dpmsolver++"],
        };
        let kinds = ["midpoint", "heun", "logrho", "bh1", "bh2"];
        let refused = [
            (
                "use_flow_sigmas",
                self.preserves_variance() && on(of.use_flow_sigmas),
            ),
            (
                "an interpolation_type other than linear",
                self == Self::Euler && !names(&of.interpolation_type, &["linear"]),
            ),
            (
                "timestep_type: continuous",
                self == Self::Euler && continuous,
            ),
            (
                "a solver_order other than 1, 2 and 3",
                class
                    && of
                        .solver_order
                        .is_some_and(|order| !(1..=3).contains(&order)),
            ),
            (
                if self == Self::Dpmpp2s {
                    "an algorithm_type other than dpmsolver++"
                } else {
                    "an algorithm_type other than dpmsolver++ and sde-dpmsolver++"
                },
                class && dpm && !names(&of.algorithm_type, algorithms),
            ),
            (
                "an unknown solver_type",
                class && !names(&of.solver_type, &kinds),
            ),
            (
                "predict_x0: false",
                class && unipc && of.predict_x0 == Some(false),
            ),
            (
                "a solver_p",
                class && unipc && of.solver_p.as_ref().is_some_and(|p| !p.is_null()),
            ),
            (
                "a variance_type",
                class && dpm && of.variance_type.is_some(),
            ),
            (
                "lambda_min_clipped",
                dpm && of.lambda_min_clipped.is_some_and(f64::is_finite),
            ),
            (
                "skip_prk_steps: false (Runge-Kutta steps before the multistep ones)",
                by_class && self == Self::Pndm && !on(config.skip_prk_steps),
            ),
        ];
        refused
            .into_iter()
            .find_map(|(name, on)| on.then(|| format!("asks for {name}, which is not supported")))
    }

    /// The sigmas that a configuration asks of it.
    pub(super) fn sigmas_of(self, config: &SchedulerConfig) -> Result<Sigmas> {
        let of = &config.sigmas;
        let asked: Vec<Sigmas> = [
            (of.use_karras_sigmas, Sigmas::Karras),
            (of.use_lu_lambdas, Sigmas::Lu),
            (of.use_exponential_sigmas, Sigmas::Exponential),
            (of.use_beta_sigmas, Sigmas::Beta),
        ]
        .into_iter()
        .filter_map(|(on, sigmas)| (on == Some(true) && self.takes(sigmas)).then_some(sigmas))
        .collect();
        match asked[..] {
            [] => Ok(Sigmas::Training),
            [one] => Ok(one),
            // diffusers takes Karras' where both are asked for.
            [Sigmas::Karras, Sigmas::Lu] => Ok(Sigmas::Karras),
            [one, other, ..] => Err(Error::request(format!(
                "the checkpoint's scheduler_config.json asks for {} and {} sigmas at once",
                one.name(),
                other.name()
            ))
            .help(format!(
                "choose one: `sigmas: {}` or `sigmas: {}`",
                one.name(),
                other.name()
            ))),
        }
    }
}
