package devspiffe_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/handoff-governor/handoff-governor/governor/devspiffe"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
)

func TestUnmodifiedX509Client(t *testing.T) {
	t.Parallel()
	a := start(t, devspiffe.Config{})
	addr := socket(t, a, planner)
	source := x509Source(t, addr)
	svid := svidOf(t, source)
	peer, err := identity.VerifyX509(svid.Certificates, a, time.Now())
	if err != nil || peer.ID != planner || svid.ID != planner {
		t.Errorf("the client got %s, which verifies as %+v, %v", svid.ID, peer, err)
	}
	if left := time.Until(peer.Expires); left < 59*time.Minute || left > time.Hour+time.Second {
		t.Errorf("it lives for %s, not an hour", left)
	}
	bundles, err := workloadapi.FetchX509Bundles(deadline(t), workloadapi.WithAddr(addr))
	if err != nil || bundles.Len() != 1 || !bundleOf(t, bundles).Equal(bundleOf(t, a)) {
		t.Errorf("bundles are %v, %v", bundles.Bundles(), err)
	}
	if !bundleOf(t, source).Equal(bundleOf(t, a)) {
		t.Error("the SVID came with another bundle")
	}
	if again := svidOf(t, x509Source(t, addr)); !again.Certificates[0].Equal(svid.Certificates[0]) {
		t.Error("a second client got another SVID though none was due")
	}
	if same := socket(t, a, planner); same != addr {
		t.Errorf("asked again, the address is %s, not %s", same, addr)
	}
	if other := svidOf(t, x509Source(t, socket(t, a, coder))); other.ID != coder {
		t.Errorf("the other socket gave %s", other.ID)
	}
	own, err := a.Source(planner)
	if err != nil || !svidOf(t, own).Certificates[0].Equal(svid.Certificates[0]) {
		t.Errorf("the process's own source has another SVID (%v)", err)
	}
}

func TestUnmodifiedJWTClient(t *testing.T) {
	t.Parallel()
	a := start(t, devspiffe.Config{})
	addr := socket(t, a, planner)
	source, err := workloadapi.NewJWTSource(deadline(t), withAddr(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	svid, err := source.FetchJWTSVID(deadline(t), jwtsvid.Params{Audience: "nats", ExtraAudiences: []string{"http"}})
	if err != nil || svid.ID != planner {
		t.Fatal(svid, err)
	}
	if left := time.Until(svid.Expiry); left < 4*time.Minute || left > 5*time.Minute {
		t.Errorf("it lives for %s, not five minutes", left)
	}
	for _, audience := range []string{"nats", "http"} {
		if _, err := jwtsvid.ParseAndValidate(svid.Marshal(), source, []string{audience}); err != nil {
			t.Error(err)
		}
		if peer, err := identity.VerifyJWT(svid.Marshal(), audience, a, time.Now()); err != nil || peer.ID != planner {
			t.Errorf("%+v, %v", peer, err)
		}
		validated, err := workloadapi.ValidateJWTSVID(deadline(t), svid.Marshal(), audience, workloadapi.WithAddr(addr))
		if err != nil || validated.ID != planner {
			t.Error(validated, err)
		}
	}
	raw, err := rawClient(t, addr).ValidateJWTSVID(withHeader(deadline(t)),
		&workload.ValidateJWTSVIDRequest{Svid: svid.Marshal(), Audience: "nats"})
	if err != nil || raw.SpiffeId != planner.String() || raw.Claims.Fields["sub"].GetStringValue() != planner.String() {
		t.Error(raw, err)
	}
	// Asking by name works for the own name only.
	if _, err := source.FetchJWTSVID(deadline(t), jwtsvid.Params{Audience: "nats", Subject: planner}); err != nil {
		t.Error(err)
	}
	for _, id := range []spiffeid.ID{coder, stranger, governor} {
		_, err := source.FetchJWTSVID(deadline(t), jwtsvid.Params{Audience: "nats", Subject: id})
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("planner's socket answered for %s: %v", id, err)
		}
	}
	if _, err := workloadapi.ValidateJWTSVID(deadline(t), svid.Marshal(), "other", workloadapi.WithAddr(addr)); err == nil {
		t.Error("a token for others was validated")
	}
	other := start(t, devspiffe.Config{})
	foreign, err := workloadapi.FetchJWTSVID(deadline(t), jwtsvid.Params{Audience: "nats"},
		workloadapi.WithAddr(socket(t, other, planner)))
	if err != nil {
		t.Fatal(err)
	}
	_, err = workloadapi.ValidateJWTSVID(deadline(t), foreign.Marshal(), "nats", workloadapi.WithAddr(addr))
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("another authority's token: %v", err)
	}
	if _, err := workloadapi.FetchWITSVID(deadline(t), "", workloadapi.WithAddr(addr)); status.Code(err) != codes.Unimplemented {
		t.Errorf("WIT-SVID, which we do not have: %v", err)
	}
}

