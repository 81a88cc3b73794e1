package aat_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"math"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf16"
	"unicode/utf8"
)

// This file is a second verifier, written from the text of the draft and from nothing else. It shares no code with the
// first beyond Go's own library, does everything in the order and with the words of the draft, and cares for neither time
// nor memory. differential_test.go holds the two against each other.
//
// Where the draft leaves an enforcement point a choice, it follows what doc.go and the package's doc comments promise:
// Ed25519 alone, cnf.jwk with exactly kty, crv and x and no point of small order, no extension constraint types, no crit,
// and steps 7a and 7b in front of 6.

// denial is thrown where the algorithm says DENY.
type denial string

// naiveVerify is section 8. It returns the step that denies, "" for a permit.
func naiveVerify(v vector) (step string) {
	defer func() {
		switch thrown := recover().(type) {
		case nil:
		case denial:
			step = string(thrown)
		default:
			panic(thrown)
		}
	}()
	naiveSteps(v)
	return ""
}

func verify(step string, ok bool) {
	if !ok {
		panic(denial(step))
	}
}

// What sections 3.4, 4.3, 4.4 and 9.10 recommend.
const (
	naiveMaxDepth      = 32
	naiveMaxLifetime   = 90 * 24 * 60 * 60
	naiveSkew          = 30
	naiveWindow        = 30
	naiveMaxConstraint = 32
)

type claims = map[string]any

