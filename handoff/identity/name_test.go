package identity_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/handoff-governor/handoff-governor/handoff/identity"
)

var home = spiffeid.RequireTrustDomainFromString("acme.example")

// oneToken is what a NATS subject can carry as a single token, and any file system as a file name.
var oneToken = regexp.MustCompile(`^[A-Za-z0-9_=-]{1,180}$`)

func TestNameOf(t *testing.T) {
	for id, want := range map[string]identity.Name{
		"spiffe://acme.example/agent/planner":      "acme=dexample=sagent=splanner",
		"spiffe://a/b":                             "a=sb",
		"spiffe://td/a.b":                          "td=sa=db",
		"spiffe://td/a/b":                          "td=sa=sb",
		"spiffe://td.a/b":                          "td=da=sb",
		"spiffe://td/A_-":                          "td=sA_-",
		"spiffe://td/...":                          "td=s=d=d=d",
		"spiffe://.../x":                           "=d=d=d=sx",
		"spiffe://a/" + strings.Repeat("x", 177):   identity.Name("a=s" + strings.Repeat("x", 177)),
		"spiffe://1.2/" + strings.Repeat("a.", 57): identity.Name("1=d2=s" + strings.Repeat("a=d", 57)),
	} {
		got, err := identity.NameOf(spiffeid.RequireFromString(id))
		if err != nil || got != want {
			t.Errorf("NameOf(%s) = %q, %v, want %q", id, got, err, want)
		}
		if back, err := want.ID(); err != nil || back.String() != id {
			t.Errorf("%q.ID() = %s, %v, want %s", want, back, err, id)
		}
	}
}

func TestNameOfRefuses(t *testing.T) {
	for _, id := range []spiffeid.ID{
		{},
		home.ID(),
		spiffeid.RequireFromString("spiffe://../agent/x"),
		spiffeid.RequireFromString("spiffe://./agent/x"),
		spiffeid.RequireFromString("spiffe://a/" + strings.Repeat("x", 178)),
		spiffeid.RequireFromString("spiffe://a/" + strings.Repeat(".", 2000)),
	} {
		if name, err := identity.NameOf(id); !errors.Is(err, identity.ErrName) || name != "" {
			t.Errorf("NameOf(%q) = %q, %v, want ErrName", id, name, err)
		}
	}
}

func TestParseNameRefuses(t *testing.T) {
	for _, s := range []string{
		"", "a", "=s", "a=s", "=sa", "a=s=d", "a=s=d=d", "a=sb=s", "a=s=sb", "a=sb=s=d=sc", // no ID, or not a valid one
		"a.b=sc", "a/b", "a=sb.c", "a=sb/c", // a second spelling
		"A=sb", "aB=sc", // trust domains are lower case
		"a=", "a=sb=", "a=sb=x", "a=sb=S", "a=sb=D", "a=h0123", "a=sb==d", // no such escape
		"a=s*", "a=s>", "a=sb c", "a=sb\n", "a=s\x00", "a=sé", "a=s~", "a=s%2e", "spiffe:==", "a=sb:c", "a=s@", "a=s+",
		"=d=sx", "=d=d=sx", // `.` and `..` are no trust domains
		"a=s" + strings.Repeat("x", 178), strings.Repeat("x", 1<<20),
	} {
		if name, err := identity.ParseName(s); !errors.Is(err, identity.ErrName) || name != "" {
			t.Errorf("ParseName(%.40q) = %q, %v, want ErrName", s, name, err)
		}
		if id, err := identity.Name(s).ID(); err == nil {
			t.Errorf("Name(%.40q).ID() = %s", s, id)
		}
		if td := identity.Name(s).TrustDomain(); !td.IsZero() {
			t.Errorf("Name(%.40q).TrustDomain() = %s", s, td)
		}
	}
}

// Built with the tag spiffeid_charset_backcompat, go-spiffe takes `*`, `=` and more into IDs. Names would stop being
// one token, and stop being injective.
func TestCharsetHasNoBackcompat(t *testing.T) {
	for _, c := range "*=~!$&'(),;+:@[]>% \t\x00é" {
		for _, s := range []string{"spiffe://acme.example/agent/a" + string(c), "spiffe://ac" + string(c) + "me/agent/a"} {
			if id, err := spiffeid.FromString(s); err == nil {
				t.Errorf("go-spiffe accepts %q as %q: build without spiffeid_charset_backcompat", s, id)
				if name, err := identity.NameOf(id); err == nil {
					t.Errorf("and it has the name %q", name)
				}
			}
			if name, err := identity.Expand(s, home); err == nil {
				t.Errorf("Expand(%q) = %q", s, name)
			}
		}
	}
}

