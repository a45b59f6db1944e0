//! The published configurations of the families that single files come from: what `config.json` and
//! `scheduler_config.json` of the diffusers folders of these checkpoints say, as far as it is not a default.

use crate::prompt::tokenizer::PadToken;
use crate::sampling::scheduler::Prediction;

/// The families whose configurations are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// Stable Diffusion 1.x: `stable-diffusion-v1-5`.
    Sd1,
    /// Stable Diffusion 2.x that predicts v, 768 pixels: `stable-diffusion-2-1`.
    Sd2,
    /// Stable Diffusion 2.x that predicts the noise, 512 pixels: `stable-diffusion-2-1-base`.
    Sd2Base,
    /// Stable Diffusion XL: `stable-diffusion-xl-base-1.0`.
    Sdxl,
}

impl Published {
    /// The checkpoint that the configurations are those of.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sd1 => "stable-diffusion-v1-5",
            Self::Sd2 => "stable-diffusion-2-1",
            Self::Sd2Base => "stable-diffusion-2-1-base",
            Self::Sdxl => "stable-diffusion-xl-base-1.0",
        }
    }

    /// The same family with another prediction, where both were published.
    #[must_use]
    pub fn predicting(self, prediction: Prediction) -> Self {
        match (self, prediction) {
            (Self::Sd2 | Self::Sd2Base, Prediction::Epsilon) => Self::Sd2Base,
            (Self::Sd2 | Self::Sd2Base, Prediction::VPrediction) => Self::Sd2,
            (other, _) => other,
        }
    }

    /// `unet/config.json`.
    #[must_use]
    pub fn unet(self) -> &'static str {
        match self {
            Self::Sd1 => SD1_UNET,
            Self::Sd2 => SD2_UNET,
            Self::Sd2Base => SD2_BASE_UNET,
            Self::Sdxl => SDXL_UNET,
        }
    }

    /// `text_encoder/config.json`, and for two of them `text_encoder_2/config.json`.
    #[must_use]
    pub fn text_encoders(self) -> &'static [&'static str] {
        match self {
            Self::Sd1 => &[CLIP_L],
            Self::Sd2 | Self::Sd2Base => &[OPEN_CLIP_H],
            Self::Sdxl => &[CLIP_L, OPEN_CLIP_G],
        }
    }

    /// `vae/config.json`.
    #[must_use]
    pub fn vae(self) -> &'static str {
        match self {
            Self::Sdxl => SDXL_VAE,
            Self::Sd1 | Self::Sd2 | Self::Sd2Base => SD_VAE,
        }
    }

    /// `scheduler/scheduler_config.json`.
    #[must_use]
    pub fn scheduler(self) -> &'static str {
        match self {
            Self::Sd1 => PNDM,
            Self::Sd2Base => PNDM,
            Self::Sd2 => DDIM_V,
            Self::Sdxl => EULER,
        }
    }

    /// The class of that scheduler.
    #[must_use]
    pub fn scheduler_class(self) -> &'static str {
        match self {
            Self::Sd1 | Self::Sd2Base => "PNDMScheduler",
            Self::Sd2 => "DDIMScheduler, v prediction",
            Self::Sdxl => "EulerDiscreteScheduler",
        }
    }

    /// `model_index.json`, as far as anything here depends on it.
    #[must_use]
    pub fn model_index(self) -> &'static str {
        match self {
            Self::Sdxl => {
                r#"{"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": true}"#
            }
            Self::Sd1 | Self::Sd2 | Self::Sd2Base => {
                r#"{"_class_name": "StableDiffusionPipeline"}"#
            }
        }
    }

    /// What the tokenizer of each text encoder pads with.
    #[must_use]
    pub fn pads(self) -> &'static [PadToken] {
        match self {
            Self::Sd1 => &[PadToken::End],
            Self::Sd2 | Self::Sd2Base => &[PadToken::Exclamation],
            Self::Sdxl => &[PadToken::End, PadToken::Exclamation],
        }
    }
}

/// The U-Net of Stable Diffusion 1 and 2: heads, width of the texts, side of the latents, and what is more.
macro_rules! unet {
    ($heads:literal, $texts:literal, $side:literal, $more:literal) => {
        concat!(
            r#"{
  "_class_name": "UNet2DConditionModel",
  "act_fn": "silu",
  "attention_head_dim": "#,
            $heads,
            r#",
  "block_out_channels": [320, 640, 1280, 1280],
  "center_input_sample": false,
  "cross_attention_dim": "#,
            $texts,
            r#",
  "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
  "downsample_padding": 1,
  "flip_sin_to_cos": true,
  "freq_shift": 0,
  "in_channels": 4,
  "layers_per_block": 2,
  "mid_block_scale_factor": 1,
  "norm_eps": 1e-05,
  "norm_num_groups": 32,
  "out_channels": 4,
  "sample_size": "#,
            $side,
            r#",
  "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]"#,
            $more,
            "\n}\n"
        )
    };
}

