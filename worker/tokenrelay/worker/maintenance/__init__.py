"""Repair of what other workers lost: leases that ran out, RQ's keys, dependents."""
