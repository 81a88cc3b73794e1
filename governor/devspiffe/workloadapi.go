package devspiffe

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/handoff-governor/handoff-governor/handoff/identity"
)

const (
	// maxSocketPath is the smallest limit among the systems we know: macOS has room for 103 bytes, Linux for 107.
	maxSocketPath = 103
	maxRequest    = 64 << 10
	maxAudiences  = 16
	maxAudience   = 1 << 10
	maxStreams    = 32
	// recheck bounds how long a stream sleeps. Timers stand still while a laptop sleeps, and certificates do not.
	recheck = 15 * time.Second
	// stopGrace is how long clients have to take note that their streams have ended.
	stopGrace = time.Second
)

// registration is one identity that is issued to, and the server of its socket once it has one. It ends with ctx,
// whose cause says why.
type registration struct {
	workload.UnimplementedSpiffeWorkloadAPIServer

	authority *Authority
	id        spiffeid.ID
	file      string // of the socket
	ctx       context.Context
	stop      context.CancelCauseFunc

	server *grpc.Server // nil without a socket; guarded by authority.serving
	served chan struct{}

	mu     sync.Mutex
	issued issued
}

// issued is an X.509-SVID with the roots that were in force when it was last looked at.
type issued struct {
	svid        *x509svid.SVID
	roots       *roots
	from, until time.Time // outside of it, a new SVID is due: until is half its life
}

// current returns the SVID to use now. All who ask between two rotations get the same one.
func (r *registration) current() (issued, error) {
	if err := context.Cause(r.ctx); err != nil {
		return issued{}, err
	}
	roots, err := r.authority.current()
	if err != nil {
		return issued{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.authority.config.Now()
	if now.Before(r.issued.from) || !now.Before(r.issued.until) {
		svid, err := roots.issueX509(r.id, r.authority.config.DNSNames[r.id], now, r.authority.config.TTL)
		if err != nil {
			return issued{}, fmt.Errorf("issuing to %q: %w", r.id, err)
		}
		leaf := svid.Certificates[0]
		r.issued = issued{svid: svid, from: leaf.NotBefore, until: now.Add(leaf.NotAfter.Sub(now) / 2)}
	}
	r.issued.roots = roots
	return r.issued, nil
}

// serve starts the socket, if there is none, and returns its address. The caller holds authority.serving.
func (r *registration) serve() (string, error) {
	addr := (&url.URL{Scheme: "unix", Path: r.file}).String()
	if r.server != nil {
		return addr, nil
	}
	if len(r.file) > maxSocketPath {
		return "", fmt.Errorf("the socket %s has %d bytes, and operating systems allow %d: choose a shorter data directory"+
			" or name", r.file, len(r.file), maxSocketPath)
	}
	listener, err := listen(r.file)
	if err != nil {
		return "", fmt.Errorf("the socket of %q: %w", r.id, err)
	}
	r.server = grpc.NewServer(
		grpc.MaxRecvMsgSize(maxRequest), grpc.MaxConcurrentStreams(maxStreams), grpc.MaxHeaderListSize(maxRequest),
		grpc.ConnectionTimeout(5*time.Second),
		grpc.UnaryInterceptor(checkUnary), grpc.StreamInterceptor(checkStream))
	workload.RegisterSpiffeWorkloadAPIServer(r.server, r)
	r.served = make(chan struct{})
	go func(server *grpc.Server) {
		defer close(r.served)
		if err := server.Serve(listener); err != nil {
			r.authority.config.Logger.Error("development Workload API stopped serving",
				slog.String("spiffe_id", r.id.String()), slog.Any("error", err))
		}
	}(r.server)
	r.authority.config.Logger.Info("development Workload API",
		slog.String("spiffe_id", r.id.String()), slog.String("socket", addr))
	return addr, nil
}

// close ends the registration for the reason given, and returns when its server has ended. The caller holds
// authority.serving.
func (r *registration) close(reason error) {
	r.stop(reason)
	if r.server == nil {
		return
	}
	force := time.AfterFunc(stopGrace, r.server.Stop)
	r.server.GracefulStop()
	force.Stop()
	<-r.served
}

// listen makes a socket that only this user can open. It takes the place of one that a dead process left behind.
func listen(file string) (net.Listener, error) {
	info, err := os.Lstat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is in the way: it is not a socket", file)
	default:
		if conn, err := net.DialTimeout("unix", file, time.Second); err == nil {
			_ = conn.Close()
			return nil, fmt.Errorf("another process serves %s: stop it first", file)
		}
		if err := os.Remove(file); err != nil {
			return nil, err
		}
	}
	listener, err := net.Listen("unix", file)
	if err != nil {
		return nil, err
	}
	// Until now the directory, which is 0700, kept others out.
	if err := os.Chmod(file, 0o600); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// checkHeader wants the header that no web page and no confused deputy can send (Workload Endpoint, section 6).
func checkHeader(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("workload.spiffe.io"); len(v) != 1 || v[0] != "true" {
		return status.Error(codes.InvalidArgument, "send the metadata workload.spiffe.io: true")
	}
	return nil
}

func checkUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := checkHeader(ctx); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func checkStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := checkHeader(stream.Context()); err != nil {
		return err
	}
	return next(srv, stream)
}

// FetchX509SVID implements the Workload API: the SVID, and again with each change of it or of the bundle.
func (r *registration) FetchX509SVID(
	_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse],
) error {
	var sent issued
	return r.watch(stream.Context(), func(now issued) error {
		if now == sent {
			return nil
		}
		sent = now
		chain, key, err := now.svid.MarshalRaw()
		if err != nil {
			return err
		}
		return stream.Send(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
			SpiffeId:    r.id.String(),
			X509Svid:    chain,
			X509SvidKey: key,
			Bundle:      concat(now.roots.x509.X509Authorities()),
		}}})
	})
}