func naiveSteps(v vector) {
	maxToken, maxChain := 65536, 262144
	if v.Options.MaxTokenSize > 0 {
		maxToken = v.Options.MaxTokenSize
	}
	if v.Options.MaxChainSize > 0 {
		maxChain = v.Options.MaxChainSize
	}
	now := big.NewInt(v.Now)
	plus := func(n *big.Int, seconds int64) *big.Int { return new(big.Int).Add(n, big.NewInt(seconds)) }

	// 1.
	verify("1", len(v.Chain) > 0)
	// 2.
	total := 0
	for _, token := range v.Chain {
		verify("2a", len(token) <= maxToken)
		total += len(token)
	}
	verify("2b", total <= maxChain)
	seen := map[string]bool{}
	for _, token := range v.Chain {
		_, payload, _, ok := naiveSplit(token)
		verify("2c", ok)
		jti, ok := naiveJTI(payload)
		verify("2c", ok && !seen[jti])
		seen[jti] = true
	}

	// 3.
	header, payload, signature, _ := naiveSplit(v.Chain[0])
	verify("3a", naiveHeader(header, "aat+jwt"))
	issuer, found := "", map[string]bool{}
	for _, a := range v.Anchors {
		key, err := base64.RawURLEncoding.DecodeString(a.JWK.X)
		if err == nil && naiveSigned(key, v.Chain[0], signature) {
			found[a.Issuer] = true
		}
	}
	verify("3b", len(found) > 0)
	root, ok := naiveParse(payload).(claims)
	verify("3b", ok)
	iat, ok1 := naiveInteger(root["iat"])
	exp, ok2 := naiveInteger(root["exp"])
	verify("3b", ok1 && ok2)
	depth, ok := naiveInteger(root["del_depth"])
	verify("3c", ok && depth.Sign() == 0)
	_, has := root["par_hash"]
	verify("3d", !has)
	verify("3e", exp.Cmp(now) > 0)
	verify("3f", iat.Cmp(plus(now, naiveSkew)) <= 0)
	verify("3g", exp.Cmp(iat) > 0)
	verify("3h", exp.Cmp(plus(iat, naiveMaxLifetime)) <= 0)
	maxDepth, ok := naiveInteger(root["del_max_depth"])
	verify("3i", ok && maxDepth.Sign() >= 0 && maxDepth.Cmp(big.NewInt(naiveMaxDepth)) <= 0)
	jti, ok := root["jti"].(string)
	verify("3j", ok && jti != "")
	issuer, ok = root["iss"].(string)
	verify("3k", ok && naiveURI.MatchString(issuer) && found[issuer])
	holder, ok := naiveHolder(root["cnf"])
	verify("3l", ok)
	entries, ok := naiveEntries(root["authorization_details"])
	verify("3m", ok && len(entries) == 1)
	tools, ok := naiveTools(entries[0])
	verify("3m", ok)
	verify("3n", naiveWellFormed(tools))

	// 4.
	all := []claims{root}
	leafEntries := len(entries)
	for i := 1; i < len(v.Chain); i++ {
		header, payload, signature, _ := naiveSplit(v.Chain[i])
		verify("4a", naiveHeader(header, "aat+jwt"))
		verify("4b", naiveSigned(holder, v.Chain[i], signature))
		child, ok := naiveParse(payload).(claims)
		verify("4b", ok)
		childJTI, ok := child["jti"].(string)
		verify("4b1", ok && childJTI != "")
		childHolder, ok := naiveHolder(child["cnf"])
		verify("4b2", ok)
		entries, ok := naiveEntries(child["authorization_details"])
		verify("4b3", ok)
		childDepth, ok1 := naiveInteger(child["del_depth"])
		childMaxDepth, ok2 := naiveInteger(child["del_max_depth"])
		verify("4b4", ok1 && ok2 && childDepth.Sign() >= 0 && childMaxDepth.Sign() >= 0)
		iss, ok1 := child["iss"].(string)
		parHash, ok2 := child["par_hash"].(string)
		childIAT, ok3 := naiveInteger(child["iat"])
		childEXP, ok4 := naiveInteger(child["exp"])
		verify("4b5", ok1 && ok2 && ok3 && ok4)
		verify("4c", iss == naiveThumbprintURI(holder))
		verify("4d", childDepth.Cmp(plus(depth, 1)) == 0)
		verify("4e", childDepth.Cmp(maxDepth) <= 0)
		verify("4f", childDepth.Cmp(big.NewInt(naiveMaxDepth)) <= 0)
		verify("4g", childMaxDepth.Cmp(maxDepth) <= 0)
		verify("4h", childEXP.Cmp(exp) <= 0)
		verify("4i", childEXP.Cmp(now) > 0)
		verify("4j", childIAT.Cmp(iat) >= 0)
		verify("4k", childIAT.Cmp(plus(now, naiveSkew)) <= 0)
		verify("4l", childEXP.Cmp(childIAT) > 0)
		verify("4m", childDepth.Cmp(childMaxDepth) <= 0)
		childTools := map[string]claims{}
		verify("4n", len(entries) <= 1)
		if len(entries) == 1 {
			childTools, ok = naiveTools(entries[0])
			verify("4n", ok)
		}
		verify("4o", naiveWellFormed(childTools))
		naiveMonotone(tools, childTools)
		verify("4q", parHash == naiveHash(v.Chain[i-1]))

		all = append(all, child)
		jti, holder, depth, maxDepth, iat, exp = childJTI, childHolder, childDepth, childMaxDepth, childIAT, childEXP
		tools, leafEntries = childTools, len(entries)
	}

	// 5.
	verify("5", depth.Cmp(big.NewInt(int64(len(v.Chain)-1))) == 0)

	// 7a and 7b, as section 8 says that enforcement points should.
	header, payload, signature, ok = naiveSplit(v.PoP)
	verify("7a", ok && naiveHeader(header, "aat-pop+jwt"))
	verify("7b", naiveSigned(holder, v.PoP, signature))
	pop, ok := naiveParse(payload).(claims)
	verify("7b", ok)

	// 6.
	verify("6a", leafEntries == 1)
	arguments, ok := tools[v.Tool]
	verify("6b", ok)
	args, ok := naiveParse([]byte(v.Args)).(claims)
	verify("6b", ok && naiveAdmissible(args))
	m := naiveNormal(arguments)
	for name, value := range args {
		c, named := m[name]
		if name == "*" || !named {
			c, named = m["*"]
		}
		verify("6b", named && naiveCheck(c.(claims), value))
	}
	for name, c := range m {
		_, present := args[name]
		verify("6b", name == "*" || naiveOptional(c) || present)
	}
	restricted := false
	for _, c := range all {
		if aud, has := c["aud"]; has {
			restricted = true
			verify("6c", naiveAudience(aud, v.Audience))
		}
	}
	verify("6c", restricted || !v.Options.RequireAudience)

	// 7.
	for _, name := range []string{"jti", "aat_id", "aat_hash", "aat_tool"} {
		s, ok := pop[name].(string)
		verify("7c", ok && s != "")
	}
	popIAT, ok := naiveInteger(pop["iat"])
	verify("7c", ok)
	hta, ok := pop["hta"].(claims)
	verify("7c", ok)
	verify("7c", pop["aat_id"] == jti && pop["aat_hash"] == naiveHash(v.Chain[len(v.Chain)-1]))
	if aud, has := pop["aat_aud"]; has {
		s, ok := aud.(string)
		verify("7d", ok && slices.Contains(v.Audience, s))
	} else {
		verify("7d", !v.Options.RequirePoPAudience)
	}
	verify("7e", pop["aat_tool"] == v.Tool)
	signed, ok1 := naiveJCS(hta)
	received, ok2 := naiveJCS(args)
	verify("7f", ok1 && ok2 && signed == received)
	verify("7g", popIAT.Cmp(plus(now, -naiveWindow)) >= 0 && popIAT.Cmp(plus(now, naiveWindow)) <= 0)
	if v.Options.Nonces != nil {
		nonce, ok := pop["nonce"].(string)
		verify("7h", ok && slices.Contains(v.Options.Nonces, nonce))
	}
	verify("7i", !slices.Contains(v.Options.AcceptedIDs, pop["jti"].(string)))
	// 8.
}

