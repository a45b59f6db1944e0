//! The families of models, by the width of their texts.

/// The families by the width of the texts that their cross-attention takes.
#[must_use]
pub fn family_of_width(width: usize) -> Option<&'static str> {
    match width {
        768 => Some("Stable Diffusion 1"),
        1024 => Some("Stable Diffusion 2"),
        2048 => Some("Stable Diffusion XL"),
        _ => None,
    }
}

/// A width of texts in words.
pub(super) fn in_words(width: usize) -> String {
    match family_of_width(width) {
        Some(family) => format!("texts of {width} features ({family})"),
        None => format!("texts of {width} features"),
    }
}
