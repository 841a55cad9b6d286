//! Wakes other processes through a file beside the database: one mark per topic, written after each commit and
//! watched through the operating system's file notifications. It only reduces latency: without it tasks wait for a
//! slow poll, but none is lost.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path, sync::Arc};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use crate::store::{Channel, Notifier};

const SLOTS: usize = Channel::ALL.len();
type Marks = [u64; SLOTS];

/// The wake file and its watcher; the watch ends when this value is dropped.
pub(super) struct Wake {
    file: Option<File>,
    _watcher: Option<RecommendedWatcher>,
}

impl Wake {
    /// Opens or creates the file and forwards every change of a mark to the [`Notifier`], by topic.
    pub(super) fn open(path: &Path, notifier: Arc<Notifier>) -> Self {
        match Self::try_open(path, notifier) {
            Ok(wake) => wake,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "no wake-ups between processes, polling every second");
                Self { file: None, _watcher: None }
            }
        }
    }

    fn try_open(path: &Path, notifier: Arc<Notifier>) -> Result<Self, Box<dyn std::error::Error>> {
        let file = private_files::open(path)?;
        if file.metadata()?.len() < (SLOTS * 8) as u64 {
            file.set_len((SLOTS * 8) as u64)?;
        }
        let reader = file.try_clone()?;
        let mut seen = marks(&reader)?;
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading causes no event of this kind, so reading the marks does not trigger another read.
            if !event.is_ok_and(|event| matches!(event.kind, EventKind::Modify(_))) {
                return;
            }
            let Ok(now) = marks(&reader) else { return };
            for (topic, _) in
                Channel::ALL.iter().zip(now.iter().zip(seen)).filter(|(_, (new, old))| **new != *old)
            {
                notifier.notify(*topic);
            }
            seen = now;
        })?;
        watcher.watch(path, RecursiveMode::NonRecursive)?;
        Ok(Self { file: Some(file), _watcher: Some(watcher) })
    }

    /// Marks a topic as changed. A random mark differs from the last mark of any other process.
    pub(super) fn touch(&mut self, topic: Channel) {
        if let Some(file) = &self.file {
            let mark = fastrand::u64(..).to_le_bytes();
            if let Err(error) = file.write_all_at(&mark, topic as u64 * 8) {
                tracing::debug!(%error, "writing the wake file failed, other processes poll");
            }
        }
    }
}

fn marks(file: &File) -> io::Result<Marks> {
    let mut bytes = [0; SLOTS * 8];
    file.read_exact_at(&mut bytes, 0)?;
    let (slots, _) = bytes.as_chunks::<8>();
    Ok(std::array::from_fn(|slot| u64::from_le_bytes(slots[slot])))
}
