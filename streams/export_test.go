package streams

import (
	"bufio"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
)

// TestingQuarantined reads the last quarantined message of a sender.
func TestingQuarantined(t testing.TB, b *Bus, sender string) *jetstream.RawStreamMsg {
	t.Helper()
	stream, err := b.writer.Stream(t.Context(), streamQuarantine)
	if err != nil {
		t.Fatal(err)
	}
	msg, err := stream.GetLastMsgForSubject(t.Context(), subjectQuarantine+sender)
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// TestingWithoutPermissions lifts the permissions of those who connect from now on.
func TestingWithoutPermissions(deployment any) {
	none := func(Role, string, string) *allowed { return nil }
	switch d := deployment.(type) {
	case *Server:
		d.permissions = none
	case *Cluster:
		d.permissions = none
	}
}

// TestingInProcess connects as the governor does, but with another secret, and returns what the server says.
func TestingInProcess(t testing.TB, deployment any, secret string) string {
	t.Helper()
	conn, err := deployment.(*Server).nats.InProcessConn()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	lines := bufio.NewReader(conn)
	if _, err := lines.ReadString('\n'); err != nil { // INFO
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "CONNECT {\"verbose\":true,\"auth_token\":%q}\r\n", secret); err != nil {
		t.Fatal(err)
	}
	answer, _ := lines.ReadString('\n')
	return strings.TrimSpace(answer)
}

// TestingAckV2 rewrites a first-form ack subject of an agent's inbox to the second form.
func TestingAckV2(deployment any, name, reply string) string {
	gov := governorAccount
	if c, ok := deployment.(*Cluster); ok {
		gov = c.keys.governorKey
	}
	subjects := ackSubjects(name, gov)
	numbers := strings.TrimPrefix(reply, strings.TrimSuffix(subjects[0], "*.*.*.*.*"))
	return strings.TrimSuffix(subjects[1], ">") + numbers
}

// ReadAhead is how many bytes were read and not fetched.
func (b *Bus) ReadAhead() int64 { return b.waiting.Load() }

// TestingLoseInboxes takes the inboxes' stream away, and makes an empty one in its place.
func TestingLoseInboxes(t testing.TB, b *Bus) {
	t.Helper()
	config := b.inboxes.CachedInfo().Config
	TestingDeleteInboxes(t, b)
	if _, err := b.writer.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
}

// TestingDeleteInboxes deletes their stream.
func TestingDeleteInboxes(t testing.TB, b *Bus) {
	t.Helper()
	if err := b.writer.DeleteStream(t.Context(), streamInbox); err != nil {
		t.Fatal(err)
	}
}
