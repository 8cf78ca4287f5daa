"""`/requests`, in our own vocabulary, and the page at `/`."""
