"""The HTTP gateway: a producer and consumer over HTTP, for any OpenAI client and any browser.

It needs the extra `gateway`. It holds nothing that must outlive it: whatever it says of a request comes from Redis, so
any gateway says the same.
"""
