"""`make bench`: what tokenrelay costs and gains, measured side by side in one run. Nothing here is shipped."""
