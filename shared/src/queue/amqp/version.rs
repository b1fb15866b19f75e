//! Which version a broker is: lapin reads it and keeps it to itself, so it is asked for once more. AMQP has no way to leave
//! after the first words, so the broker's log says that a client closed its connection.

use futures_util::io::{AsyncReadExt as _, AsyncWriteExt as _};
use lapin::protocol::connection::parse_start;
use lapin::runtime::default_runtime;
use lapin::tcp::AMQPUriTcpExt as _;
use lapin::types::AMQPValue;
use lapin::uri::AMQPUri;

/// What a client begins with: AMQP 0-9-1.
const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";
/// A frame's type (1: a method), channel (0) and length.
const FRAME_HEADER: usize = 7;
/// Connection.Start, which is class 10 and method 10.
const START: [u8; 4] = [0, 10, 0, 10];
/// The longest first frame, in bytes; RabbitMQ's has about 500.
const MAX_FRAME: u32 = 64 * 1024;

/// The version in the broker's first words; `None` where they are not understood, or it does not answer.
pub(super) async fn of(uri: &AMQPUri) -> Option<String> {
    let runtime = default_runtime().ok()?;
    let mut stream = uri.connect_async(&runtime).await.ok()?;
    stream.write_all(PROTOCOL_HEADER).await.ok()?;
    stream.flush().await.ok()?;
    let mut header = [0; FRAME_HEADER];
    stream.read_exact(&mut header).await.ok()?;
    let [1, 0, 0, length @ ..] = header else { return None };
    let length = Some(u32::from_be_bytes(length)).filter(|length| *length <= MAX_FRAME)?;
    let mut frame = vec![0; usize::try_from(length).ok()?];
    stream.read_exact(&mut frame).await.ok()?;
    let (_, start) = parse_start(frame.strip_prefix(&START)?).ok()?;
    match start.server_properties.inner().get("version")? {
        AMQPValue::LongString(version) => String::from_utf8(version.as_bytes().to_vec()).ok(),
        _ => None,
    }
}