const SD1_UNET: &str = unet!("8", "768", "64", "");
const SD2_UNET: &str = unet!(
    "[5, 10, 20, 20]",
    "1024",
    "96",
    ",\n  \"use_linear_projection\": true"
);
const SD2_BASE_UNET: &str = unet!(
    "[5, 10, 20, 20]",
    "1024",
    "64",
    ",\n  \"use_linear_projection\": true"
);

const SDXL_UNET: &str = r#"{
  "_class_name": "UNet2DConditionModel",
  "act_fn": "silu",
  "addition_embed_type": "text_time",
  "addition_time_embed_dim": 256,
  "attention_head_dim": [5, 10, 20],
  "block_out_channels": [320, 640, 1280],
  "center_input_sample": false,
  "cross_attention_dim": 2048,
  "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
  "downsample_padding": 1,
  "flip_sin_to_cos": true,
  "freq_shift": 0,
  "in_channels": 4,
  "layers_per_block": 2,
  "mid_block_scale_factor": 1,
  "norm_eps": 1e-05,
  "norm_num_groups": 32,
  "out_channels": 4,
  "projection_class_embeddings_input_dim": 2816,
  "sample_size": 128,
  "transformer_layers_per_block": [1, 2, 10],
  "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
  "use_linear_projection": true
}
"#;

/// A text encoder: class, activation, width, heads, layers, and width of the projection.
macro_rules! clip {
    ($class:literal, $act:literal, $width:literal, $inner:literal, $heads:literal, $layers:literal, $projection:literal) => {
        concat!(
            r#"{
  "architectures": [""#,
            $class,
            r#""],
  "bos_token_id": 49406,
  "eos_token_id": 49407,
  "hidden_act": ""#,
            $act,
            r#"",
  "hidden_size": "#,
            $width,
            r#",
  "intermediate_size": "#,
            $inner,
            r#",
  "layer_norm_eps": 1e-05,
  "max_position_embeddings": 77,
  "model_type": "clip_text_model",
  "num_attention_heads": "#,
            $heads,
            r#",
  "num_hidden_layers": "#,
            $layers,
            r#",
  "projection_dim": "#,
            $projection,
            r#",
  "vocab_size": 49408
}
"#
        )
    };
}

const CLIP_L: &str = clip!(
    "CLIPTextModel",
    "quick_gelu",
    "768",
    "3072",
    "12",
    "12",
    "768"
);
const OPEN_CLIP_H: &str = clip!("CLIPTextModel", "gelu", "1024", "4096", "16", "23", "512");
const OPEN_CLIP_G: &str = clip!(
    "CLIPTextModelWithProjection",
    "gelu",
    "1280",
    "5120",
    "20",
    "32",
    "1280"
);

/// The VAE: side of the pictures, scaling factor, and what comes before its channels.
macro_rules! vae {
    ($upcast:literal, $side:literal, $scale:literal) => {
        concat!(
            r#"{
  "_class_name": "AutoencoderKL",
  "act_fn": "silu",
  "block_out_channels": [128, 256, 512, 512],
  "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
"#,
            $upcast,
            r#"  "in_channels": 3,
  "latent_channels": 4,
  "layers_per_block": 2,
  "norm_num_groups": 32,
  "out_channels": 3,
  "sample_size": "#,
            $side,
            r#",
  "scaling_factor": "#,
            $scale,
            r#",
  "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]
}
"#
        )
    };
}

const SD_VAE: &str = vae!("", "512", "0.18215");
const SDXL_VAE: &str = vae!("  \"force_upcast\": true,\n", "1024", "0.13025");

const PNDM: &str = r#"{
  "_class_name": "PNDMScheduler",
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "clip_sample": false,
  "num_train_timesteps": 1000,
  "set_alpha_to_one": false,
  "skip_prk_steps": true,
  "steps_offset": 1
}
"#;

const DDIM_V: &str = r#"{
  "_class_name": "DDIMScheduler",
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "clip_sample": false,
  "num_train_timesteps": 1000,
  "prediction_type": "v_prediction",
  "set_alpha_to_one": false,
  "steps_offset": 1
}
"#;

const EULER: &str = r#"{
  "_class_name": "EulerDiscreteScheduler",
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "clip_sample": false,
  "num_train_timesteps": 1000,
  "prediction_type": "epsilon",
  "set_alpha_to_one": false,
  "steps_offset": 1,
  "timestep_spacing": "leading"
}
"#;
