//! The tokens that open a download: JWTs, HS256 over the API secret, with the file's path as their subject.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rollcall_shared::signature;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Claims {
    exp: i64,
    iss: String,
    nbf: i64,
    sub: String,
}

/// A token for the file at `path`, good from `now` (Unix seconds) for `lifetime` seconds.
pub(super) fn sign(api_key: &str, secret: &SecretString, path: &str, now: i64, lifetime: i64) -> String {
    let claims = Claims { exp: now + lifetime, iss: api_key.to_owned(), nbf: now, sub: path.to_owned() };
    let claims = serde_json::to_vec(&claims).expect("strings and integers always serialise");
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
    let signature = signature_of(secret, &signed);
    format!("{signed}.{signature}")
}

/// The path of the file that `token` opens at `now`; else what the server answers, 401 and these words.
pub(super) fn verify(secret: &SecretString, token: &str, now: i64) -> Result<String, &'static str> {
    let malformed = "go-jose/go-jose: compact JWS format must have three parts";
    let (signed, signature) = token.rsplit_once('.').ok_or(malformed)?;
    let (_, claims) = signed.split_once('.').ok_or(malformed)?;
    if signature != signature_of(secret, signed) {
        return Err("go-jose/go-jose: error in cryptographic primitive");
    }
    let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| malformed)?;
    let claims: Claims = serde_json::from_slice(&claims).map_err(|_| malformed)?;
    if claims.exp < now { Err(EXPIRED) } else { Ok(claims.sub) }
}

/// What a server says of a token whose time is over.
pub(super) const EXPIRED: &str = "go-jose/go-jose/jwt: validation failed, token is expired (exp)";

fn signature_of(secret: &SecretString, signed: &str) -> String {
    let mac = hex::decode(signature::sign_hmac(secret, signed.as_bytes())).expect("sign_hmac answers hex");
    URL_SAFE_NO_PAD.encode(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_its_file_for_its_time() {
        let secret = "secret".into();
        let token = sign("key", &secret, "node_01/a.mp4", 1000, 60);
        assert_eq!(verify(&secret, &token, 1060), Ok("node_01/a.mp4".to_owned()));
        assert_eq!(verify(&secret, &token, 1061), Err(EXPIRED));
        assert!(verify(&"other".into(), &token, 1000).unwrap_err().contains("cryptographic"));
        assert!(verify(&secret, "nonsense", 1000).unwrap_err().contains("three parts"));
    }

    #[test]
    fn tokens_are_those_of_a_running_server() {
        let captured: serde_json::Value =
            serde_json::from_str(include_str!("answers/recording_download_token.json")).unwrap();
        let body: serde_json::Value = serde_json::from_str(captured["body"].as_str().unwrap()).unwrap();
        let secret = "zumyyYWqv7KR2kUqvYdq4z4sXg7XTBD2ljT6".into();
        let path =
            "node_01/bf939269-8471-4dc9-8f20-e27fc5887474/bf939269-8471-4dc9-8f20-e27fc5887474-1795308813921.mp4";
        assert_eq!(body["token"], sign("plugnmeet", &secret, path, 1_795_309_276, 1800));
    }
}
