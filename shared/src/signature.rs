//! Who really sent a webhook: both of PlugNMeet's signature schemes, checked against every configured server.
//!
//! - **token**, what every real server sends: `Hash-Token` (and `Authorization`, which proxies may strip) carries a JWT,
//!   HS256 over the API secret, whose `sha256` claim is the standard base64 of the body's SHA-256.
//! - **hmac**, what integrations written after the Django one send: `Hash-Token` is the lower-case hex of
//!   HMAC-SHA256(body, API secret). Nothing in it limits a replay.
//!
//! A server may have a previous secret while its key is being rotated; both are good. HS256 is `hmac`, `sha2` and
//! `base64` and nothing else, so no JWT crate (today's bring RSA and elliptic curves along).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// How far the clocks of a server and of this machine may differ, in seconds.
pub const CLOCK_LEEWAY: i64 = 60;
/// How long a signed token lives, in seconds: what a PlugNMeet server gives its own.
pub const TOKEN_LIFETIME: i64 = 300;

/// How a webhook is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// A JWT over the body's hash.
    Token,
    /// The body's HMAC.
    Hmac,
}

impl Scheme {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Token, Self::Hmac];

    /// Its name in the settings and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Hmac => "hmac",
        }
    }
}

/// Who signed a webhook, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed<'a> {
    /// The server's name in the settings.
    pub source: &'a str,
    /// How it signed.
    pub scheme: Scheme,
}

/// One server's key and the secrets that are good for it now.
#[derive(Debug, Clone)]
pub struct ServerKeys {
    /// The server's name in the settings; what a verified webhook is said to come from.
    pub source: String,
    /// The API key, which a token names as its issuer.
    pub api_key: String,
    /// The current secret, then the previous one, if there is one.
    pub secrets: Vec<SecretString>,
    /// How it may sign.
    pub schemes: Vec<Scheme>,
}

/// Why a signature was refused. For the log and the metrics; never for the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Neither header is there.
    #[error("neither Hash-Token nor Authorization is there")]
    Missing,
    /// The header is neither a token nor 64 hex digits, or its parts do not parse.
    #[error("the signature cannot be read as a token or as hex")]
    Malformed,
    /// The token says an algorithm other than HS256.
    #[error("the token's algorithm is not HS256")]
    Algorithm,
    /// No configured server has the token's issuer as its key.
    #[error("no configured server has the API key that the token names")]
    UnknownKey,
    /// No secret makes this signature.
    #[error("the signature was not made with a configured secret")]
    WrongSecret,
    /// A secret of a server's makes this signature, whose settings do not take signatures of this kind.
    #[error("the settings (plugnmeet.<name>.signatures) do not take signatures of this kind from this server")]
    Scheme,
    /// The token is not valid yet: the sender's clock is ahead.
    #[error("the token is not valid yet: is a clock wrong?")]
    NotYetValid,
    /// The token has expired.
    #[error("the token has expired")]
    Expired,
    /// The token is good, but it was made for another body.
    #[error("the token was made for another body")]
    OtherBody,
}

impl Rejection {
    /// A short stable word for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::UnknownKey => "unknown_key",
            Self::WrongSecret => "wrong_secret",
            Self::Scheme => "scheme",
            Self::NotYetValid => "not_yet_valid",
            Self::Expired => "expired",
            Self::OtherBody => "other_body",
        }
    }
}

/// Checks webhooks against the configured servers.
#[derive(Debug)]
pub struct Verifier {
    servers: Vec<Server>,
}

#[derive(Debug)]
struct Server {
    source: String,
    api_key: String,
    /// Keyed once: keying hashes two blocks, which every check would pay again.
    macs: Vec<Hmac<Sha256>>,
    schemes: Vec<Scheme>,
}

impl Verifier {
    /// A verifier for these servers.
    pub fn new(servers: impl IntoIterator<Item = ServerKeys>) -> Self {
        let servers = servers
            .into_iter()
            .map(|keys| Server {
                macs: keys.secrets.iter().map(mac).collect(),
                source: keys.source,
                api_key: keys.api_key,
                schemes: keys.schemes,
            })
            .collect();
        Self { servers }
    }

