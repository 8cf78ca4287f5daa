"""`tokenrelay demo`: two requests, shown as the consumer and as redis-cli see them."""
