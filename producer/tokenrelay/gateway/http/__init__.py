"""HTTP below the routes: uvicorn's protocol class, size and time limits, origin checks, errors, background tasks."""
