//! The host of a node that is only looked at.

use super::*;

/// The engine's side of a look: what is kept is read, what is warned of was warned of when the node ran.
pub(super) struct Glass<'a> {
    pub(super) reader: &'a Reader,
    pub(super) note: Note,
    pub(super) cancel: &'a Cancel,
}

impl Host for Glass<'_> {
    fn progress(&self, _: usize, _: usize) {}
    fn warn(&self, _: &str) {}
    fn count(&self, counter: &'static str, by: u64) {
        if counter == "unet_calls" {
            self.reader.calls.fetch_add(by, Ordering::Relaxed);
        }
    }
    fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
    fn files(&self) -> &dyn Files {
        &**self.reader.engine.files()
    }
    fn any_environment(&self) -> Option<&(dyn Any + Send + Sync)> {
        self.reader
            .engine
            .environment()
            .map(|environment| &**environment)
    }
    fn chain(&self) -> Option<&Chain> {
        let task = self.reader.plan.task(self.reader.task)?;
        task.chain().map(|chain| &**chain)
    }
    fn any_note(&self) -> Option<&Note> {
        Some(&self.note)
    }
    fn kept_outputs(&self, key: &Key) -> Option<Outputs> {
        self.reader.engine.kept_on_first_device(key)
    }
    fn keep_outputs(&self, key: Key, outputs: Outputs, seconds: f64) {
        // Of calls nothing is wanted, so this is the map from latents to colours.
        let Reader {
            engine, plan, task, ..
        } = self.reader;
        if matches!(engine.unchanged(plan, *task), Ok(true)) {
            engine.cache().put(key, &outputs, seconds);
        }
    }
}

/// What a swap's calls are made with when they are looked at.
pub(super) fn with<'a>(
    ddim: &'a Ddim,
    monitor: &'a dyn Monitor,
    memory: &'a dyn StepStore,
) -> CallContext<'a> {
    CallContext {
        ddim,
        monitor,
        memory,
    }
}
