package identity

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Role is what a workload may be to the governor. Its path says it; no header or claim can.
type Role string

// The roles, and the paths in the home trust domain that give them.
const (
	RoleAgent    Role = "agent"    // /agent/…
	RoleGuard    Role = "guard"    // /guard/…
	RoleOperator Role = "operator" // /operator/…
	RoleGovernor Role = "governor" // /governor
)

// pathNATS is the folder of the NATS servers of a cluster, which run by themselves. They have no role: none is a client.
const pathNATS = "/nats/"

// ErrRole is wrapped where an ID has no role, or one that its trust domain may not have.
var ErrRole = errors.New("no role")

// RoleOf returns the role of id where home is the governor's own trust domain. Workloads of other trust domains can
// be agents only: whoever runs a foreign trust domain must not be able to name an operator of ours.
func RoleOf(id spiffeid.ID, home spiffeid.TrustDomain) (Role, error) {
	role, err := roleByPath(id)
	if err != nil {
		return "", err
	}
	if home.IsZero() || !id.MemberOf(home) && role != RoleAgent {
		return "", fmt.Errorf("%w: %q is outside the trust domain %q, where there are only agents", ErrRole, id, home)
	}
	return role, nil
}

func roleByPath(id spiffeid.ID) (Role, error) {
	if id.IsZero() {
		return "", fmt.Errorf("%w: there is no SPIFFE ID", ErrRole)
	}
	if id.Path() == "/"+string(RoleGovernor) {
		return RoleGovernor, nil
	}
	for _, role := range []Role{RoleAgent, RoleGuard, RoleOperator} {
		// Valid paths do not end in a slash, so something follows the folder.
		if strings.HasPrefix(id.Path(), "/"+string(role)+"/") {
			return role, nil
		}
	}
	return "", fmt.Errorf("%w: the path of %q is none of /agent/…, /guard/…, /operator/… and /governor: register the"+
		" workload under one of them", ErrRole, id)
}
