//! The one rule for a poisoned mutex: the lock is taken all the same.
//!
//! A mutex is poisoned by a panic of a thread that held it, which is a defect of this crate. [`supervise`](crate::supervise)
//! reports the panic and ends the subscription or connection that the task served. The others that share the mutex
//! continue: a second panic here would reach callers that did nothing wrong, and in a destructor that runs during the
//! first one it would abort the process. Critical sections are therefore short, call no code of the user, and change
//! their data so that a reader finds it usable after each statement.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, poisoned or not.
#[inline]
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_panic_under_the_lock_does_not_lock_others_out() {
        let mutex = Mutex::new(1);
        let panic = catch_unwind(AssertUnwindSafe(|| {
            let mut number = lock(&mutex);
            *number = 2;
            panic!("a defect");
        }));
        assert!(panic.is_err() && mutex.is_poisoned());
        assert_eq!(*lock(&mutex), 2);
    }
}
