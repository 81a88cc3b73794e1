package handoff_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/guard"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// exampleGovernor is a governor for the examples, with the identities of two agents.
func exampleGovernor() (connect func(agent string) *handoff.Client, stop func()) {
	dir, err := os.MkdirTemp("", "governor")
	if err != nil {
		log.Fatal(err)
	}
	d, err := daemon.Start(context.Background(), daemon.Config{Dir: dir, Listen: "127.0.0.1:0"})
	if err != nil {
		log.Fatal(err)
	}
	var clients []*handoff.Client
	connect = func(agent string) *handoff.Client {
		source, err := d.Source("/agent/" + agent)
		if err != nil {
			log.Fatal(err)
		}
		c, err := handoff.Connect(context.Background(), handoff.Config{URL: d.Endpoint.URL, Source: source})
		if err != nil {
			log.Fatal(err)
		}
		clients = append(clients, c)
		return c
	}
	return connect, func() {
		for _, c := range clients {
			c.Close()
		}
		d.Close()
		os.RemoveAll(dir)
	}
}

// An agent hands a task to another one and waits for the result.
func Example() {
	connect, stop := exampleGovernor()
	defer stop()
	ctx := context.Background()

	// The one that receives. Its grant has the tools that it was handed, and no more.
	writer, written := connect("writer"), make(chan struct{})
	go func() {
		defer close(written)
		task, err := writer.Receive(ctx)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("task:", string(task.Body))
		fmt.Println("with:", task.Tools().Names())
		if err := task.Complete(ctx, []byte("It went well.")); err != nil {
			log.Fatal(err)
		}
	}()

	// The one that sends. In production Connect needs no Source: it asks the Workload API who this is.
	planner := connect("planner")
	session, err := planner.OpenSession(ctx, handoff.SessionRequest{
		Objective: "quarterly report",
		Tools:     aat.Tools{"fs.read": {"path": aat.OneOf("/data/q3", "/data/q4")}, "mail.send": {"to": aat.Exact("board")}},
		MaxHops:   2,
	})
	if err != nil {
		log.Fatal(err)
	}
	sent, err := session.Offer(ctx, "writer", []byte("write the report for Q3"),
		handoff.Tools(aat.Tools{"fs.read": {"path": aat.Exact("/data/q3")}}))
	if err != nil {
		log.Fatal(err)
	}
	result, err := sent.Result(ctx)
	if err != nil {
		log.Fatal(err)
	}
	<-written
	fmt.Println(result.Status+":", string(result.Body))
	// Output:
	// task: write the report for Q3
	// with: [fs.read]
	// completed: It went well.
}

// Nobody can hand on more than they have: the client says so before anything is sent.
func ExampleGrant_Offer() {
	connect, stop := exampleGovernor()
	defer stop()
	ctx := context.Background()
	session, err := connect("planner").OpenSession(ctx, handoff.SessionRequest{
		Objective: "quarterly report", Tools: aat.Tools{"fs.read": {"path": aat.Exact("/data/q3")}}, MaxHops: 1,
	})
	if err != nil {
		log.Fatal(err)
	}
	_, err = session.Offer(ctx, "writer", nil, handoff.Tools(aat.Tools{"fs.read": {"path": aat.Exact("/etc/passwd")}}))
	fmt.Println(errors.Is(err, &wire.Error{Code: wire.CodeWidened}))
	// Output: true
}

// A tool server puts a guard in front of its tools and keeps it told of what was revoked.
func ExampleClient_WatchRevocations() {
	ctx := context.Background()
	client, err := handoff.Connect(ctx, handoff.Config{URL: "tls://governor:4222"}) // as /guard/…
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	keys, err := client.Keys(ctx)
	if err != nil {
		log.Fatal(err)
	}
	issuer, err := guard.IssuerOf(keys) // in production: from configuration
	if err != nil {
		log.Fatal(err)
	}
	g, err := guard.New(guard.Config{Audience: []string{"https://tools.example.com"}, Issuers: []guard.Issuer{issuer}})
	if err != nil {
		log.Fatal(err)
	}
	go client.WatchRevocations(ctx, g)

	readFile := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		call, _ := guard.FromContext(r.Context())
		fmt.Fprintf(w, "%s calls %s with %s", call.Agent, call.Tool, call.Args)
	})
	log.Fatal(http.ListenAndServeTLS(":8443", "tls.crt", "tls.key", guard.Handler(g, readFile, guard.Options{})))
}
