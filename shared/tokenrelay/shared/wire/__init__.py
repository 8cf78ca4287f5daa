"""The wire: keys, stream entries, the state machine, and the answer that entries make."""
