"""The only readers and writers of volumes and tables, and how numbers are written."""
