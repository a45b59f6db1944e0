//! Addresses of stores: a folder, or a bucket with a prefix.

use std::fmt;
use std::path::PathBuf;

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A folder of this machine, or one that several machines share.
    Folder(PathBuf),
    /// A bucket of a service.
    Bucket {
        /// Whose protocol it speaks.
        service: Service,
        /// The bucket's name; Azure's container.
        bucket: String,
        /// What the names of all objects begin with; without a `/` at its ends.
        prefix: String,
    },
}

/// Protocols of object stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Amazon S3, and what speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
}

impl Service {
    /// What addresses of it begin with.
    #[must_use]
    pub fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gcs => "gs",
            Self::Azure => "az",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::Bucket {
                service,
                bucket,
                prefix,
            } => {
                write!(f, "{}://{bucket}", service.scheme())?;
                match prefix.is_empty() {
                    true => Ok(()),
                    false => write!(f, "/{prefix}"),
                }
            }
        }
    }
}

/// Letters that names in buckets may have: what every service takes as it is.
fn is_plain(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_' | '=' | '+')
}

impl Place {
    /// Reads an address: `s3://bucket/prefix`, `gs://...`, `az://container/...`, else a folder.
    ///
    /// # Errors
    /// When it is none, in words. An address with a password in it is not repeated.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return match text.is_empty() {
                true => {
                    Err("expected a folder or an address, such as s3://bucket/folder".to_owned())
                }
                false => Ok(Self::Folder(PathBuf::from(text))),
            };
        };
        let service = match scheme {
            "s3" => Service::S3,
            "gs" => Service::Gcs,
            "az" => Service::Azure,
            _ => {
                return Err("expected a folder, s3://, gs:// or az://".to_owned());
            }
        };
        if rest.contains('@') {
            return Err(
                "an address holds no credentials: they are taken from the environment and the service's own files"
                    .to_owned(),
            );
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        let part = |part: &str| {
            !part.is_empty() && part != "." && part != ".." && part.chars().all(is_plain)
        };
        if !part(bucket) {
            return Err(format!(
                "expected a bucket, such as {scheme}://bucket/folder"
            ));
        }
        if !prefix.is_empty() && !prefix.split('/').all(part) {
            return Err(
                "the folder in a bucket is of letters, digits and `.-_=+`, parts apart by one `/`"
                    .to_owned(),
            );
        }
        Ok(Self::Bucket {
            service,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown_as_they_are() {
        for text in [
            "s3://bucket",
            "gs://b/a",
            "az://container/runs/of-2026_11",
            "/srv/store",
            "out/.retouch",
        ] {
            assert_eq!(Place::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(
            Place::parse("s3://bucket/a/b/").unwrap(),
            Place::Bucket {
                service: Service::S3,
                bucket: "bucket".to_owned(),
                prefix: "a/b".to_owned()
            }
        );
        assert_eq!(
            Place::parse("s3://bucket/").unwrap().to_string(),
            "s3://bucket"
        );
    }

    #[test]
    fn what_is_no_address_is_refused_and_a_password_is_not_repeated() {
        for (text, says) in [
            ("", "expected a folder"),
            ("ftp://host/a", "s3://, gs:// or az://"),
            ("s3://", "expected a bucket"),
            ("s3:///a", "expected a bucket"),
            ("s3://bucket/a/../b", "parts apart"),
            ("s3://bucket/a//b", "parts apart"),
            ("gs://bucket/a b", "parts apart"),
            ("s3://key:password@bucket/a", "holds no credentials"),
        ] {
            let error = Place::parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
            assert!(!error.contains("password"));
        }
    }
}
