"""The command `tokenrelay`, an application over the producer and the gateway."""
