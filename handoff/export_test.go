package handoff

// RenewNow does what the client does every ten seconds.
func RenewNow(c *Client) { c.tasks.renewAll() }

// Ready is how many tasks are claimed that nobody has received yet.
func Ready(c *Client) int {
	c.tasks.mu.Lock()
	defer c.tasks.mu.Unlock()
	return len(c.tasks.ready)
}

// Held is how many answers are kept that nobody has asked for yet.
func Held(c *Client) int {
	c.mail.mu.Lock()
	defer c.mail.mu.Unlock()
	return c.mail.order.Len()
}

// Lose loses the connection, and makes the next one at once.
func Lose(c *Client) error { return c.nc.ForceReconnect() }
