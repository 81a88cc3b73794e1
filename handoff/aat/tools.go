package aat

// Placeholders for the first hour: the package's author replaces this file.

type Tools map[string]Arguments
type Arguments map[string]Constraint
type Constraint struct{}
type JWK struct{}
