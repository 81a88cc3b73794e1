package policies

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/cache"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Entry points: the rules of package handoff that are asked. A bundle must have decision; one of the others that it
// lacks answers [wire.CodePolicyUndefined].
const (
	EntrySession  = "session"  // may this principal open this root?
	EntryDecision = "decision" // may this handoff be offered, may it be claimed?
	EntryResult   = "result"   // may this result go back?
	EntryCall     = "call"     // may this tool be called? asked by guards that were told to
)

var entryPoints = []string{EntrySession, EntryDecision, EntryResult, EntryCall}

// InputSchema is the JSON Schema (2020-12) of every entry point's input: $defs/session, decision, result and call.
//
//go:embed input.schema.json
var InputSchema []byte

// MaxInput is the most bytes that an input may have.
const MaxInput = 1 << 20

// defaultTimeout is some hundred times what the default bundle needs.
const defaultTimeout = 250 * time.Millisecond

const defaultRemember = 64 << 20

// Config says how a bundle is evaluated. The zero value works.
type Config struct {
	// Timeout ends an evaluation with [wire.CodePolicyTimeout]. 0 means 250 ms: wall time, which a busy machine also spends on others.
	Timeout time.Duration
	// Remember bounds, in bytes, what is kept of answers already given: the same input under the same bundle is
	// answered without being evaluated. 0 means 64 MiB; negative remembers nothing.
	Remember int
	// Logger hears why an evaluation failed; the agent is told only that it did. Nil means nobody does.
	Logger *slog.Logger
}

// Snapshot is one compiled bundle. It never changes, and any number of goroutines may use it.
type Snapshot struct {
	bundle  *Bundle
	queries map[string]rego.PreparedEvalQuery // :: entry point → query
	labels  map[string][]string               // :: tool → labels that it brings
	store   storage.Store
	txn     storage.Transaction // read-only, and as old as the store: nothing is ever written to it
	memos   cache.InterQueryValueCache
	answers *answers
	timeout time.Duration
	log     *slog.Logger
}

// Compile makes a bundle ready to judge. It refuses, with [wire.CodeBundle] and OPA's own message, a bundle that does
// not compile under the locked capabilities in strict mode, whose data is hidden by a rule, that lacks the entry point
// decision, or that reports problems: the optional set data.handoff.problems says in sentences what is wrong with the
// bundle's own data. Its input is {"data": [names of the data's members]}, since a rule cannot ask for all data without
// asking for itself.
func Compile(b *Bundle, cfg Config) (*Snapshot, error) {
	s, err := compile(b, cfg)
	if err != nil {
		return nil, failed(wire.CodeBundle, "the bundle cannot be used", err)
	}
	return s, nil
}

