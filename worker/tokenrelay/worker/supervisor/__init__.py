"""The supervisor and its children, one per device."""
