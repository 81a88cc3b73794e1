package handoff

// RenewNow does what the client does every ten seconds.
func RenewNow(c *Client) { c.tasks.renewAll() }
