//! Checks whether the server objects of a group still exist: a stream, a consumer or the group's record can be
//! deleted, and created again under the same name, while members run.

use super::*;

/// Pause before a stream is created again. Servers of 2.9 report a delete before they remove the stream's folder, and
/// would remove the files of the new stream with it.
const REMOVAL: Duration = Duration::from_secs(1);

/// The state of a group on the server.
pub(in super::super) enum Standing {
    There(Record),
    /// Deleted through this library.
    Deleted,
}

impl Connection {
    /// Returns the group's state. A record that was removed by other means is written again as `known`, if
    /// `provision` allows.
    pub(in super::super) async fn standing(
        self: &Arc<Self>,
        group: &Group,
        known: &Record,
    ) -> Result<Standing> {
        let subject = self.group_subject(group);
        loop {
            match self.read::<Record>(&subject).await? {
                Some(stored) if stored.value.deleted => return Ok(Standing::Deleted),
                Some(stored) => return Ok(Standing::There(dated(stored).value)),
                None => {}
            }
            let provision = self.config.provision;
            if !provision.creates() {
                return Err(provision.missing(format!("group {group}")));
            }
            tracing::error!(
                %group,
                "this group's record is missing on the server; it was deleted, or the server was restarted without its storage; it is written again"
            );
            tokio::time::sleep(REMOVAL).await;
            self.ensure_stream(Kind::State).await?;
            self.write(&subject, known, 0).await?;
            self.announce().await?;
        }
    }

    /// Returns the information on a topic's stream; `None` when there is none.
    pub(in super::super) async fn stream_of(
        &self,
        topic: &str,
    ) -> Result<Option<crate::transport::nats::streams::StreamInfo>> {
        match self.api(&format!("STREAM.INFO.{}", self.names.stream(topic)), &json!({})).await {
            Ok(info) => Ok(Some(info)),
            Err(Failure::Api(error)) if error.err_code == 10059 => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Returns the creation time of the topic's stream. A missing stream is created, if `provision` allows.
    pub(in super::super) async fn stand(self: &Arc<Self>, topic: &str) -> Result<Option<Timestamp>> {
        if self.topics_seen.is_ready(topic) {
            if let Some(info) = self.stream_of(topic).await? {
                return Ok(info.created);
            }
            tokio::time::sleep(REMOVAL).await;
        }
        let batches = self.ensure_topic(topic).await?;
        self.topics_seen.ready(topic, batches);
        Ok(self.stream_of(topic).await?.and_then(|info| info.created))
    }

    /// Returns the record, rewritten when its sequences refer to streams that no longer exist.
    pub(in super::super) async fn identify(&self, group: &Group, record: Record) -> Result<Record> {
        let mut created = Vec::new();
        for topic in self.topics_of(&record).await? {
            if record.counts_in(&topic)
                && let Some(info) = self.stream_of(&topic).await?
            {
                created.push((topic, info.created));
            }
        }
        let recognise = |record: &mut Record| {
            created.iter().fold(false, |changed, (topic, made)| record.recognise(topic, *made) | changed)
        };
        if !recognise(&mut record.clone()) {
            return Ok(record);
        }
        loop {
            let Some(stored) = self.group(group).await? else { return Ok(record) };
            let mut next = stored.value;
            if !recognise(&mut next)
                || self.write(&self.group_subject(group), &next, stored.sequence).await?.is_some()
            {
                return Ok(next);
            }
        }
    }

    /// Returns the last settled sequence of each topic, and the number of filter changes that the leader knew of
    /// then.
    pub(in super::super) async fn floors(
        &self,
        group: &Group,
        record: &Record,
    ) -> Result<(BTreeMap<SmolStr, u64>, u64)> {
        let progress = if record.keyed {
            crate::transport::nats::keyed::progress(self, group, record.epoch).await?
        } else {
            None
        };
        let mut floors = BTreeMap::new();
        for topic in self.topics_of(record).await? {
            let floor = if record.keyed {
                let mark = progress.as_ref().and_then(|progress| progress.topics.get(&topic));
                mark.map(|mark| mark.floor().saturating_sub(1))
            } else {
                let name = names::consumer(group, record.epoch);
                let info = self.consumer_info(&self.names.stream(&topic), &name).await?;
                info.map(|info| info.ack_floor.stream_seq)
            };
            floors.extend(floor.filter(|floor| *floor > 0).map(|floor| (topic, floor)));
        }
        let known = progress.map_or(if record.keyed { 0 } else { u64::MAX }, |progress| progress.changes);
        Ok((floors, known))
    }
}