func anyID(t *rapid.T) spiffeid.ID {
	dots := func(s string) bool { return s == "." || s == ".." }
	td := rapid.StringMatching(`[a-z0-9._-]{1,20}`).Draw(t, "trust domain")
	segment := rapid.StringMatching(`[A-Za-z0-9._-]{1,12}`).Filter(func(s string) bool { return !dots(s) })
	id, err := spiffeid.FromString("spiffe://" + td + "/" + strings.Join(rapid.SliceOfN(segment, 1, 5).Draw(t, "segments"), "/"))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestNamesAreReversibleTokens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := anyID(t)
		name, err := identity.NameOf(id)
		if err != nil {
			if td := id.TrustDomain().Name(); len(id.String()) < 90 && td != "." && td != ".." {
				t.Fatalf("NameOf(%q): %v", id, err)
			}
			return
		}
		if !oneToken.MatchString(string(name)) {
			t.Fatalf("%q is not one token", name)
		}
		if back, err := name.ID(); err != nil || back != id {
			t.Fatalf("%q became %q, %v", id, back, err)
		}
		if parsed, err := identity.ParseName(string(name)); err != nil || parsed != name {
			t.Fatalf("ParseName(%q) = %q, %v", name, parsed, err)
		}
		if name.TrustDomain() != id.TrustDomain() {
			t.Fatalf("%q is of %q", name, name.TrustDomain())
		}
	})
}

// Two IDs drawn by themselves are hardly ever alike enough to be taken for one another. So each is compared with all that
// differ from it in one character: a.b with a/b, a-b and ab, for one.
func TestNamesAreInjective(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := anyID(t)
		name, err := identity.NameOf(id)
		if err != nil {
			return // it is too long, or of no trust domain
		}
		compared := 0
		for at := len("spiffe://"); at < len(id.String()); at++ {
			otherCase := string(rune(id.String()[at] ^ 0x20))
			for _, other := range []string{otherCase, ".", "/", "-", "_", "a", "d", "s", "=", "=d", "=s", ""} {
				near, err := spiffeid.FromString(id.String()[:at] + other + id.String()[at+1:])
				if err != nil || near == id {
					continue
				}
				if its, err := identity.NameOf(near); err == nil && its == name {
					t.Fatalf("%q and %q are both %q", id, near, name)
				}
				compared++
			}
		}
		if compared == 0 {
			t.Fatalf("%q was compared with nothing", id)
		}
	})
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"acme=dexample=sagent=splanner", "a=sb", "a=s=d=d=d", "=s", "a.b/c", "a==ssb", "A=sb"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := identity.ParseName(s)
		if err != nil {
			return
		}
		id, err := name.ID()
		if err != nil || !oneToken.MatchString(s) {
			t.Fatalf("ParseName(%q) accepted it, ID says %v", s, err)
		}
		if again, err := identity.NameOf(id); err != nil || string(again) != s {
			t.Fatalf("%q is %q, which is %q, %v", s, id, again, err)
		}
	})
}

func FuzzNameOf(f *testing.F) {
	for _, s := range []string{"spiffe://a/b", "spiffe://a.b/c", "spiffe://a/b.c/d", "spiffe://../x", "spiffe://a/.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := spiffeid.FromString(s)
		if err != nil {
			return
		}
		name, err := identity.NameOf(id)
		if err != nil {
			return
		}
		if back, err := name.ID(); err != nil || back.String() != s || !oneToken.MatchString(string(name)) {
			t.Fatalf("%q became %q became %q, %v", s, name, back, err)
		}
		if again, err := identity.Expand(name.Short(home), home); err != nil || again != name {
			t.Fatalf("%q prints %q, which is %q, %v", name, name.Short(home), again, err)
		}
	})
}

