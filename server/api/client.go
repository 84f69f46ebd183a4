package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"livemount/internal/errs"
)

// Client talks to a livemountd.
type Client struct {
	address string
	base    string
	http    *http.Client
}

// maxAnswer bounds what is read of an answer.
const maxAnswer = 1 << 30

// NewClient returns a client for unix:PATH or HOST:PORT.
func NewClient(address string) (*Client, error) {
	network, where, err := ParseAddress(address)
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, where)
	}
	base := "http://" + where
	if network == "unix" {
		base = "http://localhost"
	}
	return &Client{address: address, base: base, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}, nil
}

// ParseAddress splits unix:PATH, a path that begins with a slash, or HOST:PORT (also behind http://).
func ParseAddress(address string) (network, where string, err error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok && path != "" {
		return "unix", path, nil
	}
	if strings.HasPrefix(address, "/") {
		return "unix", address, nil
	}
	where = strings.TrimSuffix(strings.TrimPrefix(address, "http://"), "/")
	if _, _, err := net.SplitHostPort(where); err != nil {
		return "", "", errs.New(errs.Invalid, "address %q is neither unix:PATH nor HOST:PORT", address)
	}
	return "tcp", where, nil
}

// Do sends in, unless it is nil, and decodes the answer into out, unless that is nil. An error of the
// server comes back with its kind and advice.
func (c *Client) Do(ctx context.Context, method, path string, query url.Values, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	target := c.base + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	return decodeAnswer(resp, out)
}

func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errs.New(errs.Canceled, "interrupted; livemountd may still carry out what was asked: %w", ctx.Err())
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	if errs.Is(err, errs.Denied) {
		return errs.WithTry(errs.New(errs.Denied, "livemountd at %s: %w", c.address, err), "run as the user that livemountd runs as")
	}
	return errs.WithTry(errs.New(errs.Unreachable, "livemountd does not answer at %s: %w", c.address, err),
		"start livemountd, or say where it is with --server or LIVEMOUNT_SERVER")
}

func decodeAnswer(resp *http.Response, out any) error {
	r := io.LimitReader(resp.Body, maxAnswer)
	if resp.StatusCode/100 == 2 {
		if b, ok := out.(*[]byte); ok {
			var err error
			*b, err = io.ReadAll(r)
			return err
		}
		if out == nil {
			return nil
		}
		if err := json.NewDecoder(r).Decode(out); err != nil {
			return fmt.Errorf("answer of livemountd: %w", err)
		}
		return nil
	}
	var e ErrorBody
	if err := json.NewDecoder(r).Decode(&e); err != nil || e.Error.Kind == "" {
		return fmt.Errorf("livemountd answered %s", resp.Status)
	}
	return e.Error.Err()
}

// Err returns the error as the server had it.
func (e *Error) Err() error {
	return &errs.Error{Kind: errs.ParseKind(e.Kind), Msg: e.Message, Try: e.Try}
}

// FromErr describes an error.
func FromErr(err error) Error {
	return Error{Kind: errs.KindOf(err).String(), Message: err.Error(), Try: errs.TryOf(err)}
}
