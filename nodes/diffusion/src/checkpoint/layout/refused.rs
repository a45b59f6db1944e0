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

/// The refusal of a folder of another family.
fn is_of(file: PathBuf, what: &str, class: &str) -> Error {
    Error::Config {
        file,
        message: format!(
            "is of {what} ({class}), which is not supported; expected Stable Diffusion 1, 2 or XL"
        ),
    }
}

/// Refuses folders of pipelines that are not built here, by the classes in `model_index.json`, or by that of the network where a
/// folder has no index.
pub(super) fn other_pipeline(folder: &Path, files: &dyn Files) -> Result<()> {
    #[derive(Deserialize)]
    struct Class {
        #[serde(rename = "_class_name")]
        name: String,
        /// Of the refiner alone.
        #[serde(default)]
        requires_aesthetics_score: bool,
        /// Library and class. Kolors has the pipeline's class of Stable Diffusion XL, and another encoder.
        #[serde(default)]
        text_encoder: Vec<Option<String>>,
    }
    #[derive(Deserialize)]
    struct Network {
        #[serde(rename = "_class_name")]
        name: String,
    }
    let transformer = folder.join("transformer/config.json");
    let index = folder.join("model_index.json");
    let class = files
        .is_file(&index)
        .then(|| read_text(files, &index).ok())
        .flatten()
        .and_then(|text| serde_json::from_str::<Class>(&text).ok());
    let Some(Class {
        name,
        requires_aesthetics_score,
        text_encoder,
    }) = class
    else {
        let network = files
            .is_file(&transformer)
            .then(|| read_text(files, &transformer).ok())
            .flatten()
            .and_then(|text| serde_json::from_str::<Network>(&text).ok());
        return match network {
            Some(Network { name }) if name.starts_with("Flux") => {
                Err(is_of(transformer, "Flux", &name))
            }
            Some(Network { name }) => Err(is_of(transformer, "another family", &name)),
            None => Ok(()),
        };
    };
    if text_encoder
        .iter()
        .flatten()
        .any(|class| class == "ChatGLMModel")
    {
        return Err(is_of(index, "Kolors", "ChatGLMModel"));
    }
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
        Some((_, what)) => Err(is_of(index, what, &name)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use retouch_graph::MemoryFiles;

    use super::*;

    #[test]
    fn folders_of_other_families_are_named_by_what_their_files_say() {
        let refused = |file: &str, text: &str| {
            let files = MemoryFiles::new().with(Path::new("model").join(file), text);
            other_pipeline(Path::new("model"), &files).map_err(|error| error.to_string())
        };
        // Kolors' own index, as far as it matters.
        let kolors = r#"{"_class_name": "StableDiffusionXLPipeline", "text_encoder": ["kolors", "ChatGLMModel"]}"#;
        assert!(
            refused("model_index.json", kolors)
                .unwrap_err()
                .contains("is of Kolors")
        );
        let flux = r#"{"_class_name": "FluxTransformer2DModel"}"#;
        assert!(
            refused("transformer/config.json", flux)
                .unwrap_err()
                .contains("is of Flux")
        );
        let other = r#"{"_class_name": "SomeTransformer2DModel"}"#;
        let told = refused("transformer/config.json", other).unwrap_err();
        assert!(told.contains("SomeTransformer2DModel"), "{told}");
        // What is built, an encoder that is left out among it.
        for own in [
            r#"{"_class_name": "StableDiffusionXLPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}"#,
            r#"{"_class_name": "StableDiffusionXLPipeline", "text_encoder": [null, null]}"#,
            r#"{"_class_name": "StableDiffusionPipeline"}"#,
        ] {
            assert_eq!(refused("model_index.json", own), Ok(()));
        }
    }
}
