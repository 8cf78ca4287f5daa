"""Our own endpoints: `/requests`, the page at `/`, health, and the demo's kill button."""
