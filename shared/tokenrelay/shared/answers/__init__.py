"""What an answer says: content, reasoning and tool calls, parsed from its stream. Pure functions of the entries."""
