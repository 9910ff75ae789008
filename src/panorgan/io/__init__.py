"""The only readers and writers of volumes and tables; how numbers are written and drawn; what a
machine has."""
