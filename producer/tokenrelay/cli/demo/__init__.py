"""`tokenrelay demo`: two questions, seen from the consumer and from Redis."""
