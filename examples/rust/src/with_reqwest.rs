//! The token request with reqwest alone.

use crate::{need, read_secret, send_patiently, Fault, Issued, Refused};
use reqwest::Client;
use serde::Deserialize;
use std::{env, time::Duration};
use url::form_urlencoded::byte_serialize;

#[derive(Deserialize)]
struct Told {
    access_token: String,
    expires_in: u64,
}

/// Asks for a token.
pub async fn token(client: &Client) -> Result<Issued, Fault> {
    let mut form = vec![("grant_type", "client_credentials".to_string())];
    if let Ok(scope) = env::var("SCOPE") {
        form.push(("scope", scope));
    }
    // RFC 6749 section 2.3.1: form-encoded first.
    let encode = |text: String| byte_serialize(text.as_bytes()).collect::<String>();
    let (id, secret) = (encode(need("CLIENT_ID")), encode(read_secret()?));
    let request = client.post(need("TOKEN_URL")).basic_auth(id, Some(secret)).form(&form);
    let answer = send_patiently(request).await?;
    if !answer.status().is_success() {
        return Err(answer.json::<Refused>().await?.into());
    }
    let told: Told = answer.json().await?;
    Ok(Issued { token: told.access_token, lifetime: Duration::from_secs(told.expires_in) })
}
