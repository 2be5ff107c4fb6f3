import java.io.IOException;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.ThreadLocalRandom;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** Calls an API with nothing but the JDK, which has no OAuth client: {@link Token} keeps a token for all threads. */
public class Calls {
    static final Map<String, String> ENV = System.getenv();
    static final HttpClient HTTP = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    static final Duration TIMEOUT = Duration.ofSeconds(10);
    static final int ATTEMPTS = 5;
    static final Set<Integer> WORTH_A_RETRY = Set.of(429, 500, 502, 503, 504);
    static final Map<String, String> ADVICE = Map.of(
            "invalid_client", "check CLIENT_ID and the secret: it may be wrong, over, or the client disabled",
            "invalid_scope", "ask for less, or have the client granted more",
            "unauthorized_client", "the client was not made for the grant client_credentials",
            "server_error", "the token server cannot answer now, and several attempts did not help");

    /** The token server gave no token; the message holds nothing secret. */
    static class Refused extends RuntimeException {
        Refused(String code, String description) {
            super(code + ": " + description + " (" + ADVICE.getOrDefault(code, "see docs/http.md") + ")");
        }
    }

    /** Keeps a token in memory; all threads wait for the one that fetches. */
    static class Token {
        private String kept;
        private long untilNanos;

        /** A token that is good for a while, and is not {@code refused}, which an API did not take. */
        synchronized String get(String refused) throws IOException, InterruptedException {
            if (kept == null || System.nanoTime() - untilNanos >= 0 || kept.equals(refused)) {
                fetch();
            }
            return kept;
        }

        private void fetch() throws IOException, InterruptedException {
            String form = "grant_type=client_credentials" + (ENV.containsKey("SCOPE") ? "&scope=" + encode(ENV.get("SCOPE")) : "");
            // RFC 6749 section 2.3.1: form-encoded first, then base64.
            String credentials = encode(need("CLIENT_ID")) + ":" + encode(readSecret());
            String basic = Base64.getEncoder().encodeToString(credentials.getBytes(StandardCharsets.UTF_8));
            HttpResponse<String> answer = send(HttpRequest.newBuilder(URI.create(need("TOKEN_URL")))
                    .header("Authorization", "Basic " + basic)
                    .header("Content-Type", "application/x-www-form-urlencoded")
                    .POST(HttpRequest.BodyPublishers.ofString(form)));
            if (answer.statusCode() != 200) {
                throw new Refused(text(answer.body(), "error"), text(answer.body(), "error_description"));
            }
            long seconds = Long.parseLong(find(answer.body(), "\"expires_in\"\\s*:\\s*(\\d+)"));
            // Five minutes early, or at half of a short lifetime.
            untilNanos = System.nanoTime() + Duration.ofSeconds(seconds - Math.min(300, seconds / 2)).toNanos();
            kept = text(answer.body(), "access_token");
        }
    }

    /** Calls the API; once more with a fresh token when it does not take the present one. */
    static int call(Token token) throws IOException, InterruptedException {
        String used = token.get(null);
        int status = callWith(used);
        return status == 401 ? callWith(token.get(used)) : status;
    }

    static int callWith(String token) throws IOException, InterruptedException {
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(need("API_URL")));
        return send(request.header("Authorization", "Bearer " + token)).statusCode();
    }

    /** Asks again after 429, 5xx and a broken connection: as Retry-After says, otherwise later each time, and never all at once. */
    static HttpResponse<String> send(HttpRequest.Builder request) throws IOException, InterruptedException {
        for (int attempt = 1; ; attempt++) {
            String asked = "";
            try {
                HttpResponse<String> answer = HTTP.send(request.timeout(TIMEOUT).build(), BodyHandlers.ofString());
                if (!WORTH_A_RETRY.contains(answer.statusCode()) || attempt == ATTEMPTS) {
                    return answer;
                }
                asked = answer.headers().firstValue("Retry-After").orElse("");
            } catch (IOException error) {
                if (attempt == ATTEMPTS) {
                    throw error;
                }
            }
            Thread.sleep(asked.matches("\\d{1,4}")
                    ? 1000L * Integer.parseInt(asked)
                    : ThreadLocalRandom.current().nextLong(500L << attempt));
        }
    }

    /** From a file or the environment; never from an argument, which {@code ps} shows. */
    static String readSecret() throws IOException {
        String file = ENV.get("CLIENT_SECRET_FILE");
        return file == null ? need("CLIENT_SECRET") : Files.readString(Path.of(file)).strip();
    }

    static String need(String name) {
        String value = ENV.get(name);
        if (value == null) {
            throw new IllegalStateException(name + " must be set");
        }
        return value;
    }

    static String encode(String value) {
        return URLEncoder.encode(value, StandardCharsets.UTF_8);
    }

    /** A member of a flat object: the JDK reads no JSON, and neither tokens nor codes hold anything that is escaped. */
    static String text(String json, String name) {
        return find(json, "\"" + name + "\"\\s*:\\s*\"((?:[^\"\\\\]|\\\\.)*)\"");
    }

    static String find(String json, String pattern) {
        Matcher found = Pattern.compile(pattern).matcher(json);
        return found.find() ? found.group(1) : "";
    }

    static int number(String name, int otherwise) {
        return Integer.parseInt(ENV.getOrDefault(name, String.valueOf(otherwise)));
    }

    /** Makes some calls at once, several times. */
    public static void main(String[] arguments) throws InterruptedException {
        int calls = number("CALLS", 1);
        int rounds = number("ROUNDS", 1);
        Token token = new Token();
        var threads = Executors.newFixedThreadPool(Math.min(calls, 64));
        try {
            for (int round = 1; round <= rounds; round++) {
                List<Future<Integer>> asked = new ArrayList<>();
                for (int i = 0; i < calls; i++) {
                    asked.add(threads.submit(() -> call(token)));
                }
                Map<Integer, Integer> counts = new TreeMap<>();
                for (Future<Integer> one : asked) {
                    counts.merge(one.get(), 1, Integer::sum);
                }
                List<String> told = counts.entrySet().stream().map(e -> e.getValue() + " answered " + e.getKey()).toList();
                System.out.println("round " + round + ": " + calls + " calls, " + String.join(", ", told));
                if (round < rounds) {
                    Thread.sleep((long) (1000 * Double.parseDouble(ENV.getOrDefault("PAUSE_SECONDS", "1"))));
                }
            }
        } catch (ExecutionException error) {
            System.err.println(error.getCause() instanceof Refused ? error.getCause().getMessage() : error.getCause());
            System.exit(1);
        } finally {
            threads.shutdownNow();
        }
    }
}
