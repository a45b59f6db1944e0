//! What is missing from a file or folder, and pipelines that are not built.

use super::*;

/// Parts that a single file does not hold and that nothing else is named for.
pub(super) fn missing_parts(table: &Table, sources: &Sources) -> Vec<Error> {
    let vae = sources.vae.is_some() || dialects::holds(table, |role| role == Role::Vae);
    let text = sources.text_encoder.is_some()
        || dialects::holds(table, |role| matches!(role, Role::Text { .. }));
    [("VAE", "vae", vae), ("text encoder", "text_encoder", text)]
    .into_iter()
    .filter(|(_, _, there)| !there)
    .map(|(part, param, _)| Error::Weights {
        file: table.file.clone(),
        message: format!(
            "holds no {part}: name one by `{param}: FOLDER` (or a file) of load_model, such as that of another model of its family"
        ),
    })
    .collect()
}

/// Refuses folders of pipelines that are not built here, by the class in `model_index.json`.
pub(super) fn other_pipeline(folder: &Path, files: &dyn Files) -> Result<()> {
    #[derive(Deserialize)]
    struct Class {
        #[serde(rename = "_class_name")]
        name: String,
        /// Of the refiner alone.
        #[serde(default)]
        requires_aesthetics_score: bool,
    }
    let index = folder.join("model_index.json");
    let class = files
        .is_file(&index)
        .then(|| read_text(files, &index).ok())
        .flatten()
        .and_then(|text| serde_json::from_str::<Class>(&text).ok());
    let Some(Class {
        name,
        requires_aesthetics_score,
    }) = class
    else {
        return Ok(());
    };
    if requires_aesthetics_score {
        return Err(Error::Config {
            file: index,
            message: format!("is {}", dialects::REFINER),
        });
    }
    let known = [
        ("StableDiffusion3", "Stable Diffusion 3"),
        ("Flux", "Flux"),
        ("Kolors", "Kolors"),
        ("PixArt", "PixArt"),
        ("StableCascade", "Stable Cascade"),
        ("Wuerstchen", "Wuerstchen"),
        ("HunyuanDiT", "Hunyuan-DiT"),
        ("AuraFlow", "AuraFlow"),
        ("Sana", "Sana"),
        ("Kandinsky", "Kandinsky"),
        ("IFPipeline", "DeepFloyd IF"),
        ("StableDiffusionUpscale", "the x4 upscaler"),
        ("StableDiffusionLatentUpscale", "the latent upscaler"),
        ("StableVideoDiffusion", "Stable Video Diffusion"),
    ];
    match known.iter().find(|(class, _)| name.starts_with(class)) {
        Some((_, what)) => Err(Error::Config {
            file: index,
            message: format!(
                "is of {what} ({name}), which is not built here; expected Stable Diffusion 1, 2 or XL"
            ),
        }),
        None => Ok(()),
    }
}
