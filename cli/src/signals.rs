//! Ctrl-C, and the other signals that ask the program to end.

use std::process::Child;

use retouch_graph::{Cancel, Code};

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

/// From now on SIGUSR2, by which Slurm says that a job's time is nearly over, cancels. Call it before there is a second thread: the
/// signal is blocked in all of them but the one that waits for it.
#[cfg(unix)]
pub fn notice(cancel: &Cancel) {
    let mut signals = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is made empty before anything else reads it.
    let signals = unsafe {
        libc::sigemptyset(signals.as_mut_ptr());
        libc::sigaddset(signals.as_mut_ptr(), libc::SIGUSR2);
        signals.assume_init()
    };
    // SAFETY: `signals` is a set, and the old one is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut()) };
    let cancel = cancel.clone();
    let waits = move || {
        let mut signal = 0;
        // SAFETY: both are there as long as the call is.
        while unsafe { libc::sigwait(&raw const signals, &raw mut signal) } == 0 {
            cancel.cancel();
        }
    };
    // A system without room for one more thread lets nobody draw either.
    let _ = std::thread::Builder::new()
        .name("retouch-notice".to_owned())
        .spawn(waits);
}

/// There is no such signal.
#[cfg(not(unix))]
pub fn notice(_: &Cancel) {}

/// Asks a process that was started to end: it gives back what it has.
#[cfg(unix)]
pub fn end(child: &Child) {
    if let Ok(id) = libc::pid_t::try_from(child.id()) {
        // SAFETY: it is a child that was not waited for, so the number is its own.
        unsafe { libc::kill(id, libc::SIGTERM) };
    }
}

/// Nothing but ending it at once is known here, and its claim ends by itself: it is left to finish.
#[cfg(not(unix))]
pub fn end(_: &Child) {}
