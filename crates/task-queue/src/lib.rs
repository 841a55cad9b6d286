//! Tasks, worker, scheduler and results on apalis
