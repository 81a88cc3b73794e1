// Package torture runs a governor in a process of its own, has agents at work, and ends the process over and over. Then it
// reads the ledger, and tells whether anything was lost, or happened twice. See docs/delivery.md for what must hold.
package torture
