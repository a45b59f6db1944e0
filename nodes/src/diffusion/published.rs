//! The published configurations of the families that single files come from: what `config.json` and
//! `scheduler_config.json` of the diffusers folders of these checkpoints say, as far as it is not a default.

use super::scheduler::Prediction;
use super::tokenizer::PadToken;

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

const SD1_UNET: &str = r#"{
  "_class_name": "UNet2DConditionModel",
  "act_fn": "silu",
  "attention_head_dim": 8,
  "block_out_channels": [320, 640, 1280, 1280],
  "center_input_sample": false,
  "cross_attention_dim": 768,
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
  "sample_size": 64,
  "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]
}
"#;

const SD2_UNET: &str = r#"{
  "_class_name": "UNet2DConditionModel",
  "act_fn": "silu",
  "attention_head_dim": [5, 10, 20, 20],
  "block_out_channels": [320, 640, 1280, 1280],
  "center_input_sample": false,
  "cross_attention_dim": 1024,
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
  "sample_size": 96,
  "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
  "use_linear_projection": true
}
"#;

const SD2_BASE_UNET: &str = r#"{
  "_class_name": "UNet2DConditionModel",
  "act_fn": "silu",
  "attention_head_dim": [5, 10, 20, 20],
  "block_out_channels": [320, 640, 1280, 1280],
  "center_input_sample": false,
  "cross_attention_dim": 1024,
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
  "sample_size": 64,
  "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
  "use_linear_projection": true
}
"#;

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

const CLIP_L: &str = r#"{
  "architectures": ["CLIPTextModel"],
  "bos_token_id": 49406,
  "eos_token_id": 49407,
  "hidden_act": "quick_gelu",
  "hidden_size": 768,
  "intermediate_size": 3072,
  "layer_norm_eps": 1e-05,
  "max_position_embeddings": 77,
  "model_type": "clip_text_model",
  "num_attention_heads": 12,
  "num_hidden_layers": 12,
  "projection_dim": 768,
  "vocab_size": 49408
}
"#;

const OPEN_CLIP_H: &str = r#"{
  "architectures": ["CLIPTextModel"],
  "bos_token_id": 49406,
  "eos_token_id": 49407,
  "hidden_act": "gelu",
  "hidden_size": 1024,
  "intermediate_size": 4096,
  "layer_norm_eps": 1e-05,
  "max_position_embeddings": 77,
  "model_type": "clip_text_model",
  "num_attention_heads": 16,
  "num_hidden_layers": 23,
  "projection_dim": 512,
  "vocab_size": 49408
}
"#;

const OPEN_CLIP_G: &str = r#"{
  "architectures": ["CLIPTextModelWithProjection"],
  "bos_token_id": 49406,
  "eos_token_id": 49407,
  "hidden_act": "gelu",
  "hidden_size": 1280,
  "intermediate_size": 5120,
  "layer_norm_eps": 1e-05,
  "max_position_embeddings": 77,
  "model_type": "clip_text_model",
  "num_attention_heads": 20,
  "num_hidden_layers": 32,
  "projection_dim": 1280,
  "vocab_size": 49408
}
"#;

const SD_VAE: &str = r#"{
  "_class_name": "AutoencoderKL",
  "act_fn": "silu",
  "block_out_channels": [128, 256, 512, 512],
  "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
  "in_channels": 3,
  "latent_channels": 4,
  "layers_per_block": 2,
  "norm_num_groups": 32,
  "out_channels": 3,
  "sample_size": 512,
  "scaling_factor": 0.18215,
  "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]
}
"#;

const SDXL_VAE: &str = r#"{
  "_class_name": "AutoencoderKL",
  "act_fn": "silu",
  "block_out_channels": [128, 256, 512, 512],
  "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
  "force_upcast": true,
  "in_channels": 3,
  "latent_channels": 4,
  "layers_per_block": 2,
  "norm_num_groups": 32,
  "out_channels": 3,
  "sample_size": 1024,
  "scaling_factor": 0.13025,
  "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]
}
"#;

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