// naiveURI is RFC 3986, but for the rules within each part.
var naiveURI = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]*$`)

// JOSE.

func naiveSplit(compact string) (header, payload, signature []byte, ok bool) {
	parts := strings.Split(compact, ".")
	if len(parts) != 3 {
		return nil, nil, nil, false
	}
	payload, ok = naiveBase64(parts[1])
	if !ok {
		return nil, nil, nil, false
	}
	// A header or a signature that cannot be decoded is none, which steps a and b find.
	header, _ = naiveBase64(parts[0])
	signature, _ = naiveBase64(parts[2])
	return header, payload, signature, true
}

// naiveBase64 is base64url of RFC 7515: no padding, nothing in between, and no spare bits (RFC 4648, section 3.5).
func naiveBase64(s string) ([]byte, bool) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || base64.RawURLEncoding.EncodeToString(b) != s {
		return nil, false
	}
	return b, true
}

func naiveHeader(header []byte, typ string) bool {
	h, ok := naiveParse(header).(claims)
	_, crit := h["crit"]
	return ok && !crit && h["alg"] == "Ed25519" && h["typ"] == typ
}

func naiveSigned(key ed25519.PublicKey, compact string, signature []byte) bool {
	return len(signature) == ed25519.SignatureSize && ed25519.Verify(key, []byte(naiveInput(compact)), signature)
}

func naiveInput(compact string) string {
	parts := strings.Split(compact, ".")
	return parts[0] + "." + parts[1]
}

func naiveHash(compact string) string {
	sum := sha256.Sum256([]byte(naiveInput(compact)))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func naiveThumbprintURI(key []byte) string {
	sum := sha256.Sum256([]byte(`{"crv":"Ed25519","kty":"OKP","x":"` + base64.RawURLEncoding.EncodeToString(key) + `"}`))
	return "urn:ietf:params:oauth:jwk-thumbprint:sha-256:" + base64.RawURLEncoding.EncodeToString(sum[:])
}

func naiveHolder(cnf any) (key []byte, ok bool) {
	c, _ := cnf.(claims)
	jwk, _ := c["jwk"].(claims)
	x, _ := jwk["x"].(string)
	key, ok = naiveBase64(x)
	return key, ok && len(jwk) == 3 && jwk["kty"] == "OKP" && jwk["crv"] == "Ed25519" && len(key) == 32 && naivePoint(key)
}

var naivePoints sync.Map // :: key as a string → whether it is good

// naivePoint says whether the key is the one encoding of a point of edwards25519 whose order is not 1, 2, 4 or 8, by the
// affine formulas of RFC 8032, section 5.1.
func naivePoint(key []byte) bool {
	if good, known := naivePoints.Load(string(key)); known {
		return good.(bool)
	}
	good := naiveGoodPoint(key)
	naivePoints.Store(string(key), good)
	return good
}

func naiveGoodPoint(key []byte) bool {
	one := big.NewInt(1)
	p := new(big.Int).Sub(new(big.Int).Lsh(one, 255), big.NewInt(19))
	mod := func(n *big.Int) *big.Int { return n.Mod(n, p) }
	mul := func(a, b *big.Int) *big.Int { return mod(new(big.Int).Mul(a, b)) }
	add := func(a, b *big.Int) *big.Int { return mod(new(big.Int).Add(a, b)) }
	div := func(a, b *big.Int) *big.Int { return mul(a, new(big.Int).ModInverse(b, p)) }
	d := div(mod(big.NewInt(-121665)), big.NewInt(121666))

	little := slices.Clone(key)
	negative := little[31]&0x80 != 0
	little[31] &= 0x7f
	slices.Reverse(little)
	y := new(big.Int).SetBytes(little)
	if y.Cmp(p) >= 0 {
		return false
	}
	yy := mul(y, y)
	x := new(big.Int).ModSqrt(div(add(yy, mod(big.NewInt(-1))), add(mul(d, yy), one)), p)
	if x == nil || x.Sign() == 0 && negative {
		return false
	}
	for range 3 { // the sign of x does not matter for its order
		xx, yy, xy := mul(x, x), mul(y, y), mul(x, y)
		dxxyy := mul(d, mul(xx, yy))
		x, y = div(add(xy, xy), add(one, dxxyy)), div(add(yy, xx), mod(new(big.Int).Sub(one, dxxyy)))
	}
	return x.Sign() != 0 || y.Cmp(one) != 0
}

// JSON.

// naiveJTI extracts the first jti of an object that may be broken behind it.
func naiveJTI(payload []byte) (string, bool) {
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.UseNumber()
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return "", false
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return "", false
		}
		var value any
		if err := dec.Decode(&value); err != nil {
			return "", false
		}
		if name == "jti" {
			s, ok := value.(string)
			return s, ok
		}
	}
	return "", false
}

// broken is what naiveParse returns for what is no JSON, or has a name twice in an object.
type broken struct{}

// naiveParse reads one JSON value. Numbers stay as they are written.
func naiveParse(b []byte) any {
	if !json.Valid(b) || !utf8.Valid(b) || loneSurrogate(b) {
		return broken{}
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	return naiveValue(dec)
}

func naiveValue(dec *json.Decoder) any {
	tok, err := dec.Token()
	if err != nil && err != io.EOF {
		return broken{}
	}
	switch tok {
	case json.Delim('{'):
		object, ok := claims{}, true
		for dec.More() {
			name, _ := dec.Token()
			_, twice := object[name.(string)]
			value := naiveValue(dec)
			object[name.(string)] = value
			ok = ok && !twice && value != broken{}
		}
		_, _ = dec.Token()
		if !ok {
			return broken{}
		}
		return object
	case json.Delim('['):
		array, ok := []any{}, true
		for dec.More() {
			value := naiveValue(dec)
			array = append(array, value)
			ok = ok && value != broken{}
		}
		_, _ = dec.Token()
		if !ok {
			return broken{}
		}
		return array
	}
	return tok
}

// loneSurrogate finds escapes like \ud800 that are half a character, which encoding/json reads as another one.
func loneSurrogate(b []byte) bool {
	half := func(at int) (rune, bool) {
		if at+6 > len(b) || b[at] != '\\' || b[at+1] != 'u' {
			return 0, false
		}
		n, err := strconv.ParseUint(string(b[at+2:at+6]), 16, 16)
		return rune(n), err == nil && utf16.IsSurrogate(rune(n))
	}
	for i := 0; i < len(b); i++ {
		if b[i] != '\\' {
			continue
		}
		if first, ok := half(i); ok {
			second, ok := half(i + 6)
			if !ok || utf16.DecodeRune(first, second) == utf8.RuneError {
				return true
			}
			i += 6
		}
		i++
	}
	return false
}

var naiveInt = regexp.MustCompile(`^-?[0-9]+$`)

func naiveInteger(v any) (*big.Int, bool) {
	n, ok := v.(json.Number)
	if !ok || !naiveInt.MatchString(string(n)) {
		return nil, false
	}
	i, ok := new(big.Int).SetString(string(n), 10)
	return i, ok
}

// naiveRat is the number that a text denotes, and false where its exponent is out of all reason.
func naiveRat(text string) (*big.Rat, bool) {
	mantissa, exponent, _ := strings.Cut(strings.ToLower(text), "e")
	if strings.Trim(mantissa, "-0.") == "" {
		return new(big.Rat), true
	}
	if n, err := strconv.Atoi(exponent); exponent != "" && (err != nil || n > 100_000 || n < -100_000) {
		return nil, false
	}
	return new(big.Rat).SetString(text)
}

// naiveNumber writes a number as ECMAScript does (RFC 8785, section 3.2.2.3), false where there is no such double.
func naiveNumber(text string) (string, bool) {
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsInf(f, 0) {
		return "", false
	}
	if f == 0 {
		return "0", true
	}
	sign := ""
	if f < 0 {
		sign, f = "-", -f
	}
	// Number::toString: k digits s, and n such that the value is 0.s·10^n.
	mantissa, exponent, _ := strings.Cut(strconv.FormatFloat(f, 'e', -1, 64), "e")
	s := strings.Replace(mantissa, ".", "", 1)
	e, _ := strconv.Atoi(exponent)
	k, n := len(s), e+1
	switch {
	case k <= n && n <= 21:
		return sign + s + strings.Repeat("0", n-k), true
	case 0 < n && n <= 21:
		return sign + s[:n] + "." + s[n:], true
	case -6 < n && n <= 0:
		return sign + "0." + strings.Repeat("0", -n) + s, true
	}
	if k > 1 {
		s = s[:1] + "." + s[1:]
	}
	plus := "+"
	if n-1 < 0 {
		plus = ""
	}
	return sign + s + "e" + plus + strconv.Itoa(n-1), true
}

// naiveAdmissible is section 3.4: no number in v loses anything as a double.
func naiveAdmissible(v any) bool {
	switch v := v.(type) {
	case claims:
		for _, value := range v {
			if !naiveAdmissible(value) {
				return false
			}
		}
	case []any:
		return !slices.ContainsFunc(v, func(value any) bool { return !naiveAdmissible(value) })
	case json.Number:
		canonical, ok := naiveNumber(string(v))
		if !ok {
			return false
		}
		written, ok := naiveRat(string(v))
		back, _ := naiveRat(canonical)
		return ok && written.Cmp(back) == 0
	}
	return true
}

// naiveJCS is RFC 8785.
func naiveJCS(v any) (string, bool) {
	switch v := v.(type) {
	case nil:
		return "null", true
	case bool:
		return strconv.FormatBool(v), true
	case json.Number:
		return naiveNumber(string(v))
	case string:
		return naiveQuote(v), true
	case []any:
		var parts []string
		for _, value := range v {
			s, ok := naiveJCS(value)
			if !ok {
				return "", false
			}
			parts = append(parts, s)
		}
		return "[" + strings.Join(parts, ",") + "]", true
	case claims:
		var names, parts []string
		for name := range v {
			names = append(names, name)
		}
		slices.SortFunc(names, func(a, b string) int {
			return slices.Compare(utf16.Encode([]rune(a)), utf16.Encode([]rune(b)))
		})
		for _, name := range names {
			s, ok := naiveJCS(v[name])
			if !ok {
				return "", false
			}
			parts = append(parts, naiveQuote(name)+":"+s)
		}
		return "{" + strings.Join(parts, ",") + "}", true
	}
	return "", false
}

func naiveQuote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch short := strings.IndexRune("\"\\\b\f\n\r\t", r); {
		case short >= 0:
			b.WriteString(`\` + string(`"\bfnrt`[short]))
		case r < ' ':
			b.WriteString(`\u00` + string("0123456789abcdef"[r>>4]) + string("0123456789abcdef"[r&15]))
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func naiveEqual(a, b any) bool {
	s, ok1 := naiveJCS(a)
	t, ok2 := naiveJCS(b)
	return ok1 && ok2 && s == t
}

