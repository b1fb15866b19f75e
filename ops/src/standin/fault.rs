//! What may go wrong at a server, as data: a script says what the next requests of an endpoint get.

use std::time::Duration;

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `POST /auth/recording/info`.
    Info,
    /// `POST /auth/recording/recordingInfo`: the same on older servers.
    OldInfo,
    /// `POST /auth/recording/getDownloadToken`.
    DownloadToken,
    /// `POST /auth/room/isRoomActive`.
    IsRoomActive,
    /// `GET /download/recording/<token>`.
    Download,
    /// `GET /storage/<record id>`: the object storage that a download is redirected to. It wants no token.
    Storage,
}

/// What one request gets instead of what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// No fault: for a script that goes wrong later.
    None,
    /// This status, with a few words of text; a proxy in front says 429 or 502 like this.
    Status {
        /// The status.
        status: u16,
        /// `Retry-After`, in whole seconds.
        retry_after: Option<Duration>,
    },
    /// "recording not found", as long as the file is still being made; for a download 404: the file is gone.
    NotFound,
    /// 401: the key is wrong; for a download the token has expired.
    Unauthorized,
    /// A page of HTML with status 200, as captive portals and login pages do.
    Html,
    /// The answer, but only after this long.
    Late(Duration),
    /// The answer, but only when [`StandIn::let_go`](super::StandIn::let_go) says so.
    Held,
    /// No answer: the connection is closed.
    Disconnect,
    /// The answer's body at this speed.
    Slow {
        /// How fast.
        bytes_per_second: u64,
    },
    /// The connection is closed in the middle of the body.
    CutOff {
        /// After about this much of it, never more.
        after_bytes: u64,
    },
    /// `Content-Length` is not that of the file; the body ends there, or at its own end if that is sooner.
    WrongLength {
        /// What it says.
        announced: u64,
    },
    /// No `Content-Length`: the body comes in chunks, of which nobody knows how many there will be.
    NoLength,
    /// 307 to the same file at [`Endpoint::Storage`].
    Redirect,
    /// 307 to here.
    RedirectTo(String),
}

impl Fault {
    /// 429 with `Retry-After`.
    pub fn too_many_requests(retry_after: Duration) -> Self {
        Self::Status { status: 429, retry_after: Some(retry_after) }
    }

    /// This status, and no `Retry-After`.
    pub fn status(status: u16) -> Self {
        Self::Status { status, retry_after: None }
    }
}