    /// Which server signed `body`, and how.
    ///
    /// `hash_token` and `authorization` are the headers as they came; `now` is Unix seconds. The first header decides
    /// where it is there, since proxies put credentials of their own into the second.
    ///
    /// # Errors
    /// Why the signature is not accepted.
    pub fn verify(
        &self,
        hash_token: Option<&[u8]>,
        authorization: Option<&[u8]>,
        body: &[u8],
        now: i64,
    ) -> Result<Signed<'_>, Rejection> {
        let signature = hash_token.or(authorization).ok_or(Rejection::Missing)?;
        let signature = str::from_utf8(signature).map_err(|_| Rejection::Malformed)?;
        if signature.len() == 64 { self.verify_hmac(signature, body) } else { self.verify_token(signature, body, now) }
    }

    fn verify_hmac(&self, signature: &str, body: &[u8]) -> Result<Signed<'_>, Rejection> {
        let mut expected = [0; 32];
        hex::decode_to_slice(signature, &mut expected).map_err(|_| Rejection::Malformed)?;
        let mut servers = self.servers.iter();
        servers.find(|server| server.signed(body, &expected)).ok_or(Rejection::WrongSecret)?.may_sign(Scheme::Hmac)
    }

    fn verify_token(&self, token: &str, body: &[u8], now: i64) -> Result<Signed<'_>, Rejection> {
        let token = Token::parse(token)?;
        let mut same_key = self.servers.iter().filter(|server| server.api_key == token.claims.iss).peekable();
        same_key.peek().ok_or(Rejection::UnknownKey)?;
        let server = same_key
            .find(|server| server.signed(token.signed.as_bytes(), &token.signature))
            .ok_or(Rejection::WrongSecret)?;
        token.claims.check_time(now)?;
        token.claims.check_body(body)?;
        server.may_sign(Scheme::Token)
    }
}

impl Server {
    /// That it has signed so, if it may.
    fn may_sign(&self, scheme: Scheme) -> Result<Signed<'_>, Rejection> {
        if self.schemes.contains(&scheme) {
            Ok(Signed { source: &self.source, scheme })
        } else {
            Err(Rejection::Scheme)
        }
    }

    /// Whether one of the server's secrets makes this signature; compared in constant time.
    fn signed(&self, bytes: &[u8], signature: &[u8]) -> bool {
        self.macs.iter().any(|mac| mac.clone().chain_update(bytes).verify_slice(signature).is_ok())
    }
}

/// A token taken apart. Nothing in it is to be believed before its signature was checked.
struct Token<'a> {
    /// The header and the claims as they were signed.
    signed: &'a str,
    claims: Claims,
    signature: Vec<u8>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    exp: i64,
    nbf: Option<i64>,
    sha256: String,
}

impl<'a> Token<'a> {
    fn parse(token: &'a str) -> Result<Self, Rejection> {
        let (signed, signature) = token.rsplit_once('.').ok_or(Rejection::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(Rejection::Malformed)?;
        if decode_json::<Header>(header)?.alg != "HS256" {
            return Err(Rejection::Algorithm);
        }
        Ok(Self { signed, claims: decode_json(claims)?, signature: decode(signature)? })
    }
}

impl Claims {
    fn check_time(&self, now: i64) -> Result<(), Rejection> {
        if self.exp.saturating_add(CLOCK_LEEWAY) < now {
            return Err(Rejection::Expired);
        }
        if self.nbf.is_some_and(|nbf| nbf.saturating_sub(CLOCK_LEEWAY) > now) {
            return Err(Rejection::NotYetValid);
        }
        Ok(())
    }

    /// PlugNMeet's own blog compares the claim with a hex digest; what its servers send is standard base64.
    fn check_body(&self, body: &[u8]) -> Result<(), Rejection> {
        let claimed = STANDARD.decode(&self.sha256).map_err(|_| Rejection::Malformed)?;
        if bool::from(Sha256::digest(body).as_slice().ct_eq(&claimed)) { Ok(()) } else { Err(Rejection::OtherBody) }
    }
}

fn decode(part: &str) -> Result<Vec<u8>, Rejection> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| Rejection::Malformed)
}

fn decode_json<T: serde::de::DeserializeOwned>(part: &str) -> Result<T, Rejection> {
    serde_json::from_slice(&decode(part)?).map_err(|_| Rejection::Malformed)
}

fn mac(secret: &SecretString) -> Hmac<Sha256> {
    Hmac::new_from_slice(secret.expose_secret().as_bytes()).expect("HMAC takes a key of any length")
}

