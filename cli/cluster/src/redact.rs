//! What stores say of their faults, without what is secret in it.
//!
//! A store's answer may repeat the name of the key that it was asked with (S3's `InvalidAccessKeyId` does). So a fault is told
//! by its code alone, and whatever is left is searched for the values of the variables that credentials come from.

use std::env;

/// The variables of the environment that credentials come from; the value of none of them is ever printed.
pub const SECRETS: [&str; 10] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_TOKEN",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "HF_TOKEN",
];

/// Shorter values are no secrets, and cutting them out would leave nothing of a message.
const SHORTEST: usize = 6;
/// Letters of what a store says that are repeated.
const MOST: usize = 300;

/// The code in an XML answer: `<Code>NoSuchBucket</Code>`.
#[must_use]
pub fn code(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '.';
    (!code.is_empty() && code.len() <= 80 && code.chars().all(plain)).then_some(code)
}

/// What may be repeated of a store's message.
#[must_use]
pub fn message(text: &str) -> String {
    let secrets = SECRETS.iter().filter_map(|name| env::var(name).ok());
    cleaned(text, &secrets.collect::<Vec<_>>())
}

fn cleaned(text: &str, secrets: &[String]) -> String {
    // What the server wrote follows the first bracket; of that the code alone is told.
    let mut told = match (code(text), text.find('<')) {
        (Some(code), _) => code.to_owned(),
        (None, Some(at)) => text[..at].trim_end_matches([' ', ':', '-']).to_owned(),
        (None, None) => text.to_owned(),
    };
    for secret in secrets.iter().filter(|secret| secret.len() >= SHORTEST) {
        told = told.replace(secret.as_str(), "***");
    }
    // Signatures and tokens stand in queries.
    if let Some((before, _)) = told.split_once('?') {
        told = before.to_owned();
    }
    match told.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}...", &told[..at]),
        None => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_a_server_says_the_code_is_told_and_no_key() {
        let answer = "Server returned non-2xx status code: 403 Forbidden: <?xml version=\"1.0\"?><Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>AKIAEXAMPLE</AWSAccessKeyId></Error>";
        assert_eq!(cleaned(answer, &[]), "InvalidAccessKeyId");
        let answer = "Server returned non-2xx status code: 500: <html>AKIAEXAMPLE</html>";
        assert_eq!(
            cleaned(answer, &[]),
            "Server returned non-2xx status code: 500"
        );
        // A code that is none is not repeated.
        let answer = "status 403: <Code>key AKIAEXAMPLE</Code>";
        assert_eq!(cleaned(answer, &[]), "status 403");
        let answer = "no route to https://host/bucket?X-Amz-Signature=abcdef";
        assert_eq!(cleaned(answer, &[]), "no route to https://host/bucket");
        let secrets = ["AKIAEXAMPLE".to_owned(), "ab".to_owned()];
        assert_eq!(cleaned("abc AKIAEXAMPLE", &secrets), "abc ***");
        assert_eq!(cleaned(&"a".repeat(1000), &[]).len(), MOST + 3);
    }
}
