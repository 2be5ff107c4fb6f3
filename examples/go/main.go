// Calls an API with tokens of Tokenhouse. The token request is in request.go, with the standard library, or in
// request_xoauth2.go, with golang.org/x/oauth2; all else is the same for both.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	timeout  = 10 * time.Second
	attempts = 5
)

var advice = map[string]string{
	"invalid_client":      "check CLIENT_ID and the secret: it may be wrong, over, or the client disabled",
	"invalid_scope":       "ask for less, or have the client granted more",
	"unauthorized_client": "the client was not made for the grant client_credentials",
	"server_error":        "the token server cannot answer now, and several attempts did not help",
}

// Refused is what the token server says in place of a token. It holds nothing secret.
type Refused struct {
	Code        string `json:"error"`
	Description string `json:"error_description"`
}

func (r *Refused) Error() string {
	told, known := advice[r.Code]
	if !known {
		told = "see docs/http.md"
	}
	return fmt.Sprintf("%s: %s (%s)", r.Code, r.Description, told)
}

// client serves all goroutines, for tokens and calls.
var client = &http.Client{Transport: patient{&http.Transport{
	MaxIdleConnsPerHost: 100, MaxConnsPerHost: 100, ResponseHeaderTimeout: timeout,
}}}

// patient asks again after 429, 5xx and a broken connection: as Retry-After says, otherwise later each time, and never all at once.
type patient struct{ next http.RoundTripper }

func (p patient) RoundTrip(request *http.Request) (*http.Response, error) {
	for attempt := 1; ; attempt++ {
		answer, err := p.next.RoundTrip(request)
		if attempt == attempts || err == nil && !worthARetry(answer.StatusCode) {
			return answer, err
		}
		wait := time.Duration(rand.Int63n(int64(500*time.Millisecond) << attempt))
		if err == nil {
			if seconds, err := strconv.Atoi(answer.Header.Get("Retry-After")); err == nil {
				wait = time.Duration(seconds) * time.Second
			}
			io.Copy(io.Discard, answer.Body)
			answer.Body.Close()
		}
		select {
		case <-request.Context().Done():
			return nil, request.Context().Err()
		case <-time.After(wait):
		}
		if request.GetBody != nil {
			if request.Body, err = request.GetBody(); err != nil {
				return nil, err
			}
		}
	}
}

func worthARetry(status int) bool {
	return status == 429 || status == 500 || status >= 502 && status <= 504
}

// Token keeps a token in memory. All goroutines wait for the one that fetches.
type Token struct {
	mutex sync.Mutex
	kept  string
	until time.Time
}

// Get returns a token that is good for a while, and is not the one that an API has refused.
func (t *Token) Get(ctx context.Context, refused string) (string, error) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if t.kept == "" || !time.Now().Before(t.until) || t.kept == refused {
		token, lifetime, err := requestToken(ctx)
		if err != nil {
			return "", err
		}
		// Five minutes early, or at half of a short lifetime.
		early := lifetime / 2
		if early > 5*time.Minute {
			early = 5 * time.Minute
		}
		t.kept, t.until = token, time.Now().Add(lifetime-early)
	}
	return t.kept, nil
}

// call calls the API; once more with a fresh token when it does not take the present one.
func call(ctx context.Context, token *Token) (int, error) {
	used, err := token.Get(ctx, "")
	if err != nil {
		return 0, err
	}
	status, err := callWith(ctx, used)
	if err != nil || status != http.StatusUnauthorized {
		return status, err
	}
	if used, err = token.Get(ctx, used); err != nil {
		return 0, err
	}
	return callWith(ctx, used)
}

func callWith(ctx context.Context, token string) (int, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, need("API_URL"), nil)
	if err != nil {
		return 0, err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	answer, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	return answer.StatusCode, err
}

// readSecret reads a file or the environment; never an argument, which ps shows.
func readSecret() (string, error) {
	path, given := os.LookupEnv("CLIENT_SECRET_FILE")
	if !given {
		return need("CLIENT_SECRET"), nil
	}
	content, err := os.ReadFile(path)
	return strings.TrimSpace(string(content)), err
}

func need(name string) string {
	value, given := os.LookupEnv(name)
	if !given {
		fmt.Fprintln(os.Stderr, name, "must be set")
		os.Exit(2)
	}
	return value
}

func number(name string) int {
	if value, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return value
	}
	return 1
}

// main makes some calls at once, several times.
func main() {
	calls, rounds := number("CALLS"), number("ROUNDS")
	pause, err := strconv.ParseFloat(os.Getenv("PAUSE_SECONDS"), 64)
	if err != nil {
		pause = 1
	}
	token := &Token{}
	for round := 1; round <= rounds; round++ {
		statuses, failures := make([]int, calls), make([]error, calls)
		var done sync.WaitGroup
		for i := 0; i < calls; i++ {
			done.Add(1)
			go func(i int) {
				defer done.Done()
				ctx, cancel := context.WithTimeout(context.Background(), 6*timeout)
				defer cancel()
				statuses[i], failures[i] = call(ctx, token)
			}(i)
		}
		done.Wait()
		for _, err := range failures {
			if err != nil {
				var refused *Refused
				if errors.As(err, &refused) {
					err = refused
				}
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
		fmt.Printf("round %d: %d calls, %s\n", round, calls, counted(statuses))
		if round < rounds {
			time.Sleep(time.Duration(pause * float64(time.Second)))
		}
	}
}

func counted(statuses []int) string {
	counts := map[int]int{}
	for _, status := range statuses {
		counts[status]++
	}
	told := []string{}
	for status, count := range counts {
		told = append(told, fmt.Sprintf("%d answered %d", count, status))
	}
	sort.Strings(told)
	return strings.Join(told, ", ")
}
