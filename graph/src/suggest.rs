//! "Did you mean …?": the known name that is nearest to a mistyped one.

/// The name among `known` that is nearest to `typed`, if one is near enough to be meant.
///
/// Near enough: at most a third of the letters differ (one for short names), or the names differ only in case, `-`
/// and `_`. Ties go to the first.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = fold(typed);
    let allowed = (folded.chars().count() / 3).max(1);
    let mut best: Option<(usize, &str)> = None;
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

fn fold(name: &str) -> String {
    name.chars()
        .filter(|c| !matches!(c, '-' | '_'))
        .flat_map(char::to_lowercase)
        .collect()
}

/// A sentence that names the nearest known name, or all known names when none is near and they are few.
pub(crate) fn hint<'a>(
    typed: &str,
    what: &str,
    known: impl IntoIterator<Item = &'a str> + Clone,
) -> Option<String> {
    if let Some(name) = nearest(typed, known.clone()) {
        return Some(format!("did you mean `{name}`?"));
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
    let mut text = String::new();
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            text.push_str(if index + 1 == names.len() {
                " and "
            } else {
                ", "
            });
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
}
