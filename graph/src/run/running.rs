//! Which nodes are running in this process, so that a crash report can name them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::sync::lock;

static RUNNING: Mutex<Vec<RunningNode>> = Mutex::new(Vec::new());
static NEXT: AtomicU64 = AtomicU64::new(0);

struct RunningNode {
    number: u64,
    node: String,
    op: &'static str,
}

/// Marks a node as running until it is dropped.
pub(crate) struct Running(u64);

pub(crate) fn begin(node: &str, op: &'static str) -> Running {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let node = node.to_owned();
    lock(&RUNNING).push(RunningNode { number, node, op });
    Running(number)
}

impl Drop for Running {
    fn drop(&mut self) {
        lock(&RUNNING).retain(|entry| entry.number != self.0);
    }
}

/// Calls `each` with the name and the op of each node that runs, the first begun first. It neither waits nor allocates
/// memory, so that it may be called where the process is out of it; it calls nothing while the list is being changed.
pub fn each_running(mut each: impl FnMut(&str, &'static str)) {
    if let Ok(running) = RUNNING.try_lock() {
        for entry in running.iter() {
            each(&entry.node, entry.op);
        }
    }
}
