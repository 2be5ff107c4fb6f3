//! The token request with the crate oauth2, over our client that asks again.

use crate::{need, read_secret, send_patiently, Fault, Issued, Refused};
use oauth2::basic::BasicClient;
use oauth2::{AuthUrl, ClientId, ClientSecret, HttpRequest, HttpResponse};
use oauth2::{RequestTokenError, Scope, TokenResponse, TokenUrl};
use reqwest::Client;
use std::{env, time::Duration};

/// Asks for a token.
pub async fn token(client: &Client) -> Result<Issued, Fault> {
    // The crate wants the URL of a page for users; this grant has none.
    let unused = AuthUrl::new("https://localhost".to_string())?;
    let secret = ClientSecret::new(read_secret()?);
    let url = TokenUrl::new(need("TOKEN_URL"))?;
    let oauth = BasicClient::new(ClientId::new(need("CLIENT_ID")), Some(secret), unused, Some(url));
    let mut request = oauth.exchange_client_credentials();
    if let Ok(scope) = env::var("SCOPE") {
        request = request.add_scope(Scope::new(scope));
    }
    let told = request.request_async(|asked| send(client, asked)).await.map_err(as_fault)?;
    let lifetime = told.expires_in().unwrap_or(Duration::ZERO);
    Ok(Issued { token: told.access_token().secret().clone(), lifetime })
}

async fn send(client: &Client, asked: HttpRequest) -> Result<HttpResponse, reqwest::Error> {
    let request = client.request(asked.method, asked.url).headers(asked.headers).body(asked.body);
    let answer = send_patiently(request).await?;
    let (status_code, headers) = (answer.status(), answer.headers().clone());
    Ok(HttpResponse { status_code, headers, body: answer.bytes().await?.to_vec() })
}

fn as_fault(error: RequestTokenError<reqwest::Error, oauth2::basic::BasicErrorResponse>) -> Fault {
    match error {
        RequestTokenError::ServerResponse(told) => {
            let error_description = told.error_description().cloned().unwrap_or_default();
            Refused { error: told.error().to_string(), error_description }.into()
        }
        // A connection that broke, or an answer that is no JSON.
        other => other.into(),
    }
}
