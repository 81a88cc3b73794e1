package cli

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

type rawJSON = jsontext.Value

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// Link is what a link of a chain says of itself. Nothing of it is verified.
type Link struct {
	ID        string            `json:"jti"`
	Issuer    string            `json:"iss"`
	IssuedAt  int64             `json:"iat"` // Unix seconds
	ExpiresAt int64             `json:"exp"` // Unix seconds
	Depth     int               `json:"del_depth"`
	MaxDepth  int               `json:"del_max_depth"`
	Audience  []string          `json:"aud,omitempty"`
	Holder    aat.JWK           `json:"holder"`
	Tools     aat.Tools         `json:"tools"`
	Handoff   wire.HandoffClaim `json:"handoff"`
}

// ReadToken reads a link without verifying it.
func ReadToken(compact string) (*Link, error) {
	token, err := jws.Parse(compact, aat.TokenType, wire.MaxToken)
	if err != nil {
		return nil, err
	}
	return ReadPayload(token.Payload)
}

// ReadPayload reads the payload of a link without verifying it.
func ReadPayload(payload []byte) (*Link, error) {
	var raw struct {
		Link
		Audience rawJSON `json:"aud"`
		Cnf      struct {
			JWK aat.JWK `json:"jwk"`
		} `json:"cnf"`
		Details []struct {
			Type  string    `json:"type"`
			Tools aat.Tools `json:"tools"`
		} `json:"authorization_details"`
	}
	if err := json.Unmarshal(payload, &raw); err != nil {
		return nil, fmt.Errorf("reading the link: %w", err)
	}
	l := raw.Link
	l.Holder = raw.Cnf.JWK
	for _, d := range raw.Details {
		if d.Type == "attenuating_agent_token" {
			l.Tools = d.Tools
		}
	}
	if one := ""; json.Unmarshal(raw.Audience, &one) == nil {
		l.Audience = []string{one}
	} else {
		_ = json.Unmarshal(raw.Audience, &l.Audience) // absent, or written in a way that names nobody
	}
	return &l, nil
}
