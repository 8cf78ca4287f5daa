"""`make bench`: tokenrelay's costs and gains, measured side by side in one run. Not part of the distribution."""
