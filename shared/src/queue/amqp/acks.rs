//! Acknowledging the deliveries of one channel, many by one frame where that can be.
//!
//! To a quorum queue each acknowledgement is a command in its log. Of those of one channel that are not in the log yet the broker has
//! [`SOFT_LIMIT`] under way at most; what comes then it holds back, and drops if the channel closes. So a batch is acknowledged
//! by one `multiple` up to the highest tag below which nothing is outstanding, and only what lies above something slower by itself.
//! And where no more deliveries come ([`Acks::end`]), so few commands are sent that none is held back: what is over them waits for
//! what is outstanding, and goes with it in one. Once the broker answers anything on that channel after that
//! ([`Acks::settled`]), the queue has them, before it hears that the channel is closed.

use std::collections::BTreeSet;

use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicQosOptions};
use tokio::sync::Mutex;

/// RabbitMQ's `quorum_commands_soft_limit`, unless somebody has changed it.
const SOFT_LIMIT: usize = 32;
/// How many commands are sent before the last one where no more deliveries come: so few, since some may still be under way from before.
const BEFORE_THE_LAST: usize = SOFT_LIMIT / 4;

#[derive(Debug)]
pub(super) struct Acks {
    channel: Channel,
    /// Held while frames are sent: the broker ends a channel that acknowledges a tag a second time.
    tags: Mutex<Tags>,
}

/// Which deliveries of a channel are not acknowledged.
#[derive(Debug, Default)]
struct Tags {
    outstanding: BTreeSet<u64>,
    done: BTreeSet<u64>,
    /// How many commands may still be sent before the last, where no more deliveries come.
    left: Option<usize>,
}

/// What is sent now.
#[derive(Debug, PartialEq, Eq)]
struct Frames {
    up_to: Option<u64>,
    alone: Vec<u64>,
}

impl Acks {
    pub(super) fn on(channel: Channel) -> Self {
        Self { channel, tags: Mutex::default() }
    }

    /// Whether what is unacknowledged still can be; else the broker has it back.
    pub(super) fn is_open(&self) -> bool {
        self.channel.status().connected()
    }

    pub(super) async fn delivered(&self, tag: u64) {
        self.tags.lock().await.outstanding.insert(tag);
    }

    /// Acknowledges these tags, each of which was delivered and not acknowledged yet.
    ///
    /// # Errors
    /// The channel has ended: the broker has given them back.
    pub(super) async fn ack(&self, tags: &BTreeSet<u64>) -> lapin::Result<()> {
        let mut all = self.tags.lock().await;
        let frames = all.ack(tags);
        self.send(frames).await
    }

    /// Soon no more deliveries come: the consumer is about to be cancelled. The queue answers that only once it has worked off the commands
    /// that are under way.
    pub(super) async fn end(&self) {
        self.tags.lock().await.left = Some(BEFORE_THE_LAST);
    }

    /// Acknowledges what is done and was not yet, and waits until the broker has all of it.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    pub(super) async fn settled(&self) -> lapin::Result<()> {
        let mut all = self.tags.lock().await;
        let frames = all.rest();
        self.send(frames).await?;
        // It says nothing to what is consumed already: it is answered, that is all.
        self.channel.basic_qos(1, BasicQosOptions::default()).await
    }

    async fn send(&self, Frames { up_to, alone }: Frames) -> lapin::Result<()> {
        if let Some(tag) = up_to {
            self.channel.basic_ack(tag, BasicAckOptions { multiple: true }).await?;
        }
        for tag in alone {
            self.channel.basic_ack(tag, BasicAckOptions::default()).await?;
        }
        Ok(())
    }
}

impl Tags {
    fn ack(&mut self, tags: &BTreeSet<u64>) -> Frames {
        self.outstanding.retain(|tag| !tags.contains(tag));
        self.done.extend(tags);
        let frames = self.frames();
        let commands = usize::from(frames.up_to.is_some()) + frames.alone.len();
        match &mut self.left {
            Some(left) if !self.outstanding.is_empty() => match left.checked_sub(commands) {
                Some(rest) => *left = rest,
                None => return Frames { up_to: None, alone: Vec::new() },
            },
            _ => {}
        }
        self.done.clear();
        frames
    }

    fn rest(&mut self) -> Frames {
        let frames = self.frames();
        self.done.clear();
        frames
    }

    /// The highest tag that is done below the first that is outstanding, and those above it.
    fn frames(&self) -> Frames {
        let first = self.outstanding.first().copied().unwrap_or(u64::MAX);
        Frames {
            up_to: self.done.range(..first).next_back().copied(),
            alone: self.done.range(first..).copied().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(delivered: impl IntoIterator<Item = u64>) -> Tags {
        Tags { outstanding: delivered.into_iter().collect(), ..Tags::default() }
    }

    fn sent(tags: &mut Tags, done: &[u64]) -> (Option<u64>, Vec<u64>) {
        let Frames { up_to, alone } = tags.ack(&done.iter().copied().collect());
        (up_to, alone)
    }

    #[test]
    fn what_lies_above_something_outstanding_is_acknowledged_alone() {
        assert_eq!(sent(&mut tags(1..=3), &[1, 2, 3]), (Some(3), vec![]));
        assert_eq!(sent(&mut tags(1..=4), &[1, 2, 3]), (Some(3), vec![]));
        assert_eq!(sent(&mut tags(2..=5), &[2, 3, 5]), (Some(3), vec![5]));
        assert_eq!(sent(&mut tags([1, 5, 6]), &[5, 6]), (None, vec![5, 6]));
    }

    #[test]
    fn at_the_end_few_commands_are_sent_and_the_last_is_for_all_the_rest() {
        let mut tags = tags(1..=100);
        tags.left = Some(2);
        assert_eq!(sent(&mut tags, &[1]), (Some(1), vec![]));
        assert_eq!(sent(&mut tags, &[3]), (None, vec![3]));
        let nothing = (None, vec![]);
        for tag in 4..=100 {
            assert_eq!(sent(&mut tags, &[tag]), nothing);
        }
        assert_eq!(sent(&mut tags, &[2]), (Some(100), vec![]));
        assert_eq!(tags.rest(), Frames { up_to: None, alone: vec![] });
    }

    #[test]
    fn what_waits_for_something_that_nobody_settles_is_sent_in_the_end() {
        let mut tags = tags(1..=3);
        tags.left = Some(0);
        assert_eq!(sent(&mut tags, &[1, 3]), (None, vec![]));
        assert_eq!(tags.rest(), Frames { up_to: Some(1), alone: vec![3] });
    }
}
