// A client and a verifier in nothing but Java's standard library. Prints one JSON object, made of the server's own JSON.

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.math.BigInteger;
import java.net.Authenticator;
import java.net.PasswordAuthentication;
import java.net.URI;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.security.KeyFactory;
import java.security.PublicKey;
import java.security.Signature;
import java.security.spec.RSAPublicKeySpec;
import java.util.Base64;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

public class TokenClient {
    static final String GRANT = "grant_type=client_credentials";
    static final HttpClient CLIENT = HttpClient.newHttpClient();

    // Arguments: the token endpoint, the JWKS. On standard input, a line each: id, secret.
    public static void main(String[] urls) throws Exception {
        BufferedReader task = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        String id = task.readLine();
        String secret = task.readLine();
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(urls[0]))
            .header("Content-Type", "application/x-www-form-urlencoded");

        HttpResponse<String> basic = post(CLIENT, request.copy().header("Authorization", basic(id, secret)), GRANT);
        HttpResponse<String> body =
            post(CLIENT, request, GRANT + "&client_id=" + encode(id) + "&client_secret=" + encode(secret));
        HttpResponse<String> challenged = post(challengedClient(id, secret), request, GRANT);
        HttpResponse<String> wrong = post(CLIENT, request.copy().header("Authorization", basic(id, "wrong")), GRANT);
        String jwks = CLIENT.send(HttpRequest.newBuilder(URI.create(urls[1])).build(), BodyHandlers.ofString()).body();

        System.out.printf(
            "{\"basic\": %s, \"body\": %s, \"challenged\": %s, \"wrongSecret\": %s, \"wrongStatus\": %d, \"verified\": %b}",
            basic.body(), body.body(), challenged.body(), wrong.body(), wrong.statusCode(),
            isSignedBy(publicKey(jwks), member(basic.body(), "access_token")));
    }

    static HttpResponse<String> post(HttpClient client, HttpRequest.Builder request, String body) throws Exception {
        return client.send(request.POST(HttpRequest.BodyPublishers.ofString(body)).build(), BodyHandlers.ofString());
    }

    // Sends its credentials when the server asks for them, as Java does by itself.
    static HttpClient challengedClient(String id, String secret) {
        return HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).authenticator(new Authenticator() {
            @Override
            protected PasswordAuthentication getPasswordAuthentication() {
                return new PasswordAuthentication(id, secret.toCharArray());
            }
        }).build();
    }

    static String basic(String id, String secret) {
        return "Basic " + Base64.getEncoder().encodeToString((id + ":" + secret).getBytes(StandardCharsets.UTF_8));
    }

    static String encode(String text) {
        return URLEncoder.encode(text, StandardCharsets.UTF_8);
    }

    static boolean isSignedBy(PublicKey key, String token) throws Exception {
        int dot = token.lastIndexOf('.');
        Signature signature = Signature.getInstance("SHA256withRSA");
        signature.initVerify(key);
        signature.update(token.substring(0, dot).getBytes(StandardCharsets.US_ASCII));
        return signature.verify(Base64.getUrlDecoder().decode(token.substring(dot + 1)));
    }

    static PublicKey publicKey(String jwks) throws Exception {
        RSAPublicKeySpec numbers = new RSAPublicKeySpec(number(jwks, "n"), number(jwks, "e"));
        return KeyFactory.getInstance("RSA").generatePublic(numbers);
    }

    static BigInteger number(String json, String name) {
        return new BigInteger(1, Base64.getUrlDecoder().decode(member(json, name)));
    }

    static String member(String json, String name) {
        Matcher found = Pattern.compile("\"" + name + "\"\\s*:\\s*\"([^\"]*)\"").matcher(json);
        if (!found.find()) {
            throw new IllegalArgumentException("no " + name);
        }
        return found.group(1);
    }
}
