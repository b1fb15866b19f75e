//! The W3C trace context's `traceparent`: the thread through everything that is done for one event.
//!
//! It reads `00-<trace id>-<parent id>-<flags>`, in lower-case hex, and travels with the event's message. Nothing here sends
//! spans anywhere: the trace id in the logs of the ingress and of a worker is what joins them.

/// How long a `traceparent` is, in bytes. A later version than 00 may have more behind that; nobody has defined one.
const LENGTH: usize = 55;

/// The header's value, if it is a well-formed `traceparent`.
pub fn parse(header: &[u8]) -> Option<&str> {
    let text = str::from_utf8(header).ok().filter(|text| text.len() == LENGTH)?;
    let mut parts = text.split('-');
    let (version, trace_id, parent_id, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_good = parts.next().is_none()
        && is_hex(version, 2)
        && version != "ff"
        && is_id(trace_id, 32)
        && is_id(parent_id, 16)
        && is_hex(flags, 2);
    is_good.then_some(text)
}

/// A `traceparent` that begins a trace of its own, marked as sampled.
pub fn make() -> String {
    // All zeroes would mean "none", so one bit is always set.
    let trace_id = rand::random::<u128>() | 1;
    let parent_id = rand::random::<u64>() | 1;
    format!("00-{trace_id:032x}-{parent_id:016x}-01")
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// An id is hex that is not all zeroes.
fn is_id(text: &str, length: usize) -> bool {
    is_hex(text, length) && text.bytes().any(|byte| byte != b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_well_formed_is_kept() {
        assert_eq!(parse(GOOD.as_bytes()), Some(GOOD));
        let made = make();
        assert_eq!(parse(made.as_bytes()), Some(made.as_str()));
        assert_ne!(made, make());
    }

    #[test]
    fn what_is_not_well_formed_is_refused() {
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7 01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0b-02b7-01é",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(parse(&[0xff; LENGTH]), None);
    }
}