func naiveIn(v any, set []any) bool {
	return slices.ContainsFunc(set, func(member any) bool { return naiveEqual(v, member) })
}

func naiveWithin(a, b []any) bool {
	return !slices.ContainsFunc(a, func(member any) bool { return !naiveIn(member, b) })
}

// naiveAudience: aud is a string or an array of strings (section 3.2); anything else identifies nobody.
func naiveAudience(aud any, own []string) bool {
	values, ok := aud.([]any)
	if !ok {
		values = []any{aud}
	}
	identified := false
	for _, value := range values {
		s, ok := value.(string)
		if !ok {
			return false
		}
		identified = identified || slices.Contains(own, s)
	}
	return identified
}

// Capability claims.

// naiveEntries returns the entries of our type, and whether details is an array at all.
func naiveEntries(details any) (ours []claims, ok bool) {
	array, ok := details.([]any)
	for _, entry := range array {
		if e, isObject := entry.(claims); isObject && e["type"] == "attenuating_agent_token" {
			ours = append(ours, e)
		}
	}
	return ours, ok
}

func naiveTools(entry claims) (tools map[string]claims, ok bool) {
	object, ok := entry["tools"].(claims)
	tools = map[string]claims{}
	for name, arguments := range object {
		m, isObject := arguments.(claims)
		ok = ok && isObject
		tools[name] = m
	}
	return tools, ok
}

