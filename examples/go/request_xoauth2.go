//go:build xoauth2

package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// requestToken asks for a token, with the secret of now: it may have been rotated. The library's own TokenSource would keep it
// until 10 s before its end, and knows no refusal by an API; Token keeps it here.
func requestToken(ctx context.Context) (string, time.Duration, error) {
	secret, err := readSecret()
	if err != nil {
		return "", 0, err
	}
	config := clientcredentials.Config{
		ClientID: need("CLIENT_ID"), ClientSecret: secret, TokenURL: need("TOKEN_URL"),
		Scopes: strings.Fields(os.Getenv("SCOPE")), AuthStyle: oauth2.AuthStyleInHeader,
	}
	asked := time.Now()
	token, err := config.Token(context.WithValue(ctx, oauth2.HTTPClient, client))
	var told *oauth2.RetrieveError
	if errors.As(err, &told) {
		refused := &Refused{Code: "server_error", Description: told.Response.Status}
		json.Unmarshal(told.Body, refused)
		return "", 0, refused
	}
	if err != nil {
		return "", 0, err
	}
	return token.AccessToken, token.Expiry.Sub(asked).Round(time.Second), nil
}
