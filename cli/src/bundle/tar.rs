//! The archive inside a bundle: plain ustar with regular files alone, the same bytes for the same files.
//!
//! The reader takes no more than the writer makes. Links, devices, folders, sparse files and the long names of GNU and
//! PAX are how archives write where they should not; there is no code here that would act on them. That is why it is not the
//! crate `tar`, which reads all of them and leaves it to its caller to refuse each; what is left of the format is one header.

use std::io::{self, Read};

use retouch_graph::problem::Code;

use super::Error;
use super::names;

/// The size of a header, and what content is filled up to, in bytes.
pub const BLOCK: usize = 512;
/// The largest file: eleven octal digits.
pub const MAX_FILE: u64 = (1 << 33) - 1;

const NAME: std::ops::Range<usize> = 0..100;
const MODE: std::ops::Range<usize> = 100..108;
const USER: std::ops::Range<usize> = 108..116;
const GROUP: std::ops::Range<usize> = 116..124;
const SIZE: std::ops::Range<usize> = 124..136;
const TIME: std::ops::Range<usize> = 136..148;
const SUM: std::ops::Range<usize> = 148..156;
const KIND: usize = 156;
const LINK: std::ops::Range<usize> = 157..257;
const FORMAT: std::ops::Range<usize> = 257..265;
const PREFIX: std::ops::Range<usize> = 345..500;

/// A member: a file's path and size in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The path, with `/`.
    pub path: String,
    /// The bytes of its content.
    pub size: u64,
}

/// Bytes that fill content of that size up to whole blocks.
#[must_use]
pub fn padding(size: u64) -> usize {
    // The remainder is below 512.
    (BLOCK - (size % BLOCK as u64) as usize) % BLOCK
}

/// The sum of a header's bytes, its own field taken as spaces.
fn sum(block: &[u8; BLOCK]) -> u32 {
    block
        .iter()
        .enumerate()
        .map(|(at, &byte)| u32::from(if SUM.contains(&at) { b' ' } else { byte }))
        .sum()
}

/// The header of a file: mode 644, no owner, no time.
///
/// # Errors
/// When the path or the size does not fit one.
pub fn header(member: &Member) -> Result<[u8; BLOCK], Error> {
    names::check(&member.path)?;
    let path = member.path.as_bytes();
    let (prefix, name) = if path.len() <= NAME.len() {
        (&path[..0], path)
    } else {
        let split = member
            .path
            .match_indices('/')
            .map(|(at, _)| at)
            .find(|at| path.len() - at - 1 <= NAME.len() && *at <= PREFIX.len());
        let Some(at) = split else {
            return Err(Error::refused(
                Code::BundleName,
                format!("the path `{}` is too long", member.path),
            ));
        };
        (&path[..at], &path[at + 1..])
    };
    if member.size > MAX_FILE {
        return Err(Error::refused(
            Code::BundleLimit,
            format!("`{}` has more than 8 GiB", member.path),
        ));
    }
    let mut block = [0; BLOCK];
    let mut put = |range: std::ops::Range<usize>, bytes: &[u8]| {
        block[range.start..range.start + bytes.len()].copy_from_slice(bytes);
    };
    put(NAME, name);
    put(PREFIX, prefix);
    put(MODE, b"0000644\0");
    put(USER, b"0000000\0");
    put(GROUP, b"0000000\0");
    put(SIZE, format!("{:011o}\0", member.size).as_bytes());
    put(TIME, b"00000000000\0");
    put(KIND..KIND + 1, b"0");
    put(FORMAT, b"ustar\x0000");
    let sum = sum(&block);
    block[SUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(block)
}

fn damaged(what: impl Into<String>) -> Error {
    Error::refused(Code::BundleArchive, what)
}

/// A number in octal digits, ended by a space or a NUL.
fn octal(field: &[u8]) -> Option<u64> {
    let end = field.iter().position(|&byte| byte == 0 || byte == b' ')?;
    let digits = std::str::from_utf8(&field[..end]).ok()?;
    let plain = !digits.is_empty() && digits.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    plain.then(|| u64::from_str_radix(digits, 8).ok()).flatten()
}

/// A text that NULs fill up to the end of its field.
fn text(field: &[u8]) -> Option<&str> {
    let end = field
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(field.len());
    let filled = field[end..].iter().all(|&byte| byte == 0);
    filled
        .then(|| std::str::from_utf8(&field[..end]).ok())
        .flatten()
}

fn parse(block: &[u8; BLOCK]) -> Result<Member, Error> {
    if octal(&block[SUM]) != Some(u64::from(sum(block))) {
        return Err(damaged("the checksum of a header in the archive is wrong"));
    }
    let entry = |what: &str| {
        Error::refused(
            Code::BundleEntry,
            format!("it contains {what}; a bundle holds plain files only"),
        )
    };
    match block[KIND] {
        b'0' => {}
        b'1' => return Err(entry("a hard link")),
        b'2' => return Err(entry("a symbolic link")),
        b'3' | b'4' => return Err(entry("a device")),
        b'5' => return Err(entry("an entry for a folder")),
        b'6' => return Err(entry("a pipe")),
        b'L' | b'K' => return Err(entry("a GNU long name")),
        b'S' => return Err(entry("a sparse file")),
        b'x' | b'g' => return Err(entry("a PAX header")),
        other => {
            let what = format!("an entry of the type `{}`", other.escape_ascii());
            return Err(entry(&what));
        }
    }
    if &block[FORMAT] != b"ustar\x0000" {
        return Err(entry("an entry in another format than ustar"));
    }
    if block[LINK].iter().any(|&byte| byte != 0) {
        return Err(entry("a file that also names the target of a link"));
    }
    let size = octal(&block[SIZE])
        .ok_or_else(|| damaged("the size of a file in the archive is not an octal number"))?;
    let (Some(name), Some(prefix)) = (text(&block[NAME]), text(&block[PREFIX])) else {
        return Err(Error::refused(
            Code::BundleName,
            "the name of a file in the archive is not UTF-8 or has a NUL in it",
        ));
    };
    let path = if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}/{name}")
    };
    names::check(&path)?;
    Ok(Member { path, size })
}

