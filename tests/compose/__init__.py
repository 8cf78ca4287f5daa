"""The whole system in containers, as docker-compose.yml has it."""