/// The token that a PlugNMeet server would send with `body` at `now` (Unix seconds), good for five minutes.
pub fn sign_token(api_key: &str, secret: &SecretString, body: &[u8], now: i64) -> String {
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let claims = Claims {
        iss: api_key.to_owned(),
        exp: now + TOKEN_LIFETIME,
        nbf: Some(now),
        sha256: STANDARD.encode(Sha256::digest(body)),
    };
    let claims = serde_json::to_vec(&claims).expect("strings and integers always serialise");
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
    let signature = mac(secret).chain_update(&signed).finalize().into_bytes();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The lower-case hex HMAC-SHA256 of `body`: the webhooks' hmac scheme, and how requests to the `/auth` API are signed.
pub fn sign_hmac(secret: &SecretString, body: &[u8]) -> String {
    hex::encode(mac(secret).chain_update(body).finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;
    const BODY: &[u8] = br#"{"event":"room_started"}"#;

    fn keys(source: &str, api_key: &str, secrets: &[&str]) -> ServerKeys {
        ServerKeys {
            source: source.into(),
            api_key: api_key.into(),
            secrets: secrets.iter().map(|secret| (*secret).into()).collect(),
            schemes: Scheme::ALL.into(),
        }
    }

    fn verifier() -> Verifier {
        Verifier::new([keys("main", "key", &["new", "old"]), keys("other", "key", &["third"])])
    }

    fn verify(signature: &str, now: i64) -> Result<&'static str, Rejection> {
        let verifier = Box::leak(Box::new(verifier()));
        verifier.verify(Some(signature.as_bytes()), None, BODY, now).map(|signed| signed.source)
    }

    fn token(header: &str, claims: &str, secret: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = mac(&secret.into()).chain_update(&signed).finalize().into_bytes();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    #[test]
    fn both_schemes_say_which_server_signed() {
        for (secret, source) in [("new", "main"), ("old", "main"), ("third", "other")] {
            assert_eq!(verify(&sign_token("key", &secret.into(), BODY, NOW), NOW), Ok(source));
            assert_eq!(verify(&sign_hmac(&secret.into(), BODY), NOW), Ok(source));
        }
    }

    #[test]
    fn a_server_signs_only_as_its_settings_say() {
        let (token, hmac) = (sign_token("key", &"new".into(), BODY, NOW), sign_hmac(&"new".into(), BODY));
        for scheme in Scheme::ALL {
            let verifier = Verifier::new([ServerKeys { schemes: vec![scheme], ..keys("main", "key", &["new"]) }]);
            let verify = |signature: &str| verifier.verify(Some(signature.as_bytes()), None, BODY, NOW);
            let (taken, refused) = if scheme == Scheme::Token { (&token, &hmac) } else { (&hmac, &token) };
            assert_eq!(verify(taken), Ok(Signed { source: "main", scheme }));
            assert_eq!(verify(refused), Err(Rejection::Scheme));
            // Who has no secret learns nothing of it.
            assert_eq!(verify(&sign_hmac(&"guess".into(), BODY)), Err(Rejection::WrongSecret));
        }
    }

    #[test]
    fn hash_token_decides_before_authorization() {
        let good = sign_token("key", &"new".into(), BODY, NOW);
        let verifier = verifier();
        let check = |hash: Option<&str>, auth: Option<&str>| {
            verifier.verify(hash.map(str::as_bytes), auth.map(str::as_bytes), BODY, NOW).map(|signed| signed.source)
        };
        assert_eq!(check(None, Some(&good)), Ok("main"));
        assert_eq!(check(Some(&good), Some("Basic cHJveHk6eA==")), Ok("main"));
        assert_eq!(check(Some("Basic cHJveHk6eA=="), Some(&good)), Err(Rejection::Malformed));
        assert_eq!(check(None, None), Err(Rejection::Missing));
    }

    #[test]
    fn a_token_lives_five_minutes_and_a_minute_of_leeway() {
        let token = sign_token("key", &"new".into(), BODY, NOW);
        for (now, expected) in [
            (NOW - 61, Err(Rejection::NotYetValid)),
            (NOW - 60, Ok("main")),
            (NOW + 360, Ok("main")),
            (NOW + 361, Err(Rejection::Expired)),
        ] {
            assert_eq!(verify(&token, now), expected, "at {}", now - NOW);
        }
    }

    #[test]
    fn what_is_not_signed_by_us_is_refused() {
        let good = sign_token("key", &"new".into(), BODY, NOW);
        let claims = |sha256: &str| format!(r#"{{"iss":"key","exp":{},"nbf":{NOW},"sha256":"{sha256}"}}"#, NOW + 300);
        let digest = STANDARD.encode(Sha256::digest(BODY));
        let hs256 = r#"{"alg":"HS256","typ":"JWT"}"#;
        for (signature, expected) in [
            (token(hs256, &claims(&digest), "guess"), Rejection::WrongSecret),
            (token(r#"{"alg":"none"}"#, &claims(&digest), "new"), Rejection::Algorithm),
            (token(r#"{"alg":"RS256"}"#, &claims(&digest), "new"), Rejection::Algorithm),
            (token(hs256, &claims(&STANDARD.encode(Sha256::digest(b"x"))), "new"), Rejection::OtherBody),
            (token(hs256, &claims(&hex::encode(Sha256::digest(BODY))), "new"), Rejection::OtherBody),
            (token(hs256, &claims("?"), "new"), Rejection::Malformed),
            (token(hs256, r#"{"iss":"key","sha256":""}"#, "new"), Rejection::Malformed),
            (sign_token("nobody", &"new".into(), BODY, NOW), Rejection::UnknownKey),
            (good[..good.len() - 3].to_owned(), Rejection::WrongSecret),
            (good.rsplit_once('.').unwrap().0.to_owned(), Rejection::Malformed),
            (sign_hmac(&"guess".into(), BODY), Rejection::WrongSecret),
            ("z".repeat(64), Rejection::Malformed),
            (String::new(), Rejection::Malformed),
        ] {
            assert_eq!(verify(&signature, NOW), Err(expected), "{signature}");
        }
    }
}
