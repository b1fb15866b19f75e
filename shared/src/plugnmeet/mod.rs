//! What is PlugNMeet's own: how its webhooks read ([`webhook`]) and how its API is asked ([`api`]).

#[cfg(feature = "plugnmeet-api")]
pub mod api;
#[cfg(feature = "plugnmeet-api")]
pub mod redirects;
pub mod webhook;
