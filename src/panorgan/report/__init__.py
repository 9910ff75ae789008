"""The report and the preflight page, and all pictures."""