func compile(b *Bundle, cfg Config) (*Snapshot, error) {
	if cfg.Timeout < 0 {
		return nil, fmt.Errorf("timeout is %v; it must be positive, or 0 for %v", cfg.Timeout, defaultTimeout)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.Remember == 0 {
		cfg.Remember = defaultRemember
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	ctx := context.Background()
	data, err := decodeValue(b.data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dataFile, err)
	}
	s := &Snapshot{
		bundle: b, queries: map[string]rego.PreparedEvalQuery{}, store: inmem.NewFromASTObject(data.(ast.Object)),
		memos: newMemos(ctx), answers: newAnswers(max(0, cfg.Remember/2)), timeout: cfg.Timeout, log: cfg.Logger,
	}
	if s.txn, err = s.store.NewTransaction(ctx); err != nil {
		return nil, err
	}
	if s.labels, err = toolLabels(data); err != nil {
		return nil, err
	}
	modules, err := parseModules(b.files)
	if err != nil {
		return nil, err
	}
	compiler := ast.NewCompiler().WithCapabilities(capabilities()).WithStrict(true).
		WithPathConflictsCheck(storage.NonEmpty(ctx, s.store, s.txn))
	if compiler.Compile(modules); compiler.Failed() {
		return nil, compiler.Errors
	}
	for _, entry := range append(entryPoints, entryProblems) {
		if len(compiler.GetRulesExact(entryRef(entry))) == 0 {
			continue
		}
		options := []func(*rego.Rego){
			rego.Compiler(compiler), rego.Store(s.store), rego.StoreReadAST(true), rego.StrictBuiltinErrors(true),
			rego.Query(entryRef(entry).String()),
		}
		for _, f := range ours {
			options = append(options, rego.FunctionDyn(f.decl, f.call))
		}
		if s.queries[entry], err = rego.New(options...).PrepareForEval(ctx); err != nil {
			return nil, err
		}
	}
	if _, ok := s.queries[EntryDecision]; !ok {
		return nil, errors.New("it has no rule decision in package handoff")
	}
	if err := s.problems(ctx, data.(ast.Object)); err != nil {
		return nil, err
	}
	return s, nil
}

// newMemos keeps what builtins compile, as regular expressions, between evaluations; unbounded unless told.
func newMemos(ctx context.Context) cache.InterQueryValueCache {
	most := 1024
	return cache.NewInterQueryValueCache(ctx,
		&cache.Config{InterQueryBuiltinValueCache: cache.InterQueryBuiltinValueCacheConfig{MaxNumEntries: &most}})
}

func parseModules(files []File) (map[string]*ast.Module, error) {
	modules := make(map[string]*ast.Module, len(files))
	for _, f := range files {
		m, err := ast.ParseModuleWithOpts(f.Path, string(f.Content),
			ast.ParserOptions{RegoVersion: ast.RegoV1, Capabilities: capabilities(), ProcessAnnotation: true})
		if err != nil {
			return nil, err
		}
		modules[f.Path] = m
	}
	return modules, nil
}

func entryRef(entry string) ast.Ref {
	return ast.Ref{ast.DefaultRootDocument, ast.InternedTerm("handoff"), ast.InternedTerm(entry)}
}

// entryProblems is asked once, when a bundle is compiled.
const entryProblems = "problems"

// compileTimeout is how long the bundle may look at its own data.
const compileTimeout = 2 * time.Second

func (s *Snapshot) problems(ctx context.Context, data ast.Object) error {
	query, ok := s.queries[entryProblems]
	if !ok {
		return nil
	}
	delete(s.queries, entryProblems)
	input := ast.NewObject([2]*ast.Term{ast.StringTerm("data"), ast.ArrayTerm(data.Keys()...)})
	found, err := s.ask(ctx, query, input, compileTimeout, new(reads))
	if err != nil {
		return fmt.Errorf("looking for problems in its data: %w", err)
	}
	set, ok := found.(ast.Set)
	if !ok {
		return fmt.Errorf("problems is %s; it must be a set of sentences", ast.ValueName(found))
	}
	var sentences []string
	for _, p := range set.Slice() {
		sentence, ok := p.Value.(ast.String)
		if !ok {
			return fmt.Errorf("problems has %v; it must be a set of sentences", p)
		}
		sentences = append(sentences, string(sentence))
	}
	if len(sentences) > 0 {
		return errors.New(strings.Join(sentences, "; "))
	}
	return nil
}

// toolLabels reads data.tools.<tool>.labels, the one place of any bundle's data that the governor reads itself.
func toolLabels(data ast.Value) (map[string][]string, error) {
	labels := map[string][]string{}
	tools, err := data.Find(ast.Ref{ast.InternedTerm("tools")})
	if err != nil {
		return labels, nil // absent
	}
	object, ok := tools.(ast.Object)
	if !ok {
		return nil, fmt.Errorf("%s: tools must be an object", dataFile)
	}
	return labels, object.Iter(func(tool, facts *ast.Term) error {
		list, err := facts.Value.Find(ast.Ref{ast.InternedTerm("labels")})
		if err != nil {
			return nil // absent
		}
		name := string(tool.Value.(ast.String)) // data is JSON: its keys are strings
		array, ok := list.(*ast.Array)
		if !ok {
			return fmt.Errorf("%s: tools[%q].labels must be an array", dataFile, name)
		}
		return array.Iter(func(label *ast.Term) error {
			text, ok := label.Value.(ast.String)
			if !ok || text == "" || len(text) > wire.MaxLabel {
				return fmt.Errorf("%s: tools[%q].labels: a label is a string of 1 to %d bytes", dataFile, name, wire.MaxLabel)
			}
			labels[name] = append(labels[name], string(text))
			return nil
		})
	})
}

// Bundle returns the bundle that s was compiled from.
func (s *Snapshot) Bundle() *Bundle { return s.bundle }

// Digest names the bundle that s was compiled from.
func (s *Snapshot) Digest() string { return s.bundle.digest }

// Has tells whether the bundle has a rule for an entry point.
func (s *Snapshot) Has(entry string) bool { _, ok := s.queries[entry]; return ok }

// ToolLabels returns the labels that the bundle's data gives whoever holds a tool: data.tools[tool].labels. The result
// must not be modified.
func (s *Snapshot) ToolLabels(tool string) []string { return s.labels[tool] }

// Evaluate asks an entry point about an input, a JSON object as docs/policy.md shows it, and returns the answer as RFC
// 8785 JSON that [wire.ParseAnswer] accepts.
//
// Every other outcome is an error, and the caller must deny: it wraps a [wire.Error] of code policy_error (the policy
// or its input is wrong), policy_timeout, policy_undefined (no rule has an answer) or policy_answer (wrong shape). Only
// when ctx ends first is it ctx's own error, and nothing was decided. The answer must not be modified.
func (s *Snapshot) Evaluate(ctx context.Context, entry string, input []byte) ([]byte, error) {
	answer, err := s.evaluate(ctx, entry, input)
	if err != nil && ctx.Err() == nil {
		s.log.WarnContext(ctx, "policy gave no answer",
			slog.String("entry", entry), slog.String("bundle", s.Digest()), slog.Any("error", err))
	}
	return answer, err
}

func (s *Snapshot) evaluate(ctx context.Context, entry string, input []byte) ([]byte, error) {
	query, ok := s.queries[entry]
	if !ok {
		return nil, failed(wire.CodePolicyUndefined, "the policy has no entry point "+entry, nil)
	}
	if len(input) > MaxInput {
		return nil, failed(wire.CodePolicyError, fmt.Sprintf("the input has %d bytes; at most %d are allowed",
			len(input), MaxInput), nil)
	}
	asked := ask(entry, input)
	if answer, ok := s.answers.get(asked); ok {
		return answer, nil
	}
	parsed, err := decodeValue(input)
	if err != nil {
		return nil, failed(wire.CodePolicyError, "the input is not JSON that policy may read", err)
	}
	var read reads
	found, err := s.ask(ctx, query, parsed, s.timeout, &read)
	if err != nil {
		return nil, err
	}
	answer, err := encodeValue(found)
	if err != nil {
		return nil, failed(wire.CodePolicyAnswer, "the policy's answer is not JSON", err)
	}
	if _, err := wire.ParseAnswer(answer); err != nil {
		return nil, err
	}
	s.answers.add(asked, answer, &read)
	return answer, nil
}

// Remembered tells how many evaluations were answered from memory, and how many were not.
func (s *Snapshot) Remembered() (hits, misses uint64) {
	return s.answers.hits.Load(), s.answers.misses.Load()
}

// ask evaluates a query to its one value.
func (s *Snapshot) ask(
	ctx context.Context, query rego.PreparedEvalQuery, input ast.Value, limit time.Duration, read *reads,
) (value ast.Value, err error) {
	// OPA's own cancellation: with an external one the deadline of a context is not looked at.
	cancel := topdown.NewCancel()
	defer time.AfterFunc(limit, cancel.Cancel).Stop()
	defer context.AfterFunc(ctx, cancel.Cancel)()
	defer func() {
		if p := recover(); p != nil {
			value, err = nil, failed(wire.CodePolicyError, "the policy failed", fmt.Errorf("panic: %v", p))
		}
	}()
	results, err := query.Eval(ctx,
		rego.EvalTransaction(s.txn),
		rego.EvalParsedInput(input),
		rego.EvalExternalCancel(cancel),
		rego.EvalGenerateJSON(func(t *ast.Term, _ *rego.EvalContext) (any, error) { return t.Value, nil }),
		rego.EvalMetrics(metrics.NoOp()),
		rego.EvalInterQueryBuiltinValueCache(s.memos),
		rego.EvalBaseCache(read),
	)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case topdown.IsCancel(err):
		return nil, failed(wire.CodePolicyTimeout, fmt.Sprintf("the policy took longer than %v", limit), nil)
	case err != nil:
		return nil, failed(wire.CodePolicyError, "the policy failed", err)
	case len(results) == 0:
		return nil, failed(wire.CodePolicyUndefined, "the policy has no answer for this input", nil)
	case len(results) != 1 || len(results[0].Expressions) != 1:
		return nil, failed(wire.CodePolicyAnswer, "the policy has more than one answer", nil)
	}
	value, ok := results[0].Expressions[0].Value.(ast.Value)
	if !ok {
		return nil, failed(wire.CodePolicyAnswer, "the policy's answer is no value", nil)
	}
	return value, nil
}

