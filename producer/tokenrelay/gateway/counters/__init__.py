"""What a gateway counts: of HTTP, of Redis and of the streams it follows."""