// FetchX509Bundles implements the Workload API: the bundle, and again with each change.
func (r *registration) FetchX509Bundles(
	_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse],
) error {
	var sent *roots
	return r.watch(stream.Context(), func(now issued) error {
		if now.roots == sent {
			return nil
		}
		sent = now.roots
		return stream.Send(&workload.X509BundlesResponse{Bundles: map[string][]byte{
			r.id.TrustDomain().IDString(): concat(sent.x509.X509Authorities()),
		}})
	})
}

// FetchJWTBundles implements the Workload API: the JWKS, and again with each change.
func (r *registration) FetchJWTBundles(
	_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse],
) error {
	var sent *roots
	return r.watch(stream.Context(), func(now issued) error {
		if now.roots == sent {
			return nil
		}
		sent = now.roots
		jwks, err := sent.jwt.Marshal()
		if err != nil {
			return err
		}
		return stream.Send(&workload.JWTBundlesResponse{Bundles: map[string][]byte{
			r.id.TrustDomain().IDString(): jwks,
		}})
	})
}

// watch calls push at once and whenever something may have changed, until the client leaves or the registration ends.
func (r *registration) watch(ctx context.Context, push func(issued) error) error {
	for {
		now, err := r.current()
		if err != nil {
			return r.refusal(err)
		}
		if err := push(now); err != nil {
			return err
		}
		wait := earlier(now.until, now.roots.until).Sub(r.authority.config.Now())
		timer := time.NewTimer(min(max(wait, 10*time.Millisecond), recheck))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return status.FromContextError(ctx.Err()).Err()
		case <-r.ctx.Done():
			timer.Stop()
			return r.refusal(context.Cause(r.ctx))
		}
	}
}

// FetchJWTSVID implements the Workload API.
func (r *registration) FetchJWTSVID(
	ctx context.Context, req *workload.JWTSVIDRequest,
) (*workload.JWTSVIDResponse, error) {
	if len(req.Audience) == 0 || len(req.Audience) > maxAudiences {
		return nil, status.Errorf(codes.InvalidArgument, "name 1 to %d audiences", maxAudiences)
	}
	for _, audience := range req.Audience {
		if audience == "" || len(audience) > maxAudience {
			return nil, status.Errorf(codes.InvalidArgument, "an audience has 1 to %d bytes", maxAudience)
		}
	}
	if req.SpiffeId != "" && req.SpiffeId != r.id.String() {
		return nil, status.Errorf(codes.PermissionDenied, "this socket is that of %q alone", r.id)
	}
	if err := context.Cause(r.ctx); err != nil {
		return nil, r.refusal(err)
	}
	roots, err := r.authority.current()
	if err != nil {
		return nil, r.refusal(err)
	}
	token, err := roots.issueJWT(r.id, req.Audience, r.authority.config.Now())
	if err != nil {
		return nil, r.refusal(err)
	}
	r.authority.config.Logger.DebugContext(ctx, "JWT-SVID issued",
		slog.String("spiffe_id", r.id.String()), slog.Any("audience", req.Audience))
	return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{SpiffeId: r.id.String(), Svid: token}}}, nil
}

// ValidateJWTSVID implements the Workload API. Tokens of withdrawn identities are refused.
func (r *registration) ValidateJWTSVID(
	_ context.Context, req *workload.ValidateJWTSVIDRequest,
) (*workload.ValidateJWTSVIDResponse, error) {
	if err := context.Cause(r.ctx); err != nil {
		return nil, r.refusal(err)
	}
	peer, err := identity.VerifyJWT(req.Svid, req.Audience, r.authority, r.authority.config.Now())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if r.authority.Withdrawn(peer.ID) {
		return nil, status.Error(codes.InvalidArgument, withdrawnError(peer.ID).Error())
	}
	svid, err := jwtsvid.ParseInsecure(req.Svid, []string{req.Audience})
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	claims, err := structpb.NewStruct(svid.Claims)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: peer.ID.String(), Claims: claims}, nil
}

// refusal is err as gRPC says it. What is not for good is Unavailable, which clients retry.
func (r *registration) refusal(err error) error {
	if errors.Is(err, ErrWithdrawn) {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	if !errors.Is(err, ErrClosed) {
		r.authority.config.Logger.Error("development Workload API",
			slog.String("spiffe_id", r.id.String()), slog.Any("error", err))
	}
	return status.Error(codes.Unavailable, err.Error())
}

func concat(certs []*x509.Certificate) []byte {
	var der []byte
	for _, c := range certs {
		der = append(der, c.Raw...)
	}
	return der
}
