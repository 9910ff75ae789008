"""Labels made of partial labels and pseudo-labels: the rule for a voxel, components, the gate."""
