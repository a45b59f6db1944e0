//! Ctrl-C, and the other signals that ask the program to end.

use retouch_graph::Code;

use crate::Failure;

/// Calls `then`, on a thread of its own, at each Ctrl-C, SIGTERM or SIGHUP. A signal that was ignored when the program began
/// stays ignored: `nohup`, and shells that start a command in the background, rely on that.
///
/// # Errors
/// When the system does not let the signals be handled.
pub fn listen(then: impl FnMut() + Send + 'static) -> Result<(), Failure> {
    let ignored = ignored();
    ctrlc::set_handler(then).map_err(|e| {
        Failure::failed(format!("Ctrl-C cannot be handled: {e}")).code(Code::SystemRefused)
    })?;
    ignored.into_iter().for_each(ignore);
    Ok(())
}

/// The signals that are ignored, of those that are listened to.
#[cfg(unix)]
fn ignored() -> Vec<libc::c_int> {
    let all = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
    let is_ignored = |signal: &libc::c_int| {
        let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: nothing is set, and `action` is large enough for what is asked.
        let asked = unsafe { libc::sigaction(*signal, std::ptr::null(), action.as_mut_ptr()) };
        // SAFETY: the call succeeded and has filled it in.
        asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
    };
    all.into_iter().filter(is_ignored).collect()
}

#[cfg(unix)]
fn ignore(signal: libc::c_int) {
    // SAFETY: no code of this program runs for a signal that is ignored.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

#[cfg(not(unix))]
fn ignored() -> [(); 0] {
    []
}

#[cfg(not(unix))]
fn ignore((): ()) {}
