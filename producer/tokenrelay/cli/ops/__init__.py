"""The commands of those who run the system: `top`, `list`, `status`, and what they read and say."""
