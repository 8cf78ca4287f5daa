"""Redis itself: connections, batches of commands, Sentinel, and what to do about an error."""
