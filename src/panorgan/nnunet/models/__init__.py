"""Models as folders: ours, and those of nnU-Net 1 and 2."""