// failure is a [wire.Error] with the cause that only operators should see.
type failure struct {
	refusal *wire.Error
	cause   error
}

func failed(code wire.Code, message string, cause error) error {
	return &failure{refusal: wire.Refuse(code, message), cause: cause}
}

func (f *failure) Error() string {
	if f.cause == nil {
		return f.refusal.Error()
	}
	return f.refusal.Error() + ": " + f.cause.Error()
}

func (f *failure) Unwrap() []error {
	if f.cause == nil {
		return []error{f.refusal}
	}
	return []error{f.refusal, f.cause}
}

// Store holds the snapshot in force.
type Store struct {
	cfg     Config
	current atomic.Pointer[Snapshot]
}

// NewStore compiles the first bundle and puts it in force.
func NewStore(b *Bundle, cfg Config) (*Store, error) {
	s := &Store{cfg: cfg}
	if err := s.Activate(b); err != nil {
		return nil, err
	}
	return s, nil
}

// Current returns the snapshot in force. A decision takes it once and uses that one to its end.
func (s *Store) Current() *Snapshot { return s.current.Load() }

// Prepare compiles a bundle without putting it in force, so that its activation can be recorded first. Where only data
// changed, it takes over from the snapshot in force every remembered answer that the change cannot touch: to judge
// again after a change costs what the change touches.
func (s *Store) Prepare(b *Bundle) (*Snapshot, error) {
	next, err := Compile(b, s.cfg)
	if err != nil {
		return nil, err
	}
	if before := s.Current(); before != nil {
		next.inherit(before)
	}
	return next, nil
}

// Use puts a prepared snapshot in force.
func (s *Store) Use(next *Snapshot) { s.current.Store(next) }

// Activate prepares a bundle and puts it in force. After an error the one before is still in force.
func (s *Store) Activate(b *Bundle) error {
	next, err := s.Prepare(b)
	if err != nil {
		return err
	}
	s.Use(next)
	return nil
}