// naiveNormal spells the empty map out (section 3.3).
func naiveNormal(m claims) claims {
	if len(m) == 0 {
		return claims{"*": claims{"constraint_type": "wildcard"}}
	}
	return m
}

func naiveOptional(c any) bool { return c.(claims)["optional"] == true }

func naiveWellFormed(tools map[string]claims) bool {
	for _, arguments := range tools {
		for name, value := range arguments {
			c, ok := value.(claims)
			if !ok {
				return false
			}
			if optional, has := c["optional"]; has {
				if _, isBool := optional.(bool); !isBool || name == "*" {
					return false
				}
			}
			if name == "*" && c["constraint_type"] != "wildcard" {
				return false
			}
			if !naiveConstraint(c, 1) || !naiveAdmissible(c) {
				return false
			}
		}
	}
	return true
}

// naiveConstraint is the table and the list of section 3.4. The top of a tree has depth 1 here.
func naiveConstraint(c claims, depth int) bool {
	if depth > naiveMaxConstraint {
		return false
	}
	members := map[string][]string{
		"exact": {"value"}, "range": {"min", "max", "min_inclusive", "max_inclusive"}, "one_of": {"values"},
		"not_one_of": {"excluded"}, "contains": {"required"}, "subset": {"allowed"}, "wildcard": {}, "all": {"constraints"},
		"any": {"constraints"},
	}
	typ, _ := c["constraint_type"].(string)
	own, known := members[typ]
	if !known {
		return false
	}
	for name := range c {
		switch {
		case name == "constraint_type", name == "optional" && depth == 1, slices.Contains(own, name):
		default:
			return false
		}
	}
	switch typ {
	case "exact":
		value, has := c["value"]
		switch value.(type) {
		case claims, []any:
			return false
		}
		return has
	case "range":
		for _, end := range []string{"min", "max"} {
			bound, has := c[end]
			if _, isNumber := bound.(json.Number); has && !isNumber {
				return false
			}
			if inclusive, said := c[end+"_inclusive"]; said {
				if _, isBool := inclusive.(bool); !isBool || !has {
					return false
				}
			}
		}
		lo, hasLo := naiveBound(c, "min")
		hi, hasHi := naiveBound(c, "max")
		return !hasLo || !hasHi || lo.Cmp(hi) <= 0
	case "one_of":
		values, ok := c["values"].([]any)
		return ok && len(values) > 0
	case "not_one_of", "contains", "subset":
		_, ok := c[own[0]].([]any)
		return ok
	case "all", "any":
		clauses, ok := c["constraints"].([]any)
		for _, clause := range clauses {
			d, isObject := clause.(claims)
			ok = ok && isObject && naiveConstraint(d, depth+1)
		}
		return ok && len(clauses) > 0
	}
	return true
}

