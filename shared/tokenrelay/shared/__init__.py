"""What producers and workers must agree on: requests, stream entries, keys, scripts, settings, errors."""
