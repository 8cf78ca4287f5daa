"""`tokenrelay load`: an open-loop load generator and its report."""
