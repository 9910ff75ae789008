"""What is known of each case: the case table, the manifest, corrections, and what is refused."""
