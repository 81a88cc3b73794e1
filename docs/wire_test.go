package docs_test

//go:generate go test -run=^TestWirePage$ -update .

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
)

const wirePage = "wire.md"

// An example stands between two comments. What is between them is made by the test, and nothing else is.
var exampleForm = regexp.MustCompile(`(?s)<!-- example: (\S+) -->\n(.*?)<!-- end of example -->`)

// The examples of docs/wire.md are messages that a client sent to the real daemon, or got from it. The page goes stale
// when a subject, a header, a member of JSON or its type is another one now; values may differ.
func TestWirePage(t *testing.T) {
	text, err := os.ReadFile(wirePage)
	if err != nil {
		t.Fatal(err)
	}
	captured := captureWire(t)
	shown := map[string]bool{} // tokens
	var unknown []string
	updated := exampleForm.ReplaceAllStringFunc(string(text), func(example string) string {
		m := exampleForm.FindStringSubmatch(example)
		messages, ok := captured[m[1]]
		if !ok {
			unknown = append(unknown, m[1])
			return example
		}
		delete(captured, m[1])
		is := render(t, messages, shown)
		if diff := cmp.Diff(shape(t, m[2]), shape(t, is)); diff != "" && !*update {
			t.Errorf("the example %s has another shape: run go generate ./docs (-page +wire):\n%s", m[1], diff)
		}
		return "<!-- example: " + m[1] + " -->\n" + is + "<!-- end of example -->"
	})
	if len(unknown) > 0 {
		t.Errorf("nothing was captured for, or twice shown: %v", unknown)
	}
	if len(captured) > 0 {
		t.Errorf("the page does not show %v", slices.Sorted(maps.Keys(captured)))
	}
	if *update && !t.Failed() {
		if err := os.WriteFile(wirePage, []byte(updated), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// Whoever computes what the page's examples carry, from the page alone, gets the same.
func TestWireVectors(t *testing.T) {
	text, err := os.ReadFile(wirePage)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if broken := recover(); broken != nil { // a member that is missing, or of another type
			t.Fatalf("the examples cannot be read: run go generate ./docs: %v", broken)
		}
	}()
	examples := map[string][]message{}
	for _, m := range exampleForm.FindAllStringSubmatch(string(text), -1) {
		examples[m[1]] = parseMessages(t, m[2])
	}
	get := func(name string, i int) message {
		if i >= len(examples[name]) {
			t.Fatalf("the page has no example %s with %d messages", name, i+1)
		}
		return examples[name][i]
	}
	same := func(what string, got, want any) {
		t.Helper()
		if got != want {
			t.Errorf("%s: the page says %v, it is %v", what, got, want)
		}
	}

	request := get("open", 0).json(t)
	key := keyOf(t, request["jwk"])
	proof := verified(t, request["proof"], key)
	request["proof"] = ""
	same("request_hash", proof["request_hash"], hash(canonical(t, request)))

	request = get("open-person", 0).json(t)
	person := payloadOf(t, request["principal"].(object)["proof"].(string))
	request["proof"], request["principal"].(object)["proof"] = "", ""
	same("request_hash of a person", person["request_hash"], hash(canonical(t, request)))

	keys := get("keys", 1).json(t)
	root := get("open", 1).json(t)["aat_chain"].([]any)[0]
	verified(t, root, keyOf(t, keys["issuer_keys"].([]any)[0]))

	offer := get("offer", 0)
	link := verified(t, offer.header["Handoff-Token"][0], key)
	same("task_hash", link["handoff"].(object)["task_hash"], hash(salt(t, offer), offer.body))
	same("par_hash", link["par_hash"], linkHash(root.(string)))
	same("iss", link["iss"], "urn:ietf:params:oauth:jwk-thumbprint:sha-256:"+hash(canonical(t, get("open", 0).json(t)["jwk"])))

	worker := keyOf(t, get("claim", 0).json(t)["jwk"])
	verified(t, get("claim", 0).json(t)["proof"], worker)
	claimed := get("claim", 1).json(t)["claims"].([]any)[0].(object)
	leaf := claimed["aat_chain"].([]any)[2].(string)
	same("par_hash of the claim link", verified(t, leaf, keyOf(t, keys["governor_keys"].([]any)[0]))["par_hash"],
		linkHash(offer.header["Handoff-Token"][0]))
	task, err := base64.StdEncoding.DecodeString(claimed["task"].(string))
	check(t, err)
	same("task", string(task), string(offer.body))

	pop := verified(t, get("call", 0).json(t)["aat_pop"], worker)
	same("aat_hash", pop["aat_hash"], linkHash(leaf))
	result := get("result", 0)
	same("body_hash", verified(t, result.header["Handoff-Token"][0], worker)["body_hash"], hash(salt(t, result), result.body))
}

func salt(t *testing.T, m message) []byte {
	t.Helper()
	b, err := b64.DecodeString(m.header["Handoff-Salt"][0])
	check(t, err)
	return b
}

func keyOf(t *testing.T, jwk any) ed25519.PublicKey {
	t.Helper()
	x, err := b64.DecodeString(jwk.(object)["x"].(string))
	check(t, err)
	return x
}

// verified is the payload of a token whose signature holds.
func verified(t *testing.T, token any, key ed25519.PublicKey) object {
	t.Helper()
	s := token.(string)
	dot := strings.LastIndexByte(s, '.')
	signature, err := b64.DecodeString(s[dot+1:])
	if err != nil || !ed25519.Verify(key, []byte(s[:dot]), signature) {
		t.Fatalf("the signature of %.40s… does not hold (%v)", s, err)
	}
	return payloadOf(t, s)
}

var (
	longForm = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{86}|[A-Za-z0-9+/=]{300,}`) // a token, or base64
	idForm   = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`)
	wordForm = regexp.MustCompile(`^[a-z][a-z_.+-]*$`)
)

// render shows messages, and beside each what is signed in it. A token is shown whole once; later its ends have to do.
func render(t *testing.T, messages []message, shown map[string]bool) string {
	t.Helper()
	var out strings.Builder
	for i, m := range messages {
		if i > 0 {
			out.WriteByte('\n')
		}
		var text strings.Builder
		fmt.Fprintf(&text, "%s %s\n", m.way, m.subject)
		for _, name := range slices.Sorted(maps.Keys(m.header)) {
			for _, value := range m.header[name] {
				fmt.Fprintf(&text, "%s: %s\n", name, value)
			}
		}
		if m.reply != "" {
			fmt.Fprintf(&text, "(to be acknowledged at %s)\n", m.reply)
		}
		if len(m.body) > 0 {
			fmt.Fprintf(&text, "\n%s\n", pretty(t, m.body))
		}
		var signed strings.Builder
		cut := longForm.ReplaceAllStringFunc(text.String(), func(long string) string {
			segments := strings.Split(long, ".")
			if shown[long] || len(segments) != 3 {
				return long[:10] + "…" + long[len(long)-10:]
			}
			shown[long] = true
			fmt.Fprintf(&signed, "\n```json\n[\n%s\n]\n```\n", decoded(t, segments))
			return long
		})
		fmt.Fprintf(&out, "```text\n%s```\n%s", cut, signed.String())
	}
	return out.String()
}

// decoded is a JWS's header and payload, as elements of an array.
func decoded(t *testing.T, segments []string) string {
	t.Helper()
	var parts []string
	for _, segment := range segments[:2] {
		raw, err := b64.DecodeString(segment)
		check(t, err)
		parts = append(parts, "  "+strings.ReplaceAll(pretty(t, raw), "\n", "\n  "))
	}
	return strings.Join(parts, ",\n")
}

// pretty is JSON with a line for each member that does not fit one, and anything else as it is.
func pretty(t *testing.T, body []byte) string {
	t.Helper()
	v := jsontext.Value(slices.Clone(body))
	if kind := v.Kind(); kind != '{' && kind != '[' || !v.IsValid() {
		return string(body)
	}
	return layout(t, v, 0)
}

func layout(t *testing.T, v jsontext.Value, depth int) string {
	t.Helper()
	flat := v.Clone()
	check(t, flat.Format(jsontext.SpaceAfterColon(true), jsontext.SpaceAfterComma(true)))
	open := flat.Kind()
	if open != '{' && open != '[' || len(flat)+2*depth <= 100 {
		return string(flat)
	}
	in := strings.Repeat("  ", depth+1)
	var lines []string
	dec := jsontext.NewDecoder(strings.NewReader(string(v)))
	_, err := dec.ReadToken()
	check(t, err)
	for dec.PeekKind() == '"' || open == '[' && dec.PeekKind() != ']' {
		name := ""
		if open == '{' {
			token, err := dec.ReadValue()
			check(t, err)
			name = string(token) + ": "
		}
		value, err := dec.ReadValue()
		check(t, err)
		lines = append(lines, in+name+layout(t, value.Clone(), depth+1))
	}
	closing := map[jsontext.Kind]string{'{': "}", '[': "]"}[open]
	return string(open) + "\n" + strings.Join(lines, ",\n") + "\n" + in[2:] + closing
}

// parseMessages reads what render has written.
func parseMessages(t *testing.T, text string) []message {
	t.Helper()
	p, err := parsePage(wirePage, text)
	check(t, err)
	var out []message
	for _, b := range p.blocks {
		if b.kind != "text" {
			continue
		}
		head, body, _ := strings.Cut(b.text(), "\n\n")
		lines := strings.Split(strings.TrimSuffix(head, "\n"), "\n")
		m := message{header: map[string][]string{}, body: []byte(strings.TrimSuffix(body, "\n"))}
		m.way, m.subject, _ = strings.Cut(lines[0], " ")
		for _, line := range lines[1:] {
			name, value, ok := strings.Cut(line, ": ")
			if !ok {
				m.reply = line
				continue
			}
			m.header[name] = append(m.header[name], value)
		}
		out = append(out, m)
	}
	return out
}

// shape is what of an example must stay the same.
func shape(t *testing.T, text string) []any {
	t.Helper()
	var out []any
	for _, m := range parseMessages(t, text) {
		var body any = "text"
		if v := jsontext.Value(m.body); v.Kind() == '{' {
			body = shapeOf(t, v)
		} else if len(m.body) == 0 {
			body = "nothing"
		}
		out = append(out, map[string]any{
			"subject": m.way + " " + idForm.ReplaceAllString(m.subject, "<id>"), "header": slices.Sorted(maps.Keys(m.header)),
			"acknowledged": m.reply != "", "body": body,
		})
	}
	p, err := parsePage(wirePage, text)
	check(t, err)
	for _, b := range p.blocks {
		if b.kind == "json" {
			out = append(out, shapeOf(t, jsontext.Value(b.text())))
		}
	}
	return out
}

// shapeOf has member names and types in the place of values. Words of the protocol stay; they are lower-case.
func shapeOf(t *testing.T, v jsontext.Value) any {
	t.Helper()
	var value any
	check(t, json.Unmarshal(v, &value))
	var of func(any) any
	of = func(v any) any {
		switch v := v.(type) {
		case object:
			members := object{}
			for name, value := range v {
				members[name] = of(value)
			}
			return members
		case []any:
			elements := object{} // by how they print: in no order, and each kind once
			for _, value := range v {
				k := of(value)
				elements[fmt.Sprint(k)] = k
			}
			return elements
		case string:
			if wordForm.MatchString(v) {
				return v
			}
		}
		return fmt.Sprintf("%T", v)
	}
	return of(value)
}
