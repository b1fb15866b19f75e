//! An ingress that takes webhooks in TLS, by a certificate that is renewed while it runs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use reqwest::{Certificate, Client, StatusCode};
use rollcall_shared::signature::sign_hmac;
use rollcall_tests::eventually;
use rollcall_tests::installation::{Ingress, Installation};
use rollcall_tests::joins::join;

const LIMIT: Duration = Duration::from_secs(30);

/// Makes a certificate for this machine, and its key.
fn make(folder: &Path, certificate: &str, key: &str) {
    let config = folder.join("openssl.cnf");
    let leaf = "[req]\ndistinguished_name = name\nx509_extensions = leaf\nprompt = no\n[name]\nCN = Rollcall's test\n\
                [leaf]\nsubjectAltName = IP:127.0.0.1\n";
    fs::write(&config, leaf).unwrap();
    let made = Command::new("openssl")
        .current_dir(folder)
        .args(["req", "-x509", "-nodes", "-days", "30", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-config", "openssl.cnf", "-out", certificate, "-keyout", key])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// Posts an event over a connection of its own, and trusts this certificate only.
async fn post(ingress: &Ingress, trusted: &Path) -> Result<StatusCode, reqwest::Error> {
    rollcall_shared::tls::use_ring();
    let trusted = Certificate::from_pem(&fs::read(trusted).unwrap()).unwrap();
    let client = Client::builder().tls_certs_only([trusted]).build().unwrap();
    let body = join("room", "1").to_string();
    let signature = sign_hmac(&"secret".into(), body.as_bytes());
    let request = client.post(format!("https://{}/webhooks/plugnmeet", ingress.address)).body(body);
    Ok(request.header("Hash-Token", signature).send().await?.status())
}

#[tokio::test]
async fn a_certificate_is_renewed_without_a_stop_and_a_bad_one_changes_nothing() {
    let mut installation = Installation::on_files().await;
    let folder = installation.directory.clone();
    make(&folder, "first.pem", "first.key");
    make(&folder, "second.pem", "second.key");
    let (certificate, key) = (folder.join("tls.pem"), folder.join("tls.key"));
    installation.set("ingress.tls.certificate", certificate.display());
    installation.set("ingress.tls.key", key.display());
    let (first, second) = (folder.join("first.pem"), folder.join("second.pem"));
    fs::copy(&first, &certificate).unwrap();
    fs::copy(folder.join("first.key"), &key).unwrap();

    let ingress = installation.ingress().await;
    assert_eq!(post(&ingress, &first).await.unwrap(), 200);
    assert!(post(&ingress, &second).await.is_err());
    // Who does not speak TLS is told nothing.
    assert!(reqwest::get(format!("http://{}/", ingress.address)).await.is_err());

    // Whoever renews them writes one after the other.
    fs::copy(folder.join("second.key"), &key).unwrap();
    ingress.process.logs("A new certificate cannot be used").await;
    assert_eq!(post(&ingress, &first).await.unwrap(), 200);
    fs::copy(&second, &certificate).unwrap();
    eventually(LIMIT, || async { post(&ingress, &second).await.map_err(|error| format!("{error:?}")) }).await;
    assert!(post(&ingress, &first).await.is_err());
    ingress.process.stop().await;
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_stops_the_start_and_is_named() {
    let mut installation = Installation::on_files().await;
    make(&installation.directory, "first.pem", "first.key");
    make(&installation.directory, "second.pem", "second.key");
    for (certificate, key, texts) in [
        ("nowhere.pem", "first.key", &["setting ingress.tls.certificate: ", "nowhere.pem cannot be read"][..]),
        ("first.pem", "second.key", &["ingress.tls.certificate (", "first.pem", "ingress.tls.key (", "its key"]),
        ("first.key", "first.key", &["ingress.tls.certificate (", "its key"]),
        ("first.pem", "first.pem", &["no private key"]),
    ] {
        for (setting, name) in [("certificate", certificate), ("key", key)] {
            installation.set(&format!("ingress.tls.{setting}"), installation.directory.join(name).display());
        }
        let mut process = installation.spawn("rollcall-ingress", &[]);
        assert!(!process.ended().await.success());
        let log = process.log();
        assert!(texts.iter().all(|text| log.contains(text)), "{certificate} {key}: {log}");
    }
}
