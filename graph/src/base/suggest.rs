//! "Did you mean …?": the known name that is nearest to a mistyped one, or that means what another program's name means.

/// Names of diffusers, the AUTOMATIC1111 web UI and ComfyUI, folded, and what they are called here.
const ELSEWHERE: [(&str, &[&str]); 37] = [
    ("negativeprompt", &["negative"]),
    ("cfg", &["guidance"]),
    ("cfgscale", &["guidance"]),
    ("guidancescale", &["guidance"]),
    ("sampler", &["scheduler"]),
    ("samplername", &["scheduler"]),
    ("numinferencesteps", &["steps"]),
    ("denoise", &["strength"]),
    ("denoisingstrength", &["strength"]),
    ("noiseseed", &["seed"]),
    ("batchsize", &["batch"]),
    ("numimagesperprompt", &["batch"]),
    ("checkpoint", &["path", "load_model"]),
    ("ckpt", &["path", "load_model"]),
    ("ckptname", &["path"]),
    ("modelpath", &["path"]),
    ("modelname", &["path"]),
    ("loraname", &["path"]),
    ("lorapath", &["path"]),
    ("strengthmodel", &["weight"]),
    ("strengthclip", &["text_encoder_weight"]),
    ("loraweight", &["weight"]),
    ("vaename", &["path", "vae"]),
    ("clipskip", &["clip_skip"]),
    ("lora", &["apply_lora"]),
    ("loraloader", &["apply_lora"]),
    ("embedding", &["apply_textual_inversion"]),
    ("textualinversion", &["apply_textual_inversion"]),
    ("ksampler", &["sample"]),
    ("txt2img", &["sample"]),
    ("img2img", &["sample"]),
    ("checkpointloadersimple", &["load_model"]),
    ("vaeloader", &["load_vae"]),
    ("vaedecode", &["decode"]),
    ("vaeencode", &["encode_reference"]),
    ("loadimage", &["load_image"]),
    ("eulera", &["euler_ancestral"]),
];

/// The name among `known` that is nearest to `typed`, if one is near enough to be meant; else what another program's name
/// is called here.
///
/// Near enough: at most a third of the letters differ (one for short names), or the names differ only in case, `-`
/// and `_`. Ties go to the first.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = fold(typed);
    let allowed = (folded.chars().count() / 3).max(1);
    let mut best: Option<(usize, &str)> = None;
    let known: Vec<&str> = known.into_iter().collect();
    if let Some(name) = elsewhere(&folded, &known) {
        return Some(name);
    }
    for name in known {
        if name == typed {
            continue;
        }
        let other = fold(name);
        let length = folded.chars().count().abs_diff(other.chars().count());
        if length > allowed {
            continue; // the distance is at least the difference in length
        }
        let distance = strsim::osa_distance(&folded, &other);
        if distance <= allowed && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, name));
        }
    }
    best.map(|(_, name)| name)
}

/// What is called so in another program, by the name that it has here.
fn elsewhere<'a>(folded: &str, known: &[&'a str]) -> Option<&'a str> {
    // A scheduler's name may say that its sigmas are Karras'.
    let plain = folded.strip_suffix("karras").unwrap_or(folded);
    let plain = match plain.strip_prefix("dpm++") {
        Some(rest) => format!("dpmpp{rest}"),
        None => plain.to_owned(),
    };
    let own = |name: &&&str| fold(name) == plain && plain != folded;
    if let Some(name) = known.iter().find(own) {
        return Some(name);
    }
    let (_, ours) = ELSEWHERE.iter().find(|(theirs, _)| *theirs == plain)?;
    ours.iter()
        .find_map(|ours| known.iter().copied().find(|name| name == ours))
}

fn fold(name: &str) -> String {
    name.chars()
        .filter(|c| !matches!(c, '-' | '_' | ' '))
        .flat_map(char::to_lowercase)
        .collect()
}

/// A sentence that names the nearest known name, or all known names when none is near and they are few.
pub(crate) fn hint<'a>(
    typed: &str,
    what: &str,
    known: impl IntoIterator<Item = &'a str> + Clone,
) -> Option<String> {
    hint_in(typed, what, "", known)
}

/// As [`hint`]; the nearest name is written as it is referred to, with `prefix` before it: `$params.`.
pub(crate) fn hint_in<'a>(
    typed: &str,
    what: &str,
    prefix: &str,
    known: impl IntoIterator<Item = &'a str> + Clone,
) -> Option<String> {
    if let Some(name) = nearest(typed, known.clone()) {
        return Some(format!("did you mean `{prefix}{name}`?"));
    }
    let names: Vec<&str> = known.into_iter().take(41).collect();
    match names.len() {
        0 => Some(format!("there are no {what} here")),
        1..=40 => Some(format!("the {what} are {}", list(&names))),
        _ => None,
    }
}

/// Types of value with their articles: `an image or a mask`; what is many has none.
pub(crate) fn a<S: AsRef<str>>(types: &[S]) -> String {
    let with: Vec<String> = types
        .iter()
        .map(|name| {
            let name = name.as_ref();
            if name.ends_with('s') {
                name.to_owned()
            } else if name.starts_with(['a', 'e', 'i', 'o', 'u']) {
                format!("an {name}")
            } else {
                format!("a {name}")
            }
        })
        .collect();
    with.join(" or ")
}

/// `` `a`, `b` and `c` ``.
pub(crate) fn list<S: AsRef<str>>(names: &[S]) -> String {
    enumerate(names, " and ")
}

/// `` `a`, `b` or `c` ``.
pub(crate) fn either<S: AsRef<str>>(names: &[S]) -> String {
    enumerate(names, " or ")
}

fn enumerate<S: AsRef<str>>(names: &[S], last: &str) -> String {
    let mut text = String::new();
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            text.push_str(if index + 1 == names.len() { last } else { ", " });
        }
        text.push('`');
        text.push_str(name.as_ref());
        text.push('`');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_name_is_suggested_and_a_far_one_is_not() {
        assert_eq!(nearest("layuot", ["base", "layout"]), Some("layout"));
        assert_eq!(nearest("loadModel", ["load_model"]), Some("load_model"));
        assert_eq!(nearest("xyz", ["base", "layout"]), None);
        assert_eq!(nearest("", ["base"]), None);
    }

    #[test]
    fn the_names_of_other_programs_are_known() {
        let params = [
            "prompt",
            "negative",
            "guidance",
            "scheduler",
            "steps",
            "strength",
            "seed",
        ];
        for (typed, due) in [
            ("negative_prompt", "negative"),
            ("cfg", "guidance"),
            ("guidance_scale", "guidance"),
            ("sampler", "scheduler"),
            ("sampler_name", "scheduler"),
            ("num_inference_steps", "steps"),
            ("denoise", "strength"),
        ] {
            assert_eq!(nearest(typed, params), Some(due), "{typed}");
        }
        let ops = ["load_model", "sample", "apply_lora", "decode"];
        assert_eq!(nearest("lora", ops), Some("apply_lora"));
        assert_eq!(nearest("KSampler", ops), Some("sample"));
        assert_eq!(nearest("ckpt_name", ["path", "config"]), Some("path"));
        let schedulers = ["ddim", "euler", "euler_ancestral", "dpmpp_2m", "unipc"];
        for typed in ["DPM++ 2M Karras", "DPM++ 2M", "dpmpp_2m_karras"] {
            assert_eq!(nearest(typed, schedulers), Some("dpmpp_2m"), "{typed}");
        }
        assert_eq!(nearest("Euler a", schedulers), Some("euler_ancestral"));
        assert_eq!(nearest("lora", ["prompt", "steps"]), None);
    }
}
