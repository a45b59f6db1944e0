//! The end of a process that the system refuses memory: a documented exit code, and what can be done.
//!
//! Most memory in Rust is asked for where a refusal cannot be handled; the standard library then says so and aborts. The
//! hook that it has for this case is not stable, so the abort itself is caught, and only after a refusal on the same
//! thread. Who asks in a way that can fail (`try_reserve`) goes on as before.

use std::cell::Cell;
use std::fmt::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

thread_local! {
    /// The bytes of this thread's last request that was refused, else 0, and where its stack was. It needs no memory and has
    /// no end to run, so the allocator and a signal handler may use it.
    static REFUSED: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}
static CODE: AtomicI32 = AtomicI32::new(0);
static RUNNING: OnceLock<Running> = OnceLock::new();

/// Calls what it is given with the name and the op of each node that runs. It is called where the process is out of memory,
/// in a signal handler: it must neither allocate nor wait.
pub type Running = fn(&mut dyn FnMut(&str, &str));

/// The stack that the allocating functions take between whoever asks for memory and [`note`], and more.
const ALLOCATING: usize = 4096;

/// An address in the frame of whoever calls; the stack grows downwards.
#[inline(always)]
fn here() -> usize {
    let local = 0u8;
    (&raw const local).addr()
}

/// Notes that the system refused so many bytes to this thread.
#[cold]
pub(super) fn note(bytes: usize) {
    REFUSED.set((bytes, here()));
}

/// Notes that this thread was given memory. If whoever was refused before has returned, the refusal was handled, and an
/// abort from now on has another cause. The standard library asks for memory too before it aborts, for the backtrace:
/// that is below whoever was refused.
#[inline]
pub(super) fn given() {
    let (bytes, at) = REFUSED.get();
    if bytes > 0 && here() > at + ALLOCATING {
        REFUSED.set((0, 0));
    }
}

fn refused() -> usize {
    REFUSED.get().0
}

/// Has the process end with `code`, and say what was being made and what to change, where it would abort as the system
/// refuses memory to a program whose allocator is an [`Arena`](super::Arena). `running` gives the nodes that run.
pub fn exit_when_refused(code: i32, running: Running) {
    CODE.store(code, Ordering::Relaxed);
    RUNNING.get_or_init(|| running);
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
    if let Some(running) = RUNNING.get() {
        running(&mut |node, op| {
            let before = if first { " while this ran:" } else { "," };
            first = false;
            let _ = write!(text, "{before} `{node}` ({op})");
        });
    }
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

    static ARENA: Arena = Arena::new(1 << 30);
    /// More than any system maps.
    const TOO_MUCH: usize = isize::MAX as usize - (1 << 21);

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 16).unwrap()
    }

    /// Does something well below its caller on the stack.
    #[inline(never)]
    fn below(work: impl FnOnce()) {
        let room = std::hint::black_box([0u8; 4 * ALLOCATING]);
        work();
        std::hint::black_box(room);
    }

    fn refuse() {
        // SAFETY: the size is not zero.
        assert!(unsafe { ARENA.alloc(layout(TOO_MUCH)) }.is_null());
        assert_eq!(refused(), TOO_MUCH);
    }

    #[test]
    fn a_refusal_is_forgotten_when_whoever_was_refused_has_returned_and_memory_is_given() {
        // Below and above the sizes that the arena keeps.
        for size in [16, 3 << 20] {
            // SAFETY: the sizes are not zero, and what was given is given back with its layout.
            let give = || unsafe {
                let block = ARENA.alloc(layout(size));
                assert!(!block.is_null());
                ARENA.dealloc(block, layout(size));
            };
            below(|| {
                refuse();
                // The abort's own requests, and those of other threads, leave it.
                below(give);
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        assert_eq!(refused(), 0);
                        give();
                    });
                });
                assert_eq!(refused(), TOO_MUCH);
            });
            assert_eq!(refused(), TOO_MUCH);
            give();
            assert_eq!(refused(), 0, "{size}");
            // In each way that memory is given: anew, from what was kept, of zeros, and of another size.
            // SAFETY: as above.
            unsafe {
                below(refuse);
                let block = ARENA.alloc_zeroed(layout(size));
                assert_eq!(refused(), 0);
                below(|| {
                    assert!(ARENA.realloc(block, layout(size), TOO_MUCH).is_null());
                    assert_eq!(refused(), TOO_MUCH);
                });
                let block = ARENA.realloc(block, layout(size), size + 16);
                assert_eq!(refused(), 0);
                ARENA.dealloc(block, layout(size + 16));
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