func TestExpandAndShort(t *testing.T) {
	for typed, want := range map[string]struct{ name, short string }{
		"planner":                              {"acme=dexample=sagent=splanner", "planner"},
		"a.b":                                  {"acme=dexample=sagent=sa=db", "a.b"},
		"spiffe://acme.example/agent/planner":  {"acme=dexample=sagent=splanner", "planner"},
		"acme=dexample=sagent=splanner":        {"acme=dexample=sagent=splanner", "planner"},
		"spiffe://acme.example/agent/a/b":      {"acme=dexample=sagent=sa=sb", "spiffe://acme.example/agent/a/b"},
		"spiffe://acme.example/guard/planner":  {"acme=dexample=sguard=splanner", "spiffe://acme.example/guard/planner"},
		"spiffe://acme.example/agent":          {"acme=dexample=sagent", "spiffe://acme.example/agent"},
		"spiffe://acme.example/agents/x":       {"acme=dexample=sagents=sx", "spiffe://acme.example/agents/x"},
		"spiffe://other.example/agent/planner": {"other=dexample=sagent=splanner", "spiffe://other.example/agent/planner"},
		"other=dexample=sagent=splanner":       {"other=dexample=sagent=splanner", "spiffe://other.example/agent/planner"},
	} {
		name, err := identity.Expand(typed, home)
		if err != nil || string(name) != want.name || name.Short(home) != want.short {
			t.Errorf("Expand(%q) = %q (%s), %v", typed, name, name.Short(home), err)
		}
		if again, err := identity.Expand(name.Short(home), home); err != nil || again != name {
			t.Errorf("%q prints %q, which expands to %q, %v", name, name.Short(home), again, err)
		}
	}
	for _, typed := range []string{
		"", ".", "..", "a/b", "/agent/planner", "other.example/agent/planner", "pl anner", "*", ">", "planner ", "é",
		"SPIFFE://acme.example/agent/planner", "spiffe:/acme.example/agent/planner", "spiffe://acme.example",
		"spiffe://Acme.example/agent/x", "spiffe://acme.example/agent/x?y", "spiffe://acme.example:1/agent/x",
		"acme=dexample", strings.Repeat("x", 400), strings.Repeat("x", 1<<20),
	} {
		if name, err := identity.Expand(typed, home); !errors.Is(err, identity.ErrName) {
			t.Errorf("Expand(%.40q) = %q, %v, want ErrName", typed, name, err)
		}
	}
	if name, err := identity.Expand("planner", spiffeid.TrustDomain{}); !errors.Is(err, identity.ErrName) {
		t.Errorf("Expand without a home = %q, %v", name, err)
	}
	if got := identity.Name("planner").Short(home); got == "planner" {
		t.Error("an invalid name prints like a valid one")
	}
}

func TestRoleOf(t *testing.T) {
	foreign := "spiffe://other.example"
	for id, want := range map[string]identity.Role{
		home.IDString() + "/agent/planner":    identity.RoleAgent,
		home.IDString() + "/agent/a/b":        identity.RoleAgent,
		home.IDString() + "/guard/search":     identity.RoleGuard,
		home.IDString() + "/operator/ada":     identity.RoleOperator,
		home.IDString() + "/governor":         identity.RoleGovernor,
		foreign + "/agent/planner":            identity.RoleAgent,
		home.IDString() + "/agent":            "",
		home.IDString() + "/governor/x":       "",
		home.IDString() + "/Governor":         "",
		home.IDString() + "/operators/ada":    "",
		home.IDString() + "/ns/x/sa/operator": "",
		home.IDString() + "/x/operator/ada":   "",
		home.IDString():                       "",
		foreign + "/guard/search":             "",
		foreign + "/operator/ada":             "",
		foreign + "/governor":                 "",
		"spiffe://sub.acme.example/governor":  "",
	} {
		role, err := identity.RoleOf(spiffeid.RequireFromString(id), home)
		if role != want || (want == "") != errors.Is(err, identity.ErrRole) {
			t.Errorf("RoleOf(%s) = %q, %v, want %q", id, role, err, want)
		}
	}
	if role, err := identity.RoleOf(spiffeid.ID{}, home); err == nil {
		t.Errorf("the zero ID is %q", role)
	}
	agent := spiffeid.RequireFromString("spiffe://acme.example/agent/x")
	if role, err := identity.RoleOf(agent, spiffeid.TrustDomain{}); err == nil {
		t.Errorf("without a home, %q is %q", agent, role)
	}
}

func BenchmarkNameOf(b *testing.B) {
	id := spiffeid.RequireFromString("spiffe://acme.example/agent/planner")
	for b.Loop() {
		if _, err := identity.NameOf(id); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseName(b *testing.B) {
	for b.Loop() {
		if _, err := identity.ParseName("acme=dexample=sagent=splanner"); err != nil {
			b.Fatal(err)
		}
	}
}
