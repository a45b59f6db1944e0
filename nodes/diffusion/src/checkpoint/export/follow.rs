//! Progress of the writing of a model.

/// Called with the progress of the writing of a model, which it may cancel. A function that says whether it is cancelled is one.
pub trait Follow {
    /// Whether the model is not wanted any more. It is asked again and again.
    fn is_cancelled(&self) -> bool;

    /// So many bytes more are written, of a model that has `total`.
    fn wrote(&self, bytes: u64, total: u64) {
        let _ = (bytes, total);
    }
}

impl<F: Fn() -> bool> Follow for F {
    fn is_cancelled(&self) -> bool {
        self()
    }
}
