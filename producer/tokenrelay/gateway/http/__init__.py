"""HTTP below the routes: uvicorn's protocol, limits, origin checks, errors, background tasks."""
