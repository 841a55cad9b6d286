//! What callers hear of their server beside frames, and say to it: room, questions, farewells.

use super::*;

impl Connection {
    /// Listens to callers that leave, ask, or have room again, and watches deadlines.
    pub(super) async fn serve_calls(self: &Arc<Self>) -> Result<()> {
        self.served
            .started
            .get_or_try_init(|| async {
                for to in [self.id.as_str(), "all"] {
                    let mut words = self.client.subscribe(self.names.calls(to)).await.map_err(|error| {
                        Error::new(ErrorKind::Unavailable, "the subscription did not reach the server").because(error)
                    })?;
                    let (connection, closed) = (Arc::downgrade(self), self.closed.clone());
                    self.tasks.spawn(async move {
                        loop {
                            let word = tokio::select! { word = words.next() => word, () = closed.cancelled() => None };
                            let (Some(word), Some(connection)) = (word, connection.upgrade()) else { return };
                            connection.hear_caller(&word);
                        }
                    });
                }
                let (connection, closed) = (Arc::downgrade(self), self.closed.clone());
                self.tasks.spawn(async move {
                    loop {
                        let pause = match connection.upgrade() {
                            Some(connection) => connection.watch_calls(),
                            None => return,
                        };
                        let wait = async {
                            match (pause, connection.upgrade()) {
                                (true, _) => tokio::time::sleep(HOLD / 4).await,
                                (false, Some(connection)) => connection.served.grown.notified().await,
                                (false, None) => {}
                            }
                        };
                        tokio::select! { () = wait => {}, () = closed.cancelled() => return }
                    }
                });
                Ok(())
            })
            .await
            .map(drop)
    }

    fn hear_caller(&self, word: &NatsMessage) {
        let text = std::str::from_utf8(&word.payload).unwrap_or_default();
        let Some((what, call)) = text.split_once(' ') else { return };
        let held = self.served.lock().get(call).cloned();
        match (what, held) {
            ("gone", Some(held)) => held.gone.cancel(),
            ("room", Some(held)) => self.make_room(&held),
            ("ask", held) => {
                if let Some(reply) = word.reply.clone() {
                    let answer: &'static [u8] = if held.is_some() { b"yes" } else { b"no" };
                    self.courier.say(reply, None, Bytes::from_static(answer));
                }
            }
            _ => {}
        }
    }

    fn make_room(&self, held: &Arc<Held>) {
        let mut flow = held.flow();
        flow.room = (flow.room + FRAMES / 2).min(FRAMES);
        let mut ended = false;
        while (flow.room > 0 || ended)
            && let Some((letter, last, answer)) = flow.parked.pop_front()
        {
            flow.room = flow.room.saturating_sub(1);
            ended |= last;
            self.courier.send(letter);
            if let Some(answer) = answer {
                let _ = answer.send(Ok(()));
            }
        }
        drop(flow);
        if ended {
            self.served.lock().remove(held.reply.as_str());
        }
    }

    /// Tells callers that wait that they are not forgotten, and servers that nobody waits; whether any are left.
    fn watch_calls(&self) -> bool {
        let now = Instant::now();
        let calls: Vec<_> = self.served.lock().values().cloned().collect();
        for held in &calls {
            if now >= held.deadline {
                held.gone.cancel();
            }
            let mut flow = held.flow();
            if held.ours && !flow.told && now >= held.since + HOLD {
                flow.told = true;
                let mut headers = HeaderMap::new();
                headers.insert(names::FRAME, HELD);
                headers.insert(names::REPLY_TO, self.names.calls(&self.id));
                self.courier.send(OutboundMessage {
                    subject: held.reply.clone(),
                    reply: None,
                    payload: Bytes::new(),
                    headers: Some(headers),
                });
            }
        }
        !calls.is_empty()
    }

    /// Tells every caller that nobody answers here any more.
    pub(in super::super) fn let_go_of_calls(&self) {
        let calls: Vec<_> = self.served.lock().drain().map(|(_, held)| held).collect();
        for held in calls {
            let mut headers = error_headers(503, "the server closed before it answered");
            headers.insert(names::FRAME, GONE);
            self.courier.send(OutboundMessage {
                subject: held.reply.clone(),
                reply: None,
                payload: Bytes::new(),
                headers: Some(headers),
            });
            held.gone.cancel();
        }
    }
}
