"""What every table, setting, record and error looks like; imports nothing of the project."""
