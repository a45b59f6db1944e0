//! The end of a process that the system refuses memory: a documented exit code, and what can be done.
//!
//! Most memory in Rust is asked for where a refusal cannot be handled; the standard library then says so and aborts. The
//! hook that it has for this case is not stable, so the abort itself is caught, and only after a refusal on the same
//! thread. Who asks in a way that can fail (`try_reserve`) goes on as before.

use std::cell::Cell;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI32, Ordering};

thread_local! {
    /// The bytes of this thread's last request if it was refused, else 0. It needs no memory and has no end to run, so the
    /// allocator and a signal handler may use it.
    static REFUSED: Cell<usize> = const { Cell::new(0) };
}
static CODE: AtomicI32 = AtomicI32::new(0);

/// Notes that the system refused so many bytes to this thread, or with 0 that it gave some: whoever was refused before
/// has handled it, and what aborts from now on has another cause.
pub(super) fn note(bytes: usize) {
    REFUSED.with(|refused| {
        if refused.get() != bytes {
            refused.set(bytes);
        }
    });
}

fn refused() -> usize {
    REFUSED.with(Cell::get)
}

/// Has the process end with `code`, and say what was being made and what to change, where it would abort as the system
/// refuses memory to a program whose allocator is an [`Arena`](super::Arena).
pub fn exit_when_refused(code: i32) {
    CODE.store(code, Ordering::Relaxed);
    // SAFETY: the action is whole, and the handler does only what a handler may do.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = aborted as *const () as usize;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGABRT, &raw const action, std::ptr::null_mut());
    }
}

extern "C" fn aborted(_: libc::c_int) {
    let bytes = refused();
    // SAFETY: these may be called in a handler; the text lies on the stack.
    unsafe {
        if bytes == 0 {
            // Another cause: the process ends as it would have without this.
            libc::signal(libc::SIGABRT, libc::SIG_DFL);
            libc::raise(libc::SIGABRT);
            return;
        }
        let text = message(bytes);
        libc::write(2, text.bytes.as_ptr().cast(), text.length);
        libc::_exit(CODE.load(Ordering::Relaxed));
    }
}

/// A text that needs no memory but its own; what does not fit is cut off.
struct Text {
    bytes: [u8; 1024],
    length: usize,
}

impl std::fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for character in text.chars() {
            // Names come from files: what could steer a terminal stays out.
            let character = if character.is_control() && character != '\n' {
                '?'
            } else {
                character
            };
            let end = self.length + character.len_utf8();
            let room = self
                .bytes
                .get_mut(self.length..end)
                .ok_or(std::fmt::Error)?;
            character.encode_utf8(room);
            self.length = end;
        }
        Ok(())
    }
}

fn message(bytes: usize) -> Text {
    let mut text = Text {
        bytes: [0; 1024],
        length: 0,
    };
    // What does not fit is cut off.
    let _ = write!(
        text,
        "error: out of memory: the system refused {} more",
        Size(bytes)
    );
    let mut first = true;
    retouch_graph::each_running(|node, op| {
        let before = if first { " while this ran:" } else { "," };
        first = false;
        let _ = write!(text, "{before} `{node}` ({op})");
    });
    let _ = text.write_str(
        "\n  help: try a smaller size or batch, `--dtype bf16`, `--offload`, fewer `--threads` or a smaller `--ram-cache`; what was finished before is kept, and the next run goes on from there\n",
    );
    text
}

/// Bytes for people; unlike the one that makes a text of its own, it needs no memory.
struct Size(usize);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            bytes if bytes < 1 << 20 => write!(f, "{} KiB", bytes.div_ceil(1 << 10)),
            bytes => write!(f, "{} MiB", bytes.div_ceil(1 << 20)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::alloc::{GlobalAlloc, Layout};

    use super::super::Arena;
    use super::*;

    #[test]
    fn a_refusal_that_was_handled_is_forgotten_with_the_next_memory_of_its_thread() {
        static ARENA: Arena = Arena::new(1 << 30);
        // More than any system maps, and below and above what the arena keeps.
        let too_much = Layout::from_size_align(isize::MAX as usize - (1 << 21), 64).unwrap();
        for size in [16, 3 << 20] {
            let layout = Layout::from_size_align(size, 16).unwrap();
            // SAFETY: the sizes are not zero, and what was given is given back with its layout.
            unsafe {
                let refuse = || {
                    assert!(ARENA.alloc(too_much).is_null());
                    assert_eq!(refused(), too_much.size());
                };
                let given = |block: *mut u8| {
                    assert!(!block.is_null());
                    assert_eq!(refused(), 0, "{size}");
                    block
                };
                refuse();
                // Another thread's memory says nothing about this one.
                std::thread::scope(|scope| {
                    let other = scope.spawn(|| {
                        assert_eq!(refused(), 0);
                        ARENA.dealloc(ARENA.alloc(layout), layout);
                    });
                    other.join().unwrap();
                });
                assert_eq!(refused(), too_much.size());
                let block = given(ARENA.alloc(layout));
                assert!(ARENA.realloc(block, layout, too_much.size()).is_null());
                assert_eq!(refused(), too_much.size());
                let block = given(ARENA.realloc(block, layout, size + 16));
                let layout = Layout::from_size_align(size + 16, 16).unwrap();
                ARENA.dealloc(block, layout);
                // A block that was kept counts too.
                refuse();
                let block = given(ARENA.alloc_zeroed(layout));
                ARENA.dealloc(block, layout);
            }
        }
    }

    #[test]
    fn the_message_says_how_much_was_refused_and_is_cut_where_it_does_not_fit() {
        let text = message(3 << 20);
        let text = std::str::from_utf8(&text.bytes[..text.length]).unwrap();
        assert!(text.starts_with("error: out of memory: the system refused 3 MiB more"));
        assert!(text.contains("help: try a smaller size"), "{text}");
        let mut text = message(100);
        while text.write_str("é\u{1b}").is_ok() {}
        let text = std::str::from_utf8(&text.bytes[..text.length]).unwrap();
        assert!(text.contains("refused 1 KiB more") && text.ends_with("é?") || text.ends_with('é'));
        assert!(!text.contains('\u{1b}'));
    }
}
