"""`tokenrelay load`: an open loop of arrivals, and the report of what it measured."""