func TestRotationReachesClientsAndConnections(t *testing.T) {
	t.Parallel()
	a := start(t, devspiffe.Config{TTL: time.Second})
	server, err := a.Source(governor)
	if err != nil {
		t.Fatal(err)
	}
	client := x509Source(t, socket(t, a, planner))
	serverTLS, clientTLS := mTLS(t, server, client)
	clientTLS.ServerName = "governor"
	clientTLS.ClientSessionCache = tls.NewLRUClientSessionCache(8)

	seen := map[string]bool{}
	for range 3 {
		leaf := svidOf(t, client).Certificates[0]
		if seen[leaf.SerialNumber.String()] {
			t.Fatal("an update without a new SVID")
		}
		seen[leaf.SerialNumber.String()] = true
		saw, serverErr, clientErr := handshake(t, serverTLS, clientTLS)
		if serverErr != nil || clientErr != nil {
			t.Fatal(serverErr, clientErr)
		}
		if !saw.PeerCertificates[0].Equal(leaf) || saw.DidResume {
			t.Errorf("the server saw serial %s, want %s; resumed %v", saw.PeerCertificates[0].SerialNumber, leaf.SerialNumber,
				saw.DidResume)
		}
		if err := client.WaitUntilUpdated(deadline(t)); err != nil {
			t.Fatal(err)
		}
		if !time.Now().Before(leaf.NotAfter) {
			t.Error("the replacement came after the end of its predecessor")
		}
	}
}

