"""A read-only page over a workspace: `cutline dashboard`."""