fn fill(source: &mut impl Read, buffer: &mut [u8]) -> Result<(), Error> {
    source
        .read_exact(buffer)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged("the archive is cut off"),
            _ => stream(&error),
        })
}

/// What a fault of the compressed stream is called.
pub fn stream(error: &io::Error) -> Error {
    if error.kind() == io::ErrorKind::FileTooLarge {
        return Error::refused(
            Code::BundleLimit,
            "it unpacks to more than its size or its manifest allows",
        );
    }
    damaged(format!(
        "its compressed stream is damaged or cut off ({error})"
    ))
}

/// The next member, whose content then follows; `None` at the end, after which nothing may come.
///
/// # Errors
/// When it is anything but a plain file in a sound header, or the archive goes on behind its end.
pub fn next(source: &mut impl Read) -> Result<Option<Member>, Error> {
    let mut block = [0; BLOCK];
    fill(source, &mut block)?;
    if block != [0; BLOCK] {
        return parse(&block).map(Some);
    }
    fill(source, &mut block)?;
    if block != [0; BLOCK] {
        return Err(damaged("the end of the archive is damaged"));
    }
    let mut more = [0];
    match source.read(&mut more) {
        Ok(0) => Ok(None),
        Ok(_) => Err(damaged("something follows the end of the archive")),
        Err(error) => Err(stream(&error)),
    }
}

/// Reads the content of a member piece by piece, and what fills it up.
///
/// # Errors
/// When the stream ends before it, what fills it up is not zero, or `take` fails.
pub fn content(
    source: &mut impl Read,
    size: u64,
    mut take: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut buffer = vec![0; 1 << 16];
    let mut left = size;
    while left > 0 {
        let count = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        fill(source, &mut buffer[..count])?;
        take(&buffer[..count])?;
        left -= count as u64;
    }
    let rest = &mut buffer[..padding(size)];
    fill(source, rest)?;
    if rest.iter().any(|&byte| byte != 0) {
        return Err(damaged("something is hidden after the end of a file"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_they_were_written() {
        for path in [
            "a".to_owned(),
            ["abcdefghi"; 20].join("/"),
            format!("{}/{}", "f".repeat(150), "n".repeat(100)),
            "é.png".to_owned(),
        ] {
            let member = Member {
                path,
                size: 0o1234567,
            };
            assert_eq!(parse(&header(&member).unwrap()).unwrap(), member);
        }
        let long = Member {
            path: "n".repeat(101),
            size: 0,
        };
        assert!(header(&long).is_err());
    }
}
