//! Whether a channel still gets its messages confirmed.
//!
//! Some brokers never take another message of a channel for a queue, though they would of any other channel: RabbitMQ 3.10 asks the
//! node that led the queue when the channel first published to it, for as long as that node is away, and remembers a queue as full
//! that has not been for long (`rabbit_fifo_client.erl`, `enqueue/3`). Nothing tells such a channel from one whose queue is full or
//! slow, so each time that one is given up for a destination, the next has twice as long for it, until it confirms.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use lapin::types::ShortString;

/// How long a channel may confirm nothing of what is published to one destination.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most that patience grows to: a publish that is in doubt is one more of the same for the workers.
const MOST_PATIENCE: Duration = Duration::from_mins(5);

/// An exchange and a routing key.
pub(super) type Destination = (ShortString, ShortString);

/// Since when a channel has confirmed nothing, by where it publishes to.
#[derive(Debug, Default)]
pub(super) struct Silences {
    since: HashMap<Destination, Since>,
    /// Of destinations that earlier channels were given up for.
    patience: HashMap<Destination, Duration>,
}

#[derive(Debug)]
struct Since {
    begin: Instant,
    /// When the last message went there.
    last: Instant,
    /// How many have neither been confirmed nor refused.
    unanswered: usize,
}

impl Silences {
    /// Of the channel that takes the place of one that was given up for this destination.
    pub(super) fn of_successor(&self, given_up_for: Destination) -> Self {
        let mut patience = self.patience.clone();
        let longer = (self.patience(&given_up_for) * 2).min(MOST_PATIENCE);
        patience.insert(given_up_for, longer);
        Self { since: HashMap::new(), patience }
    }

    fn patience(&self, to: &Destination) -> Duration {
        self.patience.get(to).copied().unwrap_or(PATIENCE)
    }

    /// A message goes there.
    pub(super) fn published(&mut self, to: &Destination, now: Instant) {
        let patience = self.patience(to);
        let since = self.since.entry(to.clone()).or_insert(Since { begin: now, last: now, unanswered: 0 });
        // What was refused once, long ago, is no silence since then.
        if since.unanswered == 0 && now.saturating_duration_since(since.last) > patience {
            since.begin = now;
        }
        since.last = now;
        since.unanswered += 1;
    }

    /// One that went there is confirmed.
    pub(super) fn confirmed(&mut self, to: &Destination, now: Instant) {
        self.patience.remove(to);
        let Some(since) = self.since.get_mut(to) else { return };
        since.unanswered -= 1;
        since.begin = now;
        if since.unanswered == 0 {
            self.since.remove(to);
        }
    }

    /// One that went there is refused.
    pub(super) fn refused(&mut self, to: &Destination) {
        if let Some(since) = self.since.get_mut(to) {
            since.unanswered -= 1;
        }
    }

    /// The broker has said that it takes nothing: whatever is silent until now does not count.
    pub(super) fn forgive(&mut self, now: Instant) {
        self.since.values_mut().for_each(|since| since.begin = now);
    }

    /// The destination that has been silent for longest of those that have been for too long, and for how long.
    pub(super) fn unbearable(&self, now: Instant) -> Option<(Destination, Duration)> {
        let silent = |(to, since): (&Destination, &Since)| {
            let (silent, patience) = (now.saturating_duration_since(since.begin), self.patience(to));
            let goes_on = since.unanswered > 0 || now.saturating_duration_since(since.last) <= patience;
            (goes_on && silent > patience).then(|| (to.clone(), silent))
        };
        self.since.iter().filter_map(silent).max_by_key(|(_, silent)| *silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(queue: &str) -> Destination {
        ("exchange".into(), queue.into())
    }

    #[test]
    fn what_is_confirmed_now_and_then_is_no_silence() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut silences = Silences::default();
        let unbearable = |silences: &Silences, seconds| {
            silences.unbearable(at(seconds)).map(|(to, silent)| (to.1.to_string(), silent.as_secs()))
        };
        silences.published(&to("slow"), at(0));
        silences.published(&to("slow"), at(0));
        silences.confirmed(&to("slow"), at(9));
        silences.published(&to("full"), at(10));
        silences.refused(&to("full"));
        assert_eq!(unbearable(&silences, 19), None);
        assert_eq!(unbearable(&silences, 20), Some(("slow".to_owned(), 11)));
        silences.forgive(at(20));
        assert_eq!(unbearable(&silences, 30), None);
        silences.confirmed(&to("slow"), at(31));

        // Once refused is not refused ever since.
        silences.published(&to("full"), at(100));
        silences.refused(&to("full"));
        assert_eq!(unbearable(&silences, 100), None);
        for second in 101..=110 {
            silences.published(&to("full"), at(second));
            silences.refused(&to("full"));
            assert_eq!(unbearable(&silences, second), None);
        }
        silences.published(&to("full"), at(111));
        silences.refused(&to("full"));
        assert_eq!(unbearable(&silences, 111), Some(("full".to_owned(), 11)));
        assert_eq!(unbearable(&silences, 130), None, "nobody wants anything of it");
    }

    #[test]
    fn each_successor_has_twice_the_time_for_what_the_one_before_was_given_up_for() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut silences = Silences::default().of_successor(to("full"));
        for queue in ["full", "other"] {
            silences.published(&to(queue), at(0));
        }
        assert_eq!(silences.unbearable(at(11)).unwrap().0, to("other"));
        silences.confirmed(&to("other"), at(12));
        assert_eq!(silences.unbearable(at(20)), None, "what another destination confirms changes nothing");
        assert_eq!(silences.unbearable(at(21)).unwrap().0, to("full"));
        let mut silences = silences.of_successor(to("full"));
        silences.published(&to("full"), at(0));
        assert_eq!(silences.unbearable(at(40)), None);
        silences.confirmed(&to("full"), at(41));
        silences.published(&to("full"), at(41));
        assert_eq!(silences.unbearable(at(52)).unwrap().0, to("full"));
    }
}
