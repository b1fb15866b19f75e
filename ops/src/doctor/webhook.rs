//! The webhook endpoint: whether an event that is signed as a server signs reaches an ingress that knows the server.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::header::DATE;
use reqwest::{Client, Response, StatusCode, redirect};
use rollcall_shared::config::{self, Settings};
use rollcall_shared::plugnmeet::api::Clock;
use rollcall_shared::signature::{self, CLOCK_LEEWAY, Scheme};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::json;
use url::Url;
use uuid::Uuid;

use super::finding::Finding;
use crate::causes;
use crate::send::ingress_url;

/// An event that no worker wants: the ingress takes it in, and keeps it nowhere.
const EVENT: &str = "rollcall_doctor";
/// How long an ingress may take; it answers in milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Posts one event for each secret of a server, to `url` or to where the settings have their ingress.
pub(super) async fn check(
    settings: &Settings,
    name: &str,
    server: &config::PlugNMeet,
    url: Option<&Url>,
) -> Vec<Finding> {
    let check = format!("webhook {name}");
    let url = match url {
        Some(url) => url.clone(),
        None if settings.ingress.address.port() == 0 => {
            return vec![Finding::warning(
                check,
                "not checked: with port 0 in ingress.address nobody knows where the ingress is",
                "give its address by --url",
            )];
        }
        None => match ingress_url(&settings.ingress) {
            Ok(url) => url,
            Err(error) => return vec![Finding::failed(check, error, "put ingress.address and ingress.paths right")],
        },
    };
    let mut findings = vec![post(&check, "api_secret", name, server, &server.api_secret, &url).await];
    if let Some(previous) = &server.previous_secret {
        let check = format!("{check} (previous_secret)");
        findings.push(post(&check, "previous_secret", name, server, previous, &url).await);
    }
    findings.push(signatures(name, &server.signatures));
    findings
}

/// How webhooks may be signed. Nothing is wrong with either; but what is not needed is one more way in.
fn signatures(name: &str, schemes: &[Scheme]) -> Finding {
    let (check, taken) = (format!("signatures {name}"), schemes.iter().map(|scheme| scheme.as_str()));
    let taken = taken.collect::<Vec<_>>().join(" and ");
    Finding::ok(
        check,
        match schemes.contains(&Scheme::Hmac) {
            true => format!(
                "{taken}; what is signed with hmac is good for ever: where nobody but PlugNMeet itself posts, set \
                 plugnmeet.{name}.signatures to [\"token\"]"
            ),
            false => format!("{taken} only"),
        },
    )
}

async fn post(
    check: &str,
    setting: &str,
    name: &str,
    server: &config::PlugNMeet,
    secret: &SecretString,
    url: &Url,
) -> Finding {
    let body = json!({ "event": EVENT, "id": Uuid::new_v4() }).to_string();
    let asked = Utc::now();
    let token = if server.signatures.contains(&Scheme::Token) {
        signature::sign_token(&server.api_key, secret, body.as_bytes(), asked.timestamp())
    } else {
        signature::sign_hmac(secret, body.as_bytes())
    };
    let sent = async {
        // PlugNMeet too posts where it was told, and nowhere else.
        let client = Client::builder().redirect(redirect::Policy::none()).timeout(ANSWER_TIMEOUT).build()?;
        let request = client.post(url.clone()).header("Content-Type", "application/json");
        request.header("Hash-Token", &token).header("Authorization", &token).body(body).send().await
    };
    match sent.await {
        Ok(response) => about(response, check, url, &format!("plugnmeet.{name}.{setting}"), asked).await,
        Err(error) => Finding::failed(
            check,
            format!("no answer from {url}: {}", causes(error.without_url())),
            "start the ingress (rollcall-ingress, or rollcall up); if it runs elsewhere, give its address by --url",
        ),
    }
}

async fn about(response: Response, check: &str, url: &Url, setting: &str, asked: DateTime<Utc>) -> Finding {
    let (status, clock) = (response.status(), response.headers().get(DATE).cloned());
    let clock = clock.and_then(|date| Clock::of(&date, asked, Utc::now()));
    let is_off = clock.is_some_and(|clock| clock.at_least.max(-clock.at_most).num_seconds() > CLOCK_LEEWAY);
    let todo = match status {
        StatusCode::OK if is_ignored(response).await => {
            return Finding::ok(check, format!("{url} takes what {setting} signs"));
        }
        StatusCode::OK => "something else than Rollcall's ingress answers there: whatever is posted to it is lost",
        StatusCode::FORBIDDEN if is_off => {
            "the ingress's machine shows another time than this one: let both keep time (NTP)"
        }
        StatusCode::FORBIDDEN => {
            "the ingress there does not know this key and secret: give it the same settings, and start it again"
        }
        StatusCode::NOT_FOUND => "that is no path of ingress.paths, or a proxy in front of it changes the path",
        StatusCode::METHOD_NOT_ALLOWED => "something else than Rollcall's ingress answers there",
        StatusCode::UNAUTHORIZED => {
            "a proxy in front of it asks for a password, which PlugNMeet has not: let webhooks through"
        }
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => {
            "a proxy answers, and the ingress behind it does not: start it, and look where the proxy sends webhooks"
        }
        status if status.is_redirection() => {
            "PlugNMeet is to post where that redirects to: give it and --url that address"
        }
        _ => "look what answers there: the ingress, or a proxy in front of it",
    };
    Finding::failed(check, format!("{url} answers {status} to what {setting} signs"), todo)
}

/// Whether it is an ingress that has taken the event for good, and kept it nowhere.
async fn is_ignored(response: Response) -> bool {
    #[derive(Deserialize)]
    struct Answer {
        result: String,
    }
    response.json::<Answer>().await.is_ok_and(|answer| answer.result == "ignored")
}

#[cfg(test)]
mod tests {
    use rollcall_shared::event::WorkerName;

    use super::*;

    #[test]
    fn no_worker_wants_the_event() {
        assert_eq!(WorkerName::wanting(EVENT), None);
    }
}
