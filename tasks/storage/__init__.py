"""The workspace on disk or in an object store: files, records, runs, tables."""
