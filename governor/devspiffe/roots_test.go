package devspiffe

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func FuzzParseKeys(f *testing.F) {
	td := spiffeid.RequireTrustDomainFromString("acme.example")
	now := time.Now()
	var keys []*signingKeys
	for range 2 {
		k, err := newKeys(td, now, time.Hour)
		if err != nil {
			f.Fatal(err)
		}
		keys = append(keys, k)
	}
	file := filepath.Join(f.TempDir(), "authorities.pem")
	if err := saveKeys(file, keys); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(file)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		keys, err := parseKeys(content, td)
		if err != nil {
			return
		}
		for _, k := range keys {
			if k.cert == nil || k.x509 == nil || k.jwt == nil || k.jwtKID == "" || !k.x509.PublicKey.Equal(k.cert.PublicKey) {
				t.Fatalf("accepted %+v", k)
			}
		}
	})
}
