package streams

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/jwt/v2"
)

// What servers are told of accounts in their files is the same for all of them, whenever it is written, and it is no account
// that lends anything. Servers with different claims of an account take them from one another every half minute, and each time
// that an account gets new claims, its server forgets to whom it owes messages.
func TestNodesAgree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, _, err := NewClusterKeys()
		must(t, err)
		var first string
		for _, name := range []string{"nats-1", "nats-2"} {
			text, err := ClusterNode{
				Name: name, Listen: name + ":4222", Routes: name + ":6222", Store: "/store", Cert: "c", Key: "k", Bundle: "b",
			}.Config(keys)
			must(t, err)
			_, preloaded, ok := strings.Cut(text, "resolver_preload {")
			if !ok {
				t.Fatal("nothing is preloaded")
			}
			if first == "" {
				first = preloaded
			} else if preloaded != first {
				t.Errorf("%s is told\n%s\nand another\n%s", name, preloaded, first)
			}
			time.Sleep(time.Minute)
		}
		lines := strings.Fields(strings.Trim(first, "} \n"))
		if len(lines) != 2 {
			t.Fatalf("more than one account is preloaded: %q", lines)
		}
		claims, err := jwt.DecodeAccountClaims(lines[1])
		must(t, err)
		if claims.Name != "SYSTEM" || len(claims.Exports)+len(claims.Imports) > 0 {
			t.Errorf("the account %s is preloaded", claims.Name)
		}
	})
}
