//! Where tests let a step on the disk fail, as a full disk or a crash would. In production this
//! is nothing at all, and it must stay so.

/// Passes this point. In a test build it fails there if a test asked for it.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn point(_step: &'static str) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(crate) use armed::{arm, disarm, point};

#[cfg(test)]
mod armed {
    use std::cell::Cell;
    use std::io;

    #[derive(Clone, Copy)]
    struct Armed {
        left: u32,
        kind: io::ErrorKind,
        failed: bool,
    }

    thread_local! {
        static ARMED: Cell<Option<Armed>> = const { Cell::new(None) };
    }

    /// Lets every point of this thread fail after so many that do not.
    pub(crate) fn arm(after: u32, kind: io::ErrorKind) {
        ARMED.set(Some(Armed { left: after, kind, failed: false }));
    }

    /// Ends that. Answers whether a point failed.
    pub(crate) fn disarm() -> bool {
        ARMED.take().is_some_and(|armed| armed.failed)
    }

    pub(crate) fn point(step: &'static str) -> io::Result<()> {
        let Some(armed) = ARMED.get() else { return Ok(()) };
        if armed.left > 0 {
            ARMED.set(Some(Armed { left: armed.left - 1, ..armed }));
            return Ok(());
        }
        ARMED.set(Some(Armed { failed: true, ..armed }));
        Err(io::Error::new(armed.kind, format!("a test fails: {step}")))
    }
}