// naiveBound is min or max. A number that is out of all reason is not admissible either, and refused for that.
func naiveBound(c claims, end string) (*big.Rat, bool) {
	n, ok := c[end].(json.Number)
	if !ok {
		return nil, false
	}
	return naiveRat(string(n))
}

// naiveCheck is the predicate of section 3.4.
func naiveCheck(c claims, v any) bool {
	array, isArray := v.([]any)
	set := func(member string) []any { return c[member].([]any) }
	switch c["constraint_type"] {
	case "wildcard":
		return true
	case "exact":
		return naiveEqual(v, c["value"])
	case "one_of":
		return naiveIn(v, set("values"))
	case "not_one_of":
		return !naiveIn(v, set("excluded"))
	case "contains":
		return isArray && naiveWithin(set("required"), array)
	case "subset":
		return isArray && naiveWithin(array, set("allowed"))
	case "range":
		text, ok := v.(json.Number)
		if !ok {
			return false
		}
		n, ok := naiveRat(string(text))
		if !ok {
			return false
		}
		if lo, has := naiveBound(c, "min"); has && (n.Cmp(lo) < 0 || n.Cmp(lo) == 0 && c["min_inclusive"] == false) {
			return false
		}
		hi, has := naiveBound(c, "max")
		return !has || n.Cmp(hi) < 0 || n.Cmp(hi) == 0 && c["max_inclusive"] != false
	case "all":
		return !slices.ContainsFunc(set("constraints"), func(d any) bool { return !naiveCheck(d.(claims), v) })
	case "any":
		return slices.ContainsFunc(set("constraints"), func(d any) bool { return naiveCheck(d.(claims), v) })
	}
	return false
}

