//! Calls an API with tokens of Tokenhouse. The token request is in with_reqwest.rs, or in with_oauth2.rs, with the crate
//! oauth2; all else is the same for both. Neither crate keeps a token: `Token` does.

#[cfg_attr(feature = "oauth2", path = "with_oauth2.rs")]
#[cfg_attr(not(feature = "oauth2"), path = "with_reqwest.rs")]
mod request;

use rand::Rng;
use reqwest::{header, Client, Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fmt, fs, process};
use tokio::sync::Mutex;
use tokio::time::sleep;

const TIMEOUT: Duration = Duration::from_secs(10);
const ATTEMPTS: u32 = 5;

type Fault = Box<dyn Error + Send + Sync>;

/// What the token server says in place of a token. It holds nothing secret.
#[derive(Debug, Deserialize)]
pub struct Refused {
    error: String,
    #[serde(default)]
    error_description: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let advice = match self.error.as_str() {
            "invalid_client" => "check CLIENT_ID and the secret: it may be wrong, over, or the client disabled",
            "invalid_scope" => "ask for less, or have the client granted more",
            "unauthorized_client" => "the client was not made for the grant client_credentials",
            "server_error" => "the token server cannot answer now, and several attempts did not help",
            _ => "see docs/http.md",
        };
        write!(out, "{}: {} ({})", self.error, self.error_description, advice)
    }
}

impl Error for Refused {}

/// Sends a request; again after 429, 5xx and a broken connection: as Retry-After says, otherwise later each time, and
/// never all at once.
pub async fn send_patiently(request: RequestBuilder) -> Result<Response, reqwest::Error> {
    for attempt in 1.. {
        let again = request.try_clone().expect("a body that can be sent twice");
        let mut asked = None;
        match again.send().await {
            Ok(answer) if attempt == ATTEMPTS || !is_worth_a_retry(answer.status()) => return Ok(answer),
            Ok(answer) => {
                let field = answer.headers().get(header::RETRY_AFTER);
                asked = field.and_then(|value| value.to_str().ok()?.parse().ok());
            }
            Err(error) if attempt == ATTEMPTS => return Err(error),
            Err(_) => {}
        }
        let later = || Duration::from_millis(rand::thread_rng().gen_range(0..500 << attempt));
        sleep(asked.map(Duration::from_secs).unwrap_or_else(later)).await;
    }
    unreachable!()
}

fn is_worth_a_retry(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 500 | 502 | 503 | 504)
}

/// What a token server gives.
pub struct Issued {
    token: String,
    lifetime: Duration,
}

/// A token in memory. All tasks wait for the one that fetches.
#[derive(Default)]
struct Token {
    kept: Mutex<Option<(String, Instant)>>,
}

impl Token {
    /// A token that is good for a while, and is not the one that an API has refused.
    async fn get(&self, client: &Client, refused: Option<&str>) -> Result<String, Fault> {
        let mut kept = self.kept.lock().await;
        if let Some((token, until)) = &*kept {
            if Instant::now() < *until && Some(token.as_str()) != refused {
                return Ok(token.clone());
            }
        }
        *kept = None;
        let issued = request::token(client).await?;
        // Five minutes early, or at half of a short lifetime.
        let early = Duration::from_secs(300).min(issued.lifetime / 2);
        *kept = Some((issued.token.clone(), Instant::now() + issued.lifetime - early));
        Ok(issued.token)
    }
}

/// Calls the API; once more with a fresh token when it does not take the present one.
async fn call(client: &Client, token: &Token) -> Result<StatusCode, Fault> {
    let used = token.get(client, None).await?;
    let status = call_with(client, &used).await?;
    if status != StatusCode::UNAUTHORIZED {
        return Ok(status);
    }
    call_with(client, &token.get(client, Some(&used)).await?).await
}

async fn call_with(client: &Client, token: &str) -> Result<StatusCode, Fault> {
    let answer = send_patiently(client.request(Method::GET, need("API_URL")).bearer_auth(token)).await?;
    let status = answer.status();
    answer.bytes().await?;
    Ok(status)
}

/// From a file or the environment, at each fetch: it may have been rotated. Never from an argument, which ps shows.
pub fn read_secret() -> Result<String, Fault> {
    match env::var("CLIENT_SECRET_FILE") {
        Ok(path) => match fs::read_to_string(&path) {
            Ok(secret) => Ok(secret.trim().to_string()),
            Err(error) => Err(format!("CLIENT_SECRET_FILE: {}: {}", path, error).into()),
        },
        Err(_) => Ok(need("CLIENT_SECRET")),
    }
}

pub fn need(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| {
        eprintln!("{} must be set", name);
        process::exit(2)
    })
}

fn number(name: &str) -> f64 {
    env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(1.0)
}

/// Makes some calls at once, several times.
#[tokio::main]
async fn main() {
    let (calls, rounds) = (number("CALLS") as usize, number("ROUNDS") as usize);
    let client = Client::builder().timeout(TIMEOUT).build().expect("a client");
    let token = Arc::new(Token::default());
    for round in 1..=rounds {
        let begin = |_| {
            let (client, token) = (client.clone(), token.clone());
            tokio::spawn(async move { call(&client, &token).await })
        };
        let begun: Vec<_> = (0..calls).map(begin).collect();
        let mut counts = BTreeMap::new();
        for one in begun {
            match one.await.expect("a task that does not panic") {
                Ok(status) => *counts.entry(status.as_u16()).or_insert(0) += 1,
                Err(fault) => {
                    eprintln!("{}", fault);
                    process::exit(1);
                }
            }
        }
        let told: Vec<_> = counts.iter().map(|(status, count)| format!("{} answered {}", count, status)).collect();
        println!("round {}: {} calls, {}", round, calls, told.join(", "));
        if round < rounds {
            sleep(Duration::from_secs_f64(number("PAUSE_SECONDS"))).await;
        }
    }
}
