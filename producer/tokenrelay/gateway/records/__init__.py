"""What Redis holds of one request, and what live workers have registered."""
