//! Acknowledging the deliveries of one channel, many by one frame where that can be.
//!
//! To a quorum queue each acknowledgement is a command in its log, and a channel that has many of them under way holds back
//! some, which are lost if it closes then: so a batch is acknowledged by one `multiple` up to the highest tag below which
//! nothing is outstanding, and only what lies above something slower by itself.

use std::collections::BTreeSet;

use lapin::Channel;
use lapin::options::BasicAckOptions;
use tokio::sync::Mutex;

#[derive(Debug)]
pub(super) struct Acks {
    channel: Channel,
    /// Held while frames are sent: the broker ends a channel that acknowledges a tag a second time.
    outstanding: Mutex<BTreeSet<u64>>,
}

impl Acks {
    pub(super) fn on(channel: Channel) -> Self {
        Self { channel, outstanding: Mutex::default() }
    }

    /// Whether what is unacknowledged still can be; else the broker has it back.
    pub(super) fn is_open(&self) -> bool {
        self.channel.status().connected()
    }

    pub(super) async fn delivered(&self, tag: u64) {
        self.outstanding.lock().await.insert(tag);
    }

    /// Acknowledges these tags, each of which was delivered and not acknowledged yet.
    ///
    /// # Errors
    /// The channel has ended: the broker has given them back.
    pub(super) async fn ack(&self, tags: &BTreeSet<u64>) -> lapin::Result<()> {
        let mut outstanding = self.outstanding.lock().await;
        outstanding.retain(|tag| !tags.contains(tag));
        let (up_to, alone) = split(tags, outstanding.first().copied());
        if let Some(tag) = up_to {
            self.channel.basic_ack(tag, BasicAckOptions { multiple: true }).await?;
        }
        for tag in alone {
            self.channel.basic_ack(*tag, BasicAckOptions::default()).await?;
        }
        Ok(())
    }
}

/// The highest tag below the first that is outstanding, and those above it.
fn split(tags: &BTreeSet<u64>, outstanding: Option<u64>) -> (Option<u64>, impl Iterator<Item = &u64>) {
    let first = outstanding.unwrap_or(u64::MAX);
    (tags.range(..first).next_back().copied(), tags.range(first..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_above_something_outstanding_is_acknowledged_alone() {
        let split = |tags: &[u64], outstanding| {
            let tags = tags.iter().copied().collect();
            let (up_to, alone) = split(&tags, outstanding);
            (up_to, alone.copied().collect::<Vec<_>>())
        };
        assert_eq!(split(&[1, 2, 3], None), (Some(3), vec![]));
        assert_eq!(split(&[1, 2, 3], Some(4)), (Some(3), vec![]));
        assert_eq!(split(&[2, 3, 5], Some(4)), (Some(3), vec![5]));
        assert_eq!(split(&[5, 6], Some(1)), (None, vec![5, 6]));
    }
}
