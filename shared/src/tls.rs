//! TLS: rustls with ring, everywhere.

/// Makes ring the provider of this process, which reqwest is built without one of its own. Again does no harm.
pub fn use_ring() {
    // An error says that there is a provider already, and that is ring: no other is built in.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