// Roots come and go under open streams, and two workloads that each know only what was pushed to them agree throughout.
func TestNewRootsReachClients(t *testing.T) {
	t.Parallel()
	a := start(t, devspiffe.Config{TTL: time.Second, AuthorityTTL: 4 * time.Second})
	first := bundleOf(t, a).X509Authorities()[0]
	server, client := x509Source(t, socket(t, a, coder)), x509Source(t, socket(t, a, planner))
	bundles, err := workloadapi.NewBundleSource(deadline(t), withAddr(socket(t, a, planner)))
	if err != nil {
		t.Fatal(err)
	}
	defer bundles.Close()
	tokens, err := workloadapi.NewJWTSource(deadline(t), withAddr(socket(t, a, planner)))
	if err != nil {
		t.Fatal(err)
	}
	defer tokens.Close()
	serverTLS, clientTLS := mTLS(t, server, client)

	sawTwo := false
	for end := time.Now().Add(8 * time.Second); ; {
		if _, serverErr, clientErr := handshake(t, serverTLS, clientTLS); serverErr != nil || clientErr != nil {
			t.Fatal(serverErr, clientErr)
		}
		jwts, err := tokens.GetJWTBundleForTrustDomain(home)
		if err != nil {
			t.Fatal(err)
		}
		now := bundleOf(t, bundles)
		if len(now.X509Authorities()) == 2 && len(jwts.JWTAuthorities()) == 2 {
			sawTwo = true
		}
		if !now.HasX509Authority(first) && !bundleOf(t, client).HasX509Authority(first) && sawTwo {
			return // the first root has come, been joined, and gone
		}
		if time.Now().After(end) {
			t.Fatalf("both roots seen: %v; still %d", sawTwo, len(now.X509Authorities()))
		}
		if err := client.WaitUntilUpdated(deadline(t)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWithdraw(t *testing.T) {
	t.Parallel()
	config := defaults(t, devspiffe.Config{TTL: time.Second})
	a := start(t, config)
	addr, watcher := socket(t, a, planner), socket(t, a, coder)
	source := x509Source(t, addr)
	server := x509Source(t, watcher)
	serverTLS, clientTLS := mTLS(t, server, source)
	own, err := a.Source(planner)
	if err != nil {
		t.Fatal(err)
	}
	token, err := workloadapi.FetchJWTSVID(deadline(t), jwtsvid.Params{Audience: "nats"}, workloadapi.WithAddr(addr))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := rawClient(t, addr).FetchX509SVID(withHeader(deadline(t)), &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}

	if err := a.Withdraw(planner); err != nil {
		t.Fatal(err)
	}
	for err = error(nil); err == nil; {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "withdrawn") {
		t.Errorf("the open stream ended with %v", err)
	}
	if _, err := os.Lstat(file(addr)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if _, err := workloadapi.ValidateJWTSVID(deadline(t), token.Marshal(), "nats",
		workloadapi.WithAddr(watcher)); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a withdrawn identity's token: %v", err)
	}
	refuses := func(a *devspiffe.Authority) {
		t.Helper()
		if _, err := a.Socket(planner); !errors.Is(err, devspiffe.ErrWithdrawn) || !a.Withdrawn(planner) {
			t.Errorf("a socket for a withdrawn identity: %v", err)
		}
		if _, err := a.Source(planner); !errors.Is(err, devspiffe.ErrWithdrawn) {
			t.Errorf("a source for a withdrawn identity: %v", err)
		}
		if a.Withdrawn(coder) {
			t.Error("the wrong one was withdrawn")
		}
	}
	refuses(a)
	if _, err := own.GetX509SVID(); !errors.Is(err, devspiffe.ErrWithdrawn) {
		t.Errorf("the source from before: %v", err)
	}
	if err := a.Withdraw(planner); err != nil {
		t.Errorf("twice: %v", err)
	}

	// go-spiffe's source serves on what it last got; our TLS does not.
	last := svidOf(t, source)
	for time.Now().Before(last.Certificates[0].NotAfter) {
		if err := server.WaitUntilUpdated(deadline(t)); err != nil {
			t.Fatal(err)
		}
	}
	if svid, err := source.GetX509SVID(); err != nil || svid != last {
		t.Errorf("go-spiffe has become careful: %v, %v", svid, err)
	}
	if _, serverErr, clientErr := handshake(t, serverTLS, clientTLS); serverErr == nil ||
		!errors.Is(clientErr, identity.ErrExpired) {
		t.Errorf("the withdrawn client connected: %v, %v", serverErr, clientErr)
	}
	asServer, asClient := mTLS(t, source, server)
	if _, serverErr, clientErr := handshake(t, asServer, asClient); clientErr == nil ||
		!errors.Is(serverErr, identity.ErrExpired) {
		t.Errorf("the withdrawn server was connected to: %v, %v", serverErr, clientErr)
	}

	// It outlives the process.
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	again := start(t, config)
	refuses(again)
	if err := again.Restore(planner); err != nil {
		t.Fatal(err)
	}
	if back := svidOf(t, x509Source(t, socket(t, again, planner))); back.ID != planner {
		t.Errorf("restored, it is %s", back.ID)
	}
}

func TestRestartKeepsTheRoots(t *testing.T) {
	t.Parallel()
	config := defaults(t, devspiffe.Config{})
	a := start(t, config)
	addr := socket(t, a, planner)
	svid := svidOf(t, x509Source(t, addr))
	token, err := workloadapi.FetchJWTSVID(deadline(t), jwtsvid.Params{Audience: "nats"}, workloadapi.WithAddr(addr))
	if err != nil {
		t.Fatal(err)
	}
	bundle := bundleOf(t, a)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Socket(planner); !errors.Is(err, devspiffe.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}

	again := start(t, config)
	if !bundleOf(t, again).Equal(bundle) {
		t.Error("the restart made another root")
	}
	if _, err := identity.VerifyX509(svid.Certificates, again, time.Now()); err != nil {
		t.Error(err)
	}
	if _, err := identity.VerifyJWT(token.Marshal(), "nats", again, time.Now()); err != nil {
		t.Error(err)
	}
	if same := socket(t, again, planner); same != addr {
		t.Errorf("the socket moved to %s", same)
	}
}

func TestForeignIdentitiesAreRefused(t *testing.T) {
	t.Parallel()
	config := defaults(t, devspiffe.Config{})
	a := start(t, config)
	for _, id := range []spiffeid.ID{stranger, spiffeid.RequireFromString("spiffe://sub.acme.example/agent/planner")} {
		if addr, err := a.Socket(id); !errors.Is(err, devspiffe.ErrForeign) {
			t.Errorf("Socket(%s) = %s, %v", id, addr, err)
		}
		if _, err := a.Source(id); !errors.Is(err, devspiffe.ErrForeign) {
			t.Errorf("Source(%s): %v", id, err)
		}
		if err := errors.Join(a.Withdraw(id), a.Restore(id)); !errors.Is(err, devspiffe.ErrForeign) {
			t.Errorf("Withdraw(%s): %v", id, err)
		}
		if _, err := a.GetX509BundleForTrustDomain(id.TrustDomain()); err == nil {
			t.Errorf("there is an X.509 bundle for %s", id.TrustDomain())
		}
		if _, err := a.GetJWTBundleForTrustDomain(id.TrustDomain()); err == nil {
			t.Errorf("there is a JWT bundle for %s", id.TrustDomain())
		}
	}
	for _, id := range []spiffeid.ID{{}, home.ID()} {
		if addr, err := a.Socket(id); !errors.Is(err, identity.ErrName) {
			t.Errorf("Socket(%q) = %s, %v", id, addr, err)
		}
	}
	config.TrustDomain = stranger.TrustDomain()
	if _, err := devspiffe.New(config); err == nil || !strings.Contains(err.Error(), "acme.example") {
		t.Errorf("another trust domain took over the directory: %v", err)
	}

	// Two authorities of the same trust domain do not trust each other.
	ours, err := a.Source(planner)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := start(t, devspiffe.Config{}).Source(planner)
	if err != nil {
		t.Fatal(err)
	}
	serverTLS, clientTLS := mTLS(t, ours, theirs)
	if _, serverErr, clientErr := handshake(t, serverTLS, clientTLS); serverErr == nil || clientErr == nil {
		t.Errorf("they connected: %v, %v", serverErr, clientErr)
	}
}

func TestTheHeaderIsRequired(t *testing.T) {
	t.Parallel()
	a := start(t, devspiffe.Config{})
	client := rawClient(t, socket(t, a, planner))
	receive := func(stream interface{ RecvMsg(any) error }, err error) error {
		if err != nil {
			return err
		}
		return stream.RecvMsg(new(workload.X509SVIDResponse))
	}
	calls := map[string]func(context.Context) error{
		"FetchX509SVID": func(ctx context.Context) error {
			return receive(client.FetchX509SVID(ctx, &workload.X509SVIDRequest{}))
		},
		"FetchX509Bundles": func(ctx context.Context) error {
			return receive(client.FetchX509Bundles(ctx, &workload.X509BundlesRequest{}))
		},
		"FetchJWTBundles": func(ctx context.Context) error {
			return receive(client.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{}))
		},
		"FetchJWTSVID": func(ctx context.Context) error {
			_, err := client.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"nats"}})
			return err
		},
		"ValidateJWTSVID": func(ctx context.Context) error {
			_, err := client.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: "nats", Svid: "x"})
			return err
		},
	}
	const name = "workload.spiffe.io"
	for method, call := range calls {
		for _, md := range []metadata.MD{
			nil, metadata.Pairs(name, "false"), metadata.Pairs(name, "True"), metadata.Pairs(name, ""),
			metadata.Pairs(name, "true", name, "true"), metadata.Pairs("x-"+name, "true"),
		} {
			err := call(metadata.NewOutgoingContext(deadline(t), md))
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), name) {
				t.Errorf("%s with %v: %v", method, md, err)
			}
		}
	}
}