// naiveMonotone is step 4p.
func naiveMonotone(parent, child map[string]claims) {
	for tool := range child {
		_, ok := parent[tool]
		verify("4p1", ok)
	}
	for tool := range child {
		p, c := naiveNormal(parent[tool]), naiveNormal(child[tool])
		_, parentOpen := p["*"]
		_, childOpen := c["*"]
		for name := range c {
			_, named := p[name]
			verify("4p2", named || parentOpen)
		}
		for name := range p {
			_, kept := c[name]
			verify("4p2", name == "*" || kept || naiveOptional(p[name]) && !childOpen)
		}
		verify("4p2", !childOpen || parentOpen)
	}
	for tool := range child {
		p, c := naiveNormal(parent[tool]), naiveNormal(child[tool])
		for name := range c {
			if _, both := p[name]; both {
				verify("4p3", naiveOptional(p[name]) || !naiveOptional(c[name]))
			}
		}
	}
	for tool := range child {
		p, c := naiveNormal(parent[tool]), naiveNormal(child[tool])
		for name := range c {
			above, named := p[name]
			if !named {
				above = p["*"]
			}
			verify("4p4", naiveSubsumes(above.(claims), c[name].(claims)))
		}
	}
}

// naiveSubsumes is the table of section 4.5.
func naiveSubsumes(parent, child claims) bool {
	some := func(clauses []any, good func(claims) bool) bool {
		return slices.ContainsFunc(clauses, func(c any) bool { return good(c.(claims)) })
	}
	p, c := parent["constraint_type"].(string), child["constraint_type"].(string)
	set := func(of claims, member string) []any { return of[member].([]any) }
	switch p + " " + c {
	case "exact exact":
		return naiveEqual(child["value"], parent["value"])
	case "range exact":
		_, isNumber := child["value"].(json.Number)
		return isNumber && naiveCheck(parent, child["value"])
	case "range range":
		if lo, has := naiveBound(parent, "min"); has {
			own, hasOwn := naiveBound(child, "min")
			includes := parent["min_inclusive"] == false && child["min_inclusive"] != false
			if !hasOwn || own.Cmp(lo) < 0 || own.Cmp(lo) == 0 && includes {
				return false
			}
		}
		if hi, has := naiveBound(parent, "max"); has {
			own, hasOwn := naiveBound(child, "max")
			includes := parent["max_inclusive"] == false && child["max_inclusive"] != false
			if !hasOwn || own.Cmp(hi) > 0 || own.Cmp(hi) == 0 && includes {
				return false
			}
		}
		return true
	case "one_of one_of":
		return naiveWithin(set(child, "values"), set(parent, "values"))
	case "one_of exact":
		return naiveIn(child["value"], set(parent, "values"))
	case "not_one_of not_one_of":
		return naiveWithin(set(parent, "excluded"), set(child, "excluded"))
	case "contains contains":
		return naiveWithin(set(parent, "required"), set(child, "required"))
	case "subset subset":
		return naiveWithin(set(child, "allowed"), set(parent, "allowed"))
	case "all all":
		for _, above := range set(parent, "constraints") {
			if !some(set(child, "constraints"), func(d claims) bool { return naiveSubsumes(above.(claims), d) }) {
				return false
			}
		}
		return true
	case "any any":
		for _, d := range set(child, "constraints") {
			if !some(set(parent, "constraints"), func(above claims) bool { return naiveSubsumes(above, d.(claims)) }) {
				return false
			}
		}
		return true
	}
	return p == "wildcard"
}
