//! Reading regular files, and nothing else: a pipe or a device could wait forever or have no end.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::Path;

/// What is at a path in place of a regular file, in words.
fn kind_of(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a named pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
    }
    if kind.is_dir() {
        "a folder"
    } else if kind.is_symlink() {
        "a link"
    } else {
        "something else"
    }
}

/// Whether what is there is a regular file, which alone can be read without waiting for anybody.
pub(crate) fn regular(metadata: &Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let kind = if metadata.is_dir() {
        io::ErrorKind::IsADirectory
    } else {
        io::ErrorKind::InvalidInput
    };
    let message = format!("it is {}, not a regular file", kind_of(metadata));
    Err(io::Error::new(kind, message))
}

/// Opens a file to be read. A named pipe, a socket, a device or a folder is an error: reading it could wait forever or
/// have no end.
///
/// # Errors
/// As the file system gives them, and for what is not a regular file.
pub fn open(path: &Path) -> io::Result<File> {
    // Before it is opened, as opening some devices does something.
    regular(&fs::metadata(path)?)?;
    let mut options = File::options();
    options.read(true);
    // What took the file's place meanwhile must not keep this waiting. On a regular file the flag changes nothing.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        libc::O_NONBLOCK | libc::O_NOCTTY,
    );
    let file = options.open(path)?;
    regular(&file.metadata()?)?;
    Ok(file)
}

/// The content of a file of at most `most` bytes.
///
/// # Errors
/// As [`open`]; `FileTooLarge` of a file that has more.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let length = file.metadata()?.len();
    let too_large = || {
        io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {most} bytes"),
        )
    };
    if length > most {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    // It may grow meanwhile.
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(too_large());
    }
    Ok(bytes)
}

/// As [`read`], of a text in UTF-8.
///
/// # Errors
/// As [`read`]; `InvalidData` of what is not UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read(path, most)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, "ab\u{fc}").unwrap();
        assert_eq!(read(&file, 4).unwrap(), "ab\u{fc}".as_bytes());
        assert_eq!(read_text(&file, 4).unwrap(), "ab\u{fc}");
        let error = read(&file, 3).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        fs::write(&file, [0xff]).unwrap();
        assert_eq!(
            read_text(&file, 4).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