func TestBadRequestsAreRefused(t *testing.T) {
	t.Parallel()
	a := start(t, devspiffe.Config{})
	client := rawClient(t, socket(t, a, planner))
	for name, c := range map[string]struct {
		audience []string
		want     codes.Code
	}{
		"no audience":        {nil, codes.InvalidArgument},
		"an empty audience":  {[]string{"nats", ""}, codes.InvalidArgument},
		"too many audiences": {strings.Split(strings.Repeat("x ", 17), " ")[:17], codes.InvalidArgument},
		"a long audience":    {[]string{strings.Repeat("x", 1025)}, codes.InvalidArgument},
		"a huge audience":    {[]string{strings.Repeat("x", 1<<20)}, codes.ResourceExhausted},
	} {
		_, err := client.FetchJWTSVID(withHeader(deadline(t)), &workload.JWTSVIDRequest{Audience: c.audience})
		if status.Code(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, req := range map[string]*workload.ValidateJWTSVIDRequest{
		"nothing": {}, "no token": {Audience: "nats"}, "no audience": {Svid: "a.b.c"}, "no JWT": {Audience: "nats", Svid: "a.b.c"},
	} {
		if _, err := client.ValidateJWTSVID(withHeader(deadline(t)), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := client.FetchJWTSVID(withHeader(deadline(t)), &workload.JWTSVIDRequest{Audience: []string{"nats"}},
		grpc.WaitForReady(true))
	if err != nil {
		t.Errorf("after all that: %v", err)
	}
}

func TestSocketsArePrivateAndNeverPaths(t *testing.T) {
	t.Parallel()
	config := defaults(t, devspiffe.Config{Dir: filepath.Join(t.TempDir(), "d")})
	socks := filepath.Join(config.Dir, "sock")
	if err := os.MkdirAll(socks, 0o755); err != nil { // left behind by somebody careless
		t.Fatal(err)
	}
	a := start(t, config)
	files := map[string]string{}
	for id, want := range map[string]string{
		"/agent/planner":        "planner.sock",
		"/agent/...":            "=d=d=d.sock",
		"/agent/governor":       "governor.sock",
		"/governor":             "=sgovernor.sock",
		"/agent/a/b":            "=sagent=sa=sb.sock",
		"/a/b":                  "=sa=sb.sock",
		"/a.b":                  "=sa=db.sock",
		"/agent/a.b":            "a=db.sock",
		"/agent":                "=sagent.sock",
		"/agent/agent/x":        "=sagent=sagent=sx.sock",
		"/guard/planner":        "=sguard=splanner.sock",
		"/agent/.authorities..": "=dauthorities=d=d.sock",
	} {
		path := file(socket(t, a, spiffeid.RequireFromPath(home, id)))
		if path != filepath.Join(socks, want) {
			t.Errorf("%s has the socket %s, want %s", id, path, want)
		}
		if files[path] != "" {
			t.Errorf("%s and %s share %s", id, files[path], path)
		}
		files[path] = id
		if info, err := os.Lstat(path); err != nil || info.Mode() != fs.ModeSocket|0o600 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	for path, want := range map[string]fs.FileMode{
		config.Dir: fs.ModeDir | 0o700, socks: fs.ModeDir | 0o700, filepath.Join(config.Dir, "authorities.pem"): 0o600,
	} {
		if info, err := os.Lstat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
	// Where the file system folds case, these two would be one socket.
	if addr, err := a.Socket(spiffeid.RequireFromPath(home, "/agent/Planner")); !errors.Is(err, identity.ErrName) {
		t.Errorf("Planner got %s beside planner: %v", addr, err)
	}
	if err := a.Withdraw(spiffeid.RequireFromPath(home, "/agent/Planner")); err != nil {
		t.Error(err)
	}
	if svid := svidOf(t, x509Source(t, "unix://"+filepath.Join(socks, "planner.sock"))); svid.ID != planner {
		t.Errorf("withdrawing Planner left %s at planner's socket", svid.ID)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(socks); err != nil || len(left) != 0 {
		t.Errorf("Close left %v, %v", left, err)
	}
}

func TestSocketsInTheWay(t *testing.T) {
	t.Parallel()
	config := defaults(t, devspiffe.Config{})
	a := start(t, config)
	path := filepath.Join(config.Dir, "sock", "planner.sock")

	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if addr, err := a.Socket(planner); err == nil || !strings.Contains(err.Error(), "in the way") {
		t.Errorf("over a file: %s, %v", addr, err)
	}
	if content, err := os.ReadFile(path); err != nil || string(content) != "precious" {
		t.Errorf("the file is now %q, %v", content, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}

	alive, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if addr, err := a.Socket(planner); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("over a live socket: %s, %v", addr, err)
	}
	alive.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := alive.Close(); err != nil {
		t.Fatal(err)
	}
	if svid := svidOf(t, x509Source(t, socket(t, a, planner))); svid.ID != planner {
		t.Errorf("over a dead socket: %s", svid.ID)
	}

	long := start(t, devspiffe.Config{Dir: filepath.Join(t.TempDir(), strings.Repeat("d", 90))})
	if addr, err := long.Socket(planner); err == nil || !strings.Contains(err.Error(), "shorter data directory") {
		t.Errorf("with a long path: %s, %v", addr, err)
	}
	odd := start(t, devspiffe.Config{Dir: filepath.Join(t.TempDir(), "a b%20#?")})
	if svid := svidOf(t, x509Source(t, socket(t, odd, planner))); svid.ID != planner {
		t.Errorf("under an odd path: %s", svid.ID)
	}
}

func TestItSaysWhatASocketIs(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	a := start(t, devspiffe.Config{Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	socket(t, a, planner)
	socket(t, a, coder)
	if got := strings.Count(log.String(), "holding a socket is holding its identity"); got != 1 {
		t.Errorf("it said so %d times: %s", got, &log)
	}
}

var _ x509bundle.Source = (*devspiffe.Authority)(nil)
