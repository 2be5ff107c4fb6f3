// An API in Go that accepts sender-constrained tokens, and terminates TLS itself. It needs only the standard library, and
// knows tokens with RS256 and proofs with ES256: RFC 9068 section 4, RFC 9449 section 4.3, RFC 8705 section 3.
package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"math"
	"math/big"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

const proofSeconds = 120

var (
	issuer   = os.Getenv("ISSUER")
	audience = get("AUDIENCE", issuer)
	apiURL   = os.Getenv("API_URL") // The URL that clients use. Never take it from the Host header.
	jwksURL  = get("JWKS_URL", issuer+"/.well-known/jwks.json")
	errNo    = errors.New("refused")
)

type jwk struct {
	Kty, Kid, Crv, N, E, X, Y, D string
}

type header struct {
	Typ, Alg, Kid string
	Crit          []string
	Jwk           *jwk
}

type claims struct {
	Iss      string          `json:"iss"`
	ClientID string          `json:"client_id"`
	Aud      json.RawMessage `json:"aud"`
	Exp      float64         `json:"exp"`
	Cnf      map[string]any  `json:"cnf"`
	Htm      string          `json:"htm"`
	Htu      string          `json:"htu"`
	Ath      string          `json:"ath"`
	Jti      string          `json:"jti"`
	Iat      float64         `json:"iat"`
}

func get(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func decode(text string) []byte {
	raw, _ := base64.RawURLEncoding.DecodeString(text)
	return raw
}

func digest(raw []byte) string {
	sum := sha256.Sum256(raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func same(one any, other string) bool {
	text, isText := one.(string)
	return isText && other != "" && subtle.ConstantTimeCompare([]byte(text), []byte(other)) == 1
}

// parse takes a JWS apart, without verifying it.
func parse(text string) (head header, body claims, signed, signature []byte, err error) {
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return head, body, nil, nil, errNo
	}
	if json.Unmarshal(decode(parts[0]), &head) != nil || json.Unmarshal(decode(parts[1]), &body) != nil || head.Crit != nil {
		return head, body, nil, nil, errNo
	}
	return head, body, []byte(parts[0] + "." + parts[1]), decode(parts[2]), nil
}

var known struct {
	sync.Mutex
	keys map[string]*rsa.PublicKey
	next time.Time
}

// find returns the issuer's key; an unknown kid leads to a fetch, at most one in ten seconds.
func find(kid string) *rsa.PublicKey {
	known.Lock()
	defer known.Unlock()
	if known.keys[kid] == nil && time.Now().After(known.next) {
		known.next = time.Now().Add(10 * time.Second)
		client := http.Client{Timeout: 10 * time.Second}
		if answer, err := client.Get(jwksURL); err == nil {
			defer answer.Body.Close()
			var set struct{ Keys []jwk }
			if json.NewDecoder(answer.Body).Decode(&set) == nil {
				known.keys = map[string]*rsa.PublicKey{}
				for _, key := range set.Keys {
					if key.Kty == "RSA" {
						exponent := int(new(big.Int).SetBytes(decode(key.E)).Int64())
						known.keys[key.Kid] = &rsa.PublicKey{N: new(big.Int).SetBytes(decode(key.N)), E: exponent}
					}
				}
			}
		}
	}
	return known.keys[kid]
}

func isFor(aud json.RawMessage) bool {
	var one string
	var several []string
	if json.Unmarshal(aud, &one) == nil {
		return one == audience
	}
	_ = json.Unmarshal(aud, &several)
	for _, each := range several {
		if each == audience {
			return true
		}
	}
	return false
}

func isType(head header, typ string) bool {
	return strings.TrimPrefix(strings.ToLower(head.Typ), "application/") == typ
}

func verifyToken(request *http.Request) (string, error) {
	scheme, token, _ := strings.Cut(request.Header.Get("Authorization"), " ")
	head, body, signed, signature, err := parse(token)
	if err != nil || !isType(head, "at+jwt") || head.Alg != "RS256" {
		return "", errNo
	}
	sum, key := sha256.Sum256(signed), find(head.Kid)
	if key == nil || rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], signature) != nil {
		return "", errNo
	}
	if body.Iss != issuer || !isFor(body.Aud) || body.Exp+60 < float64(time.Now().Unix()) {
		return "", errNo
	}
	expected := "bearer"
	// Refuse members of cnf that this program cannot check.
	for name, value := range body.Cnf {
		switch name {
		case "jkt":
			expected = "dpop"
			if !same(value, verifyProof(request, token)) {
				return "", errNo
			}
		case "x5t#S256":
			shown := request.TLS.PeerCertificates
			if len(shown) == 0 || !same(value, digest(shown[0].Raw)) {
				return "", errNo
			}
		default:
			return "", errNo
		}
	}
	if strings.ToLower(scheme) != expected {
		return "", errNo
	}
	return body.ClientID, nil
}

