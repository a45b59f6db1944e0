//! Reading a file in pieces, the next one while the last is at work.

use std::fs::File;
use std::io::{self, Read};
use std::sync::mpsc::sync_channel;

use crate::base::interrupt;

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;
/// From this size on, what is read next is read while `take` is at work.
pub(super) const LONG: u64 = 8 << 20;

/// Hands a file's content on piece by piece, until the work of this thread is cancelled.
pub(super) fn pieces(file: &mut File, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    if file.metadata()?.len() < LONG {
        let mut buffer = vec![0; PIECE];
        loop {
            interrupt::check()?;
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                count => take(&buffer[..count]),
            }
        }
    }
    std::thread::scope(|scope| {
        // Two buffers go round: one is filled while the other is taken from.
        let (filled, to_take) = sync_channel::<io::Result<(Vec<u8>, usize)>>(2);
        let (emptied, to_fill) = sync_channel(2);
        for _ in 0..2 {
            let _ = emptied.send(vec![0; PIECE]); // there is room for two
        }
        scope.spawn(move || {
            for mut buffer in to_fill {
                let piece = match file.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(count) => Ok((buffer, count)),
                    Err(error) => Err(error),
                };
                let goes_on = piece.is_ok();
                if filled.send(piece).is_err() || !goes_on {
                    return;
                }
            }
        });
        for piece in to_take {
            interrupt::check()?;
            let (buffer, count) = piece?;
            take(&buffer[..count]);
            let _ = emptied.send(buffer); // the reading thread may have ended
        }
        Ok(())
    })
}
