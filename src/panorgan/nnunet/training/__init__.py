"""The training of a network: trainer, batches, augmentation, checkpoints."""
