"""The work: one module a noun, free of Prefect."""
