"""The HTTP gateway: a producer and consumer over HTTP, for any OpenAI client and any browser.

It needs the extra `gateway`. All state lives in Redis, so every gateway gives the same answer about a request.
"""
