//! Pictures of other programs: their prompts and settings.

use super::*;

/// A text of a picture that is longer when it is inflated is passed over.
const LONGEST_SETTINGS: usize = 4 << 20;
/// A picture's file is looked into up to this size.
pub(super) const LARGEST_PICTURE: u64 = 256 << 20;

/// The texts of a PNG, by their keywords; `None` of what is no PNG.
pub(super) fn png_texts(path: &Path, files: &dyn Files) -> Option<BTreeMap<String, String>> {
    let (head, length) = files.read_head(path, 8).ok()?;
    if head != b"\x89PNG\r\n\x1a\n" || length > LARGEST_PICTURE {
        return None;
    }
    let bytes = files.read(path).ok()?;
    let reader = png::Decoder::new(std::io::Cursor::new(&bytes[..]))
        .read_info()
        .ok()?;
    let info = reader.info();
    let plain = info.uncompressed_latin1_text.iter();
    let plain = plain.map(|chunk| Some((chunk.keyword.clone(), chunk.text.clone())));
    let packed = info.compressed_latin1_text.iter();
    let packed = packed.map(|chunk| {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(LONGEST_SETTINGS).ok()?;
        Some((chunk.keyword.clone(), chunk.get_text().ok()?))
    });
    let unicode = info.utf8_text.iter();
    let unicode = unicode.map(|chunk| {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(LONGEST_SETTINGS).ok()?;
        Some((chunk.keyword.clone(), chunk.get_text().ok()?))
    });
    Some(plain.chain(packed).chain(unicode).flatten().collect())
}

/// A picture that another program wrote its prompt and settings into.
pub(super) fn picture(path: &Path, files: &dyn Files) -> Option<Report> {
    let (layout, texts) = match png_texts(path, files) {
        Some(texts) => ("PNG", texts),
        None => exif::texts(path, files)?,
    };
    // Cameras and editors write comments into EXIF too.
    let is_settings =
        |text: &&String| layout == "PNG" || text.lines().any(|line| line.starts_with("Steps: "));
    let (program, metadata) = if let Some(text) = texts.get("parameters").filter(is_settings) {
        (
            "the AUTOMATIC1111 web UI, or one that writes as it does",
            web_ui(text),
        )
    } else {
        let nodes: serde_json::Map<String, Json> =
            serde_json::from_str(texts.get("prompt")?).ok()?;
        ("ComfyUI", comfy_ui(&nodes)?)
    };
    Some(Report {
        kind: Kind::Picture,
        layout: layout.to_owned(),
        family: None,
        parts: Vec::new(),
        sites: Vec::new(),
        size: None,
        scheduler: None,
        prediction: None,
        prediction_from: None,
        tokenizers: Vec::new(),
        adapter: None,
        metadata,
        notes: vec![
            format!("made by {program}: its settings are above, and cannot be run here as they are"),
            "prompts of the web UI are read as there with `syntax: a1111` of load_model; other programs draw their noise in another way, so that a seed gives another picture".to_owned(),
        ],
    })
}

/// The web UI's text: the prompt, `Negative prompt: ...`, and a line of settings.
pub(super) fn web_ui(text: &str) -> BTreeMap<String, String> {
    const NEGATIVE: &str = "Negative prompt: ";
    let mut lines: Vec<&str> = text.trim().lines().collect();
    let mut found = BTreeMap::new();
    if lines.last().is_some_and(|line| line.starts_with("Steps: ")) {
        let settings = lines.pop().unwrap_or_default();
        // Values with a comma are in quotes.
        let (mut pieces, mut quoted) = (vec![String::new()], false);
        for c in settings.chars() {
            quoted ^= c == '"';
            match (c, quoted) {
                (',', false) => pieces.push(String::new()),
                _ => pieces
                    .last_mut()
                    .into_iter()
                    .for_each(|piece| piece.push(c)),
            }
        }
        let pairs = pieces.iter().filter_map(|piece| piece.split_once(':'));
        found.extend(pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())));
    }
    let negative = lines.iter().position(|line| line.starts_with(NEGATIVE));
    let (prompt, negative) = lines.split_at(negative.unwrap_or(lines.len()));
    found.insert("prompt".to_owned(), prompt.join("\n"));
    let negative = negative.join("\n");
    if let Some(negative) = negative.strip_prefix(NEGATIVE) {
        found.insert("negative prompt".to_owned(), negative.to_owned());
    }
    found
}

/// ComfyUI's graph: of each node the inputs that are no links.
pub(super) fn comfy_ui(nodes: &serde_json::Map<String, Json>) -> Option<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for (id, node) in nodes {
        let class = node.get("class_type")?.as_str()?;
        let inputs = node.get("inputs").and_then(Json::as_object)?;
        let values: Vec<String> = inputs
            .iter()
            .filter(|(_, value)| !value.is_array() && !value.is_object() && !value.is_null())
            .map(|(key, value)| match value {
                Json::String(text) => format!("{key}: {text}"),
                other => format!("{key}: {other}"),
            })
            .collect();
        if !values.is_empty() {
            found.insert(format!("{id} {class}"), values.join(", "));
        }
    }
    (!found.is_empty()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_of_the_web_ui_are_read() {
        let text = "a cat, (red:1.2)\non a mat\nNegative prompt: blurry,\nlow quality\n\
                    Steps: 20, Sampler: DPM++ 2M, CFG scale: 7, Lora hashes: \"a: 1, b: 2\", Seed: 42, Size: 512x768";
        let read = web_ui(text);
        for (key, due) in [
            ("prompt", "a cat, (red:1.2)\non a mat"),
            ("negative prompt", "blurry,\nlow quality"),
            ("Steps", "20"),
            ("Sampler", "DPM++ 2M"),
            ("Lora hashes", "\"a: 1, b: 2\""),
            ("Size", "512x768"),
        ] {
            assert_eq!(read[key], due, "{key}");
        }
        assert_eq!(web_ui("a cat")["prompt"], "a cat");
    }

    #[test]
    fn the_nodes_of_comfy_ui_are_read_without_their_links() {
        let graph = r#"{"6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["4", 1]}},
                        "3": {"class_type": "KSampler", "inputs": {"seed": 7, "cfg": 8.0, "model": ["4", 0]}}}"#;
        let read = comfy_ui(&serde_json::from_str(graph).unwrap()).unwrap();
        assert_eq!(read["6 CLIPTextEncode"], "text: a cat");
        assert_eq!(read["3 KSampler"], "seed: 7, cfg: 8.0");
        assert!(comfy_ui(&serde_json::from_str(r#"{"a": 1}"#).unwrap()).is_none());
    }
}
