"""Everything that uses Prefect."""
