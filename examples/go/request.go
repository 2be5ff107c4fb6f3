//go:build !xoauth2

package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// requestToken asks for a token, with the secret of now: it may have been rotated.
func requestToken(ctx context.Context) (string, time.Duration, error) {
	secret, err := readSecret()
	if err != nil {
		return "", 0, err
	}
	form := url.Values{"grant_type": {"client_credentials"}}
	if scope := os.Getenv("SCOPE"); scope != "" {
		form.Set("scope", scope)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, need("TOKEN_URL"), strings.NewReader(form.Encode()))
	if err != nil {
		return "", 0, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	// RFC 6749 section 2.3.1: form-encoded first.
	request.SetBasicAuth(url.QueryEscape(need("CLIENT_ID")), url.QueryEscape(secret))
	answer, err := client.Do(request)
	if err != nil {
		return "", 0, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		refused := &Refused{Code: "server_error", Description: answer.Status}
		json.NewDecoder(answer.Body).Decode(refused)
		return "", 0, refused
	}
	var told struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
	}
	err = json.NewDecoder(answer.Body).Decode(&told)
	return told.AccessToken, time.Duration(told.ExpiresIn) * time.Second, err
}
