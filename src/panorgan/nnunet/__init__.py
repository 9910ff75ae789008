"""The only part of panorgan that knows nnU-Net 2: plans, preprocessing, training, model folders."""
