//! Whether what a group needs still stands on the server: a stream, a consumer or the group's record can be deleted, and
//! made again under the same name, while members are at work.

use super::*;

/// Pause before a stream is made again. Servers of 2.9 say that it is deleted before they remove its folder, and would
/// remove the files of the new one with it.
const REMOVAL: Duration = Duration::from_secs(1);

/// A group as the server has it.
pub(in super::super) enum Standing {
    There(Record),
    /// Deleted through this library.
    Deleted,
}

impl Connection {
    /// The group as it stands. A record that was removed by other means is made again as `known`, where that is allowed.
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
                "the server has lost this group's record; was it deleted, or was the server restarted without its storage? It is made again"
            );
            tokio::time::sleep(REMOVAL).await;
            self.ensure_stream(Kind::State).await?;
            self.write(&subject, known, 0).await?;
            self.announce().await?;
        }
    }

    /// What a topic's stream is; `None` when there is none.
    pub(in super::super) async fn stream_of(&self, topic: &str) -> Result<Option<names::StreamInfo>> {
        match self.api(&format!("STREAM.INFO.{}", self.names.stream(topic)), &json!({})).await {
            Ok(info) => Ok(Some(info)),
            Err(Failure::Api(error)) if error.err_code == 10059 => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    /// When the topic's stream was created; it is made where it is missing and that is allowed.
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

    /// The record, written anew where its sequences are of streams that do not stand any more.
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

    /// Up to where a group has settled each of its topics; and how many changes of its filters its leader knew of then.
    pub(in super::super) async fn floors(
        &self,
        group: &Group,
        record: &Record,
    ) -> Result<(BTreeMap<SmolStr, u64>, u64)> {
        let progress = if record.keyed { self.progress(group, record.epoch).await? } else { None };
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
