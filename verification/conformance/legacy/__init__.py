"""Libraries that are no longer developed, in an environment of their own: `make conformance-legacy`."""