var used = struct {
	sync.Mutex
	until map[string]time.Time
}{until: map[string]time.Time{}}

// useOnce returns whether a proof is new. Each process has its own memory: share it in Redis with SET NX EX.
func useOnce(id string) bool {
	used.Lock()
	defer used.Unlock()
	now := time.Now()
	for old, until := range used.until {
		if until.Before(now) {
			delete(used.until, old)
		}
	}
	if _, isUsed := used.until[id]; isUsed {
		return false
	}
	used.until[id] = now.Add(2 * proofSeconds * time.Second)
	return true
}

// verifyProof returns the thumbprint of a good proof's key, and nothing for any other.
func verifyProof(request *http.Request, token string) string {
	proofs := request.Header.Values("DPoP")
	if len(proofs) != 1 {
		return ""
	}
	head, body, signed, signature, err := parse(proofs[0])
	if err != nil || !isType(head, "dpop+jwt") || head.Alg != "ES256" || head.Jwk == nil {
		return ""
	}
	key := head.Jwk
	x, y := new(big.Int).SetBytes(decode(key.X)), new(big.Int).SetBytes(decode(key.Y))
	if key.Kty != "EC" || key.Crv != "P-256" || key.D != "" || !elliptic.P256().IsOnCurve(x, y) || len(signature) != 64 {
		return ""
	}
	sum := sha256.Sum256(signed)
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	if !ecdsa.Verify(&ecdsa.PublicKey{Curve: elliptic.P256(), X: x, Y: y}, sum[:], r, s) {
		return ""
	}
	url, _, _ := strings.Cut(strings.SplitN(body.Htu, "#", 2)[0], "?")
	isNew := math.Abs(float64(time.Now().Unix())-body.Iat) <= proofSeconds
	if body.Htm != request.Method || url != apiURL+request.URL.Path || !isNew || !same(body.Ath, digest([]byte(token))) {
		return ""
	}
	// RFC 7638.
	thumbprint := digest([]byte(fmt.Sprintf(`{"crv":"P-256","kty":"EC","x":"%s","y":"%s"}`, key.X, key.Y)))
	if body.Jti == "" || !useOnce(thumbprint+" "+body.Jti) {
		return ""
	}
	return thumbprint
}

func main() {
	http.HandleFunc("/things", func(answer http.ResponseWriter, request *http.Request) {
		caller, err := verifyToken(request)
		if err != nil {
			answer.Header().Set("WWW-Authenticate", `Bearer error="invalid_token", DPoP error="invalid_token"`)
			answer.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(answer).Encode(map[string]string{"caller": caller})
	})
	server := http.Server{
		Addr:              "127.0.0.1:" + os.Getenv("PORT"),
		ReadHeaderTimeout: 10 * time.Second,
		TLSConfig:         &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12},
	}
	log.Fatal(server.ListenAndServeTLS(os.Getenv("TLS_CERT"), os.Getenv("TLS_KEY")))
}
